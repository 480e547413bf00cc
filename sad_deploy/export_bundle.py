"""Export a calibrated bundle: fold, ONNX, two-pass graph, verification on real images, engine, new bundle."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from sad_export.graph.expression import Array
from sad_export.job import GraphOptions, Made, write_and_build
from sad_export.loading import ForwardGraph, Reading, load_classifier
from sad_export.precision import FP32, Variant, write_verified
from sad_export.tensorrt import EngineRequest
from sad_export.two_pass import Defence, defended
from sad_export.verify import VerificationError
from sad_runtime.bare_graph import stated_by
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.bundle.write import Draft
from sad_runtime.choices import Target
from sad_runtime.errors import BundleError
from sad_runtime.manifest import Engine, Graph, Manifest
from sad_runtime.tensorrt import EngineInfo, Flavor
from sad_runtime.verification import TOLERANCES, Verification, compare
from sad_runtime.verification.references import REFERENCES, write_references

from .calibrated import load_calibrated, load_samples
from .fold import fold_batchnorm
from .in_memory import is_in_memory, kept_network, torch_reference
from .to_onnx import to_onnx

GRAPH_FILE = "model.onnx"
"""Name of the float32 graph; other precisions are put before the suffix: ``model.fp16.onnx``."""


@dataclasses.dataclass(frozen=True)
class ExportedGraph:
    """One graph that an export wrote.

    Attributes:
        entry: What the manifest says of it.
        verification: Its figures against PyTorch.
        bytes: Its size.
        shortfalls: The figures outside their tolerance; empty unless ``allow_inaccurate`` kept it.
    """

    entry: Graph
    verification: Verification
    bytes: int
    shortfalls: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        bundle: The new bundle, verified.
        graphs: What was written, float32 first.
        engine: The engine, if one was built.
        removed: Engines of an earlier export of the same precision that were not built again.
    """

    bundle: Bundle
    graphs: tuple[ExportedGraph, ...]
    engine: EngineInfo | None
    removed: tuple[str, ...]


