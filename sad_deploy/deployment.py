"""Export a calibrated bundle: fold, ONNX, two-pass graph, verification on real images, engine, new bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import nn

from sad_export.tensorrt import EngineInfo, build_engine
from sad_export.tensorrt.flavors import choose_flavor
from sad_export.two_pass import two_pass
from sad_export.verify import Array, Verification, verify
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.errors import BundleError
from sad_runtime.manifest import Engine, Graph, Manifest

from .calibrated import load_calibrated, load_samples
from .classifier import SADClassifier, standardized
from .fold import fold_batchnorm
from .to_onnx import to_onnx

GRAPH_FILE = "model.onnx"
_REFERENCE_BATCH = 16


@dataclasses.dataclass(frozen=True)
class EngineRequest:
    """Which engine to build.

    Attributes:
        flavor: ``rtx``, ``tensorrt`` or ``auto``.
        batch: Smallest, best and largest batch of the profile.
    """

    flavor: str = "auto"
    batch: tuple[int, int, int] = (1, 8, 64)


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        bundle: The new bundle, verified.
        verification: Figures of the graph against PyTorch.
        graph_bytes: Size of the ONNX file.
        engine: The engine, if one was built.
        removed: Engines of the earlier export that were not built again.
    """

    bundle: Bundle
    verification: Verification
    graph_bytes: int
    engine: EngineInfo | None
    removed: tuple[str, ...]


def export_bundle(
    bundle: Bundle,
    *,
    dgrad: str = "auto",
    target: str = "portable",
    engine: EngineRequest | None = None,
    status: Callable[[str], None] = lambda message: None,
) -> Exported:
    """Add the two-pass graph, and an engine if asked for, to a calibrated bundle.

    Graphs and engines of an earlier export are replaced, all of them: they belong together.

    Args:
        bundle: As ``sad-deploy calibrate`` wrote it.
        dgrad: How convolutions are differentiated.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        engine: What to build with TensorRT, if anything.
        status: Told what is being done.

    Returns:
        The figures, and the bundle that took the old one's place.

    Raises:
        UserError: Nothing was changed: no sample images, a model that cannot be exported or differentiated,
            a verification below its tolerance, no TensorRT, a full disk.
    """
    # First what can be refused at once, then the work.
    flavor = choose_flavor(engine.flavor) if engine else None
    images = sample_images(bundle)
    model, manifest = load_calibrated(bundle)
    status("exporting the folded network to ONNX")
    defence, space = manifest.defence, manifest.input_space
    graph = two_pass(
        to_onnx(fold_batchnorm(model), manifest.preprocessing.shape),
        eta=defence.eta,
        normalization=defence.normalization,
        clip=defence.bounds(space),
        dgrad=dgrad,
        target=target,
        mean=space.mean,
        std=space.std,
    )
    reference = torch_reference(model, manifest, images)
    stale = {graph.file for graph in manifest.graphs}
    stale |= {file for engine in manifest.engines for file in (engine.file, engine.sidecar)}
    with write_bundle(bundle.root) as draft:
        draft.keep(bundle, *(name for name in manifest.files if name not in stale))
        graph_path = draft.path(GRAPH_FILE)
        onnx.save(graph, str(graph_path))
        status(f"verifying it against PyTorch on {len(images)} real images")
        verification = verify(graph_path, images, reference)
        graphs = (Graph(GRAPH_FILE, "fp32", dgrad, target, verification.as_dict()),)
        engines: tuple[Engine, ...] = ()
        info = None
        if engine is not None and flavor is not None:
            status(f"building the TensorRT engine ({flavor})")
            plan, sidecar = f"engines/model.{flavor}.plan", f"engines/model.{flavor}.json"
            info = build_engine(graph_path, draft.path(plan), flavor=flavor, batch=engine.batch)
            engines = (Engine(plan, sidecar, GRAPH_FILE, flavor.value, info.precision),)
        draft.manifest = dataclasses.replace(manifest, graphs=graphs, engines=engines, files={})
        graph_bytes = graph_path.stat().st_size
    built = {engine.file for engine in engines}
    removed = tuple(engine.file for engine in manifest.engines if engine.file not in built)
    return Exported(Bundle.open(bundle.root), verification, graph_bytes, info, removed)


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
