"""Export a calibrated bundle: fold, ONNX, two-pass graph, verification on real images, engine, new bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from sad_export.precision import FP32, Variant, write_verified
from sad_export.tensorrt import EngineRequest, UnbuildableError
from sad_export.tensorrt.request import may_build_with_conv
from sad_export.tolerances import TOLERANCES
from sad_export.two_pass import two_pass
from sad_export.verify import Array, Verification
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.errors import BundleError
from sad_runtime.manifest import Engine, Graph, Manifest
from sad_runtime.tensorrt import EngineInfo

from .calibrated import load_calibrated, load_samples
from .classifier import SADClassifier, standardized
from .fold import fold_batchnorm
from .to_onnx import to_onnx

GRAPH_FILE = "model.onnx"
"""Name of the float32 graph; other precisions are put before the suffix: ``model.fp16.onnx``."""

_REFERENCE_BATCH = 16


@dataclasses.dataclass(frozen=True)
class ExportedGraph:
    """One graph that an export wrote.

    Attributes:
        file: Its name in the bundle.
        verification: Its figures against PyTorch.
        bytes: Its size.
        shortfalls: The figures outside their tolerance; empty unless ``allow_inaccurate`` kept it.
    """

    file: str
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


def export_bundle(
    bundle: Bundle,
    *,
    dgrad: str = "auto",
    target: str = "portable",
    variant: Variant = FP32,
    allow_inaccurate: bool = False,
    engine: EngineRequest | None = None,
    status: Callable[[str], None] = lambda message: None,
) -> Exported:
    """Add the two-pass graph in one precision, and an engine if asked for, to a calibrated bundle.

    The graph and the engines of an earlier export in the same precision are replaced; those of other
    precisions stay. A bundle always has its float32 graph: it is written too where it is missing.

    Args:
        bundle: As ``sad-deploy calibrate`` wrote it.
        dgrad: How convolutions are differentiated. Where no engine can be built of ``auto``, the graph and
            its engine are written with ``conv``, and the manifest says so.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU, in fp32 or int8.
        variant: The precision of the second pass and that of the saliency.
        allow_inaccurate: Keep a graph in lower precision whose figures are outside their tolerance.
        engine: What to build with TensorRT, if anything.
        status: Told what is being done.

    Returns:
        The figures, and the bundle that took the old one's place.

    Raises:
        UserError: Nothing was changed: no sample images, a model that cannot be exported or differentiated,
            a verification below its tolerance, no TensorRT, a full disk.
    """
    # First what can be refused at once, then the work.
    flavor = engine.check() if engine else None
    variant.check_target(target)
    images = sample_images(bundle)
    model, manifest = load_calibrated(bundle)
    status("exporting the folded network to ONNX")
    forward = to_onnx(fold_batchnorm(model), manifest.preprocessing.shape)
    reference = torch_reference(model, manifest, images)
    has_fp32 = any(graph.precision == FP32.label for graph in manifest.graphs)
    variants = [variant] if variant.is_fp32 or has_fp32 else [FP32, variant]
    replaced = {each.label for each in variants}
    old_engines = [each for each in manifest.engines if each.precision in replaced]
    stale = {graph.file for graph in manifest.graphs if graph.precision in replaced}
    stale |= {file for each in old_engines for file in (each.file, each.sidecar)}
    graphs = {graph.precision: graph for graph in manifest.graphs}
    engines = [each for each in manifest.engines if each.precision not in replaced]
    with write_bundle(bundle.root) as draft:
        draft.keep(bundle, *(name for name in manifest.files if name not in stale))
        made = {}

        def write(each: Variant, dgrad: str) -> Path:
            path = draft.path(each.suffixed(GRAPH_FILE))
            graph = _two_pass(forward, manifest, dgrad=dgrad, target=each.graph_target(target))
            status(f"verifying {path.name} against PyTorch on {len(images)} real images")
            figures = write_verified(
                graph, path, each, images, reference, target=target, allow_inaccurate=allow_inaccurate
            )
            shortfalls = tuple(figures.shortfalls(TOLERANCES[each.lowest]))
            made[each] = ExportedGraph(path.name, figures, path.stat().st_size, shortfalls)
            graphs[each.label] = Graph(path.name, each.label, dgrad, target, figures.as_dict())
            return path

        for each in variants:
            path = write(each, each.dgrad(dgrad))
        info = None
        if engine is None:
            # The same graph again: its engines are still its engines.
            kept = [each for each in old_engines if draft.has(each.graph, manifest.files[each.graph])]
            draft.keep(bundle, *(file for each in kept for file in (each.file, each.sidecar)))
            engines += kept
        if engine is not None and flavor is not None:
            status(f"building the TensorRT engine ({flavor})")
            plan, sidecar = (f"engines/{path.stem}.{flavor}.{suffix}" for suffix in ("plan", "json"))
            try:
                info = engine.build(path, draft.path(plan))
            except UnbuildableError as error:
                if not may_build_with_conv(error, graph_dgrad=variant.dgrad(dgrad), asked=dgrad):
                    raise
                status(f"{error.message}; writing the graph with --dgrad conv instead")
                info = engine.build(write(variant, "conv"), draft.path(plan))
            engines.append(Engine(plan, sidecar, path.name, flavor.value, variant.label))
        ordered = tuple(
            sorted(graphs.values(), key=lambda graph: (graph.precision != FP32.label, graph.file))
        )
        draft.manifest = dataclasses.replace(manifest, graphs=ordered, engines=tuple(engines), files={})
    built = {each.file for each in engines}
    removed = tuple(each.file for each in old_engines if each.file not in built)
    return Exported(Bundle.open(bundle.root), tuple(made.values()), info, removed)


def _two_pass(forward: onnx.ModelProto, manifest: Manifest, *, dgrad: str, target: str) -> onnx.ModelProto:
    """The float32 graph, with everything that calibration decided."""
    defence, space = manifest.defence, manifest.input_space
    return two_pass(
        forward,
        eta=defence.eta,
        normalization=defence.normalization,
        clip=defence.bounds(space),
        dgrad=dgrad,
        target=target,
        mean=space.mean,
        std=space.std,
        notice=_refuse,
    )


def _refuse(message: str) -> None:
    """A calibrated network returned logits; another end than PyTorch's reference has would not fit it."""
    raise BundleError(f"the bundle's network does not return logits: {message}", hint="calibrate it again")


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


def torch_reference(model: nn.Module, manifest: Manifest, images: Array) -> dict[str, Array]:
    """What PyTorch's unfolded Φ1 says of the images: ``logits``, ``saliency``, ``plain_logits``."""
    defence, space = manifest.defence, manifest.input_space
    classifier = SADClassifier(
        model, eta=defence.eta, normalization=defence.normalization, clip=defence.bounds(space)
    )
    parts = [
        classifier.defend(standardized(torch.from_numpy(images[i : i + _REFERENCE_BATCH]), space))._asdict()
        for i in range(0, len(images), _REFERENCE_BATCH)
    ]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