def export(
    bundle: Bundle | Path | str,
    *,
    options: GraphOptions = GraphOptions(),  # noqa: B008 -- frozen
    engine: EngineRequest | None = None,
) -> Exported:
    """Write a bundle's two-pass graph, verified on its images, as ``sad-deploy export`` does.

    Args:
        bundle: Its folder, or what :meth:`sad_deploy.Calibration.save` returned.
        options: The form of the graph: precision, target, convolution gradient.
        engine: What to build with TensorRT, if anything.

    Raises:
        UserError: See :func:`export_bundle`; nothing was changed.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    return export_bundle(opened, options=options, engine=engine)


def export_bundle(
    bundle: Bundle,
    *,
    options: GraphOptions = GraphOptions(),  # noqa: B008 -- frozen
    engine: EngineRequest | None = None,
    also_for_cpu: bool = True,
    status: Callable[[str], None] = lambda message: None,
) -> Exported:
    """Add the two-pass graph in one precision, and an engine if asked for, to a calibrated bundle.

    The same graph of an earlier export and its engines are replaced; those of other precisions and targets
    stay. A bundle always has a float32 graph: it is written too where it is missing. It carries what
    PyTorch says of its images too, so that every backend can be verified where it runs. Where no
    engine can be built of ``conv_gradient="auto"``, graph and engine are written with ``conv``, and the
    manifest says so.

    Args:
        bundle: As ``sad-deploy calibrate`` wrote it.
        options: The form of the graph.
        engine: What to build with TensorRT, if anything.
        also_for_cpu: Write a portable graph in the form for onnxruntime's CPU too, where it has one.
        status: Called with what is being done.

    Returns:
        The figures, and the bundle that took the old one's place.

    Raises:
        UserError: Nothing was changed: no sample images, a model that cannot be exported or differentiated,
            a verification below its tolerance, no TensorRT, a full disk.
    """
    # First what can be refused at once, then the work.
    flavor = engine.check() if engine else None
    source = _Source.of(bundle, options.variant.least_opset, status)
    old = source.manifest
    forms = _forms(old, options, also_for_cpu)
    replaced = {(form.variant.label, form.target) for form in forms}
    stale = {graph.file for graph in old.graphs if (graph.precision, graph.target) in replaced}
    old_engines = [each for each in old.engines if each.graph in stale]
    stale |= {file for each in old_engines for file in (each.file, each.sidecar)} | {REFERENCES}
    with write_bundle(bundle.root) as draft:
        draft.keep(bundle, *(name for name in old.files if name not in stale))
        write_references(draft.path(REFERENCES), source.reference)
        wanted = _WantedEngine(engine, flavor, draft) if engine and flavor else None
        made = [source.write(draft, form, wanted if form is options else None) for form in forms]
        engines = [each for each in old.engines if each not in old_engines]
        if wanted is not None:
            engines.append(wanted.entry(options.variant))
        else:
            engines += _keep_fitting(draft, bundle, old_engines)
        draft.manifest = dataclasses.replace(
            old, graphs=_merged(old.graphs, made), engines=tuple(engines), files={}
        )
    files = {each.file for each in engines}
    return Exported(
        Bundle.open(bundle.root),
        tuple(each.figures for each in made),
        next((each.engine for each in made if each.engine), None),
        tuple(each.file for each in old_engines if each.file not in files),
    )


def _forms(old: Manifest, options: GraphOptions, also_for_cpu: bool) -> list[GraphOptions]:
    """Every graph that is to be written."""
    forms = [options]
    if not options.variant.is_fp32 and all(graph.precision != FP32.label for graph in old.graphs):
        forms.insert(0, GraphOptions(target=options.target, conv_gradient=options.conv_gradient))
    if also_for_cpu and options.target == Target.PORTABLE and options.variant.has_cpu_form:
        forms.append(dataclasses.replace(options, target=Target.CPU))
    return forms


@dataclasses.dataclass(frozen=True)
class _WantedEngine:
    """Which engine a bundle gets, and where."""

    request: EngineRequest
    flavor: Flavor
    draft: Draft

    def entry(self, variant: Variant) -> Engine:
        """What the manifest says of it."""
        graph = variant.suffixed(GRAPH_FILE)
        plan = f"engines/{Path(graph).stem}.{self.flavor}"
        return Engine(f"{plan}.plan", f"{plan}.json", graph, self.flavor.value, variant.label)

    def build(self, variant: Variant, status: Callable[[str], None]) -> EngineInfo:
        """Build it of the graph in the draft."""
        status(f"building the TensorRT engine ({self.flavor})")
        entry = self.entry(variant)
        return self.request.build(self.draft.root / entry.graph, self.draft.path(entry.file))


@dataclasses.dataclass(frozen=True)
class _Source:
    """What the graphs of a bundle are written from, and compared with.

    Attributes:
        forward: The folded network.
        manifest: Everything that calibration decided.
        images: The bundle's real ones.
        reference: What PyTorch says of them.
        model: PyTorch's Φ1, unfolded; None where it was given in memory.
        status: Called with what is being done.
    """

    forward: ForwardGraph
    manifest: Manifest
    images: Array
    reference: dict[str, Array]
    model: nn.Module | None
    status: Callable[[str], None]

    @classmethod
    def of(cls, bundle: Bundle, least_opset: int, status: Callable[[str], None]) -> _Source:
        """Load a bundle's network.

        Raises:
            UserError: It has no sample images, or cannot be exported.
        """
        images, manifest = sample_images(bundle), bundle.manifest
        if is_in_memory(bundle):
            model = None
            network, reference = kept_network(bundle)
            images = images[: len(reference["logits"])]
        else:
            model, _ = load_calibrated(bundle)
            status("exporting the folded network to ONNX")
            network = to_onnx(fold_batchnorm(model), manifest.preprocessing.shape)
            reference = torch_reference(model, manifest, images)
        forward = load_classifier(network, Reading(least_opset=least_opset))
        if forward.form.has_tail:
            # PyTorch's reference has no other end than what the network returns.
            raise BundleError(
                f"the bundle's network does not return logits: {forward.notices[-1]}",
                hint="calibrate it again",
            )
        return cls(forward, manifest, images, reference, model, status)

    def write(self, draft: Draft, form: GraphOptions, wanted: _WantedEngine | None) -> Made[ExportedGraph]:
        """One graph, and an engine of it if one is wanted.

        Raises:
            UserError: It cannot be written or built, or differs from PyTorch.
        """
        build = functools.partial(wanted.build, form.variant, self.status) if wanted else None
        return write_and_build(functools.partial(self._verified, draft, form), build, form, self.status)

    def _verified(self, draft: Draft, form: GraphOptions, conv_gradient: str) -> ExportedGraph:
        variant = form.variant
        path = draft.path(variant.suffixed(GRAPH_FILE, form.target))
        lowering = dataclasses.replace(form, conv_gradient=conv_gradient).lowering
        graph = defended(self.forward.copy(), self.defence, lowering, stated_by(self.manifest))
        self.status(f"verifying {path.name} against PyTorch on {len(self.images)} real images")
        try:
            figures = write_verified(
                graph,
                path,
                variant,
                self.images,
                self.reference,
                target=form.target,
                allow_inaccurate=form.allow_inaccurate,
            )
        except VerificationError as error:
            raise self._undetermined(error) or error from None
        entry = Graph(path.name, variant.label, conv_gradient, form.target, figures.as_dict())
        shortfalls = tuple(figures.shortfalls(TOLERANCES[variant.lowest]))
        return ExportedGraph(entry, figures, path.stat().st_size, shortfalls)

    def _undetermined(self, error: VerificationError) -> VerificationError | None:
        """What to say where PyTorch's own float32 is as far from its float64 as no graph may be."""
        if self.model is None:
            return None
        double = torch_reference(copy.deepcopy(self.model).double(), self.manifest, self.images)
        off = compare(self.reference, double).shortfalls(TOLERANCES[FP32.label])
        if not off:
            return None
        return VerificationError(
            f"{error.message}; PyTorch's float32 differs from its float64 too: {'; '.join(off)}. Rounding "
            "decides what this network says of these images",
            hint="take the graph with --allow-inaccurate, or calibrate with a smaller η or other images",
        )

    @property
    def defence(self) -> Defence:
        """Everything that calibration decided."""
        defence, space = self.manifest.defence, self.manifest.input_space
        return Defence(
            defence.eta, defence.normalization, clip=defence.bounds(space), mean=space.mean, std=space.std
        )


def _keep_fitting(draft: Draft, bundle: Bundle, engines: Sequence[Engine]) -> list[Engine]:
    """Take over the engines whose graph was written again as it was: they are still its engines."""
    kept = [each for each in engines if draft.has(each.graph, bundle.manifest.files[each.graph])]
    draft.keep(bundle, *(file for each in kept for file in (each.file, each.sidecar)))
    return kept


def _merged(old: Sequence[Graph], made: Sequence[Made[ExportedGraph]]) -> tuple[Graph, ...]:
    """All graphs, the float32 one first; what was made takes the place of its like."""
    graphs = {(each.precision, each.target): each for each in (*old, *(one.figures.entry for one in made))}

    def place(graph: Graph) -> tuple[bool, str, bool]:
        return graph.precision != FP32.label, graph.precision, graph.target != Target.PORTABLE

    return tuple(sorted(graphs.values(), key=place))


def sample_images(bundle: Bundle) -> Array:
    """The real images that calibration put into the bundle: (N, C, H, W) float32 in [0, 1].

    Raises:
        BundleError: It has none, or they do not fit the manifest.
    """
    samples = load_samples(bundle)
    if samples is None:
        raise BundleError(
            f"{bundle.root} holds no sample images, and an export is verified on real ones",
            hint="calibrate again with --samples 64",
        )
    images: Array = samples.images.astype(np.float32) / np.float32(255)
    return images
