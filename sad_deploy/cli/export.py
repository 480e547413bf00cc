"""``sad-deploy export``: a calibrated bundle gets its two-pass graph and engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sad_runtime.extras import require

from .console import interruptible, print_json, print_result, print_status, print_warning
from .engine_options import EngineOptions, print_engine
from .figures import figures_table
from .options import DEFAULT_BUNDLE, AsJson, BundleArgument, GraphChoices, expanded
from .triton_options import TritonOptions, has_graph, print_models

if TYPE_CHECKING:
    from pathlib import Path

    from sad_runtime.bundle import Bundle

    from ..export_bundle import Exported


@expanded
def export(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    *,
    graph: GraphChoices,
    engine: EngineOptions,
    triton: TritonOptions,
    as_json: AsJson = False,
) -> None:
    """Write a bundle's two-pass ONNX graph, verified on real images, and a TensorRT engine with --trt.

    The graph is compared with the PyTorch model on the bundle's images. The bundle is rewritten as a whole,
    or left as it was; it holds one graph of each precision. With --triton it becomes a model of Triton
    Inference Server.
    """
    from sad_runtime.bundle import Bundle

    opened, repository = Bundle.open(bundle), triton.request()
    if repository is None or engine.trt or not has_graph(opened, graph.label):
        opened = _exported(opened, bundle, graph, engine, as_json=as_json)
    if repository is not None:
        from ..triton import write_repository

        written = write_repository(opened, repository, graph.label)
        print_models(written)
        if as_json:
            print_json([{"model": str(each.model), "version": each.version} for each in written])


def _exported(
    opened: Bundle, bundle: Path, graph: GraphChoices, engine: EngineOptions, *, as_json: bool
) -> Bundle:
    """Export, and say what was written."""
    require("torch", extra="calibrate", need="sad-deploy export")
    require("onnx_ir", extra="calibrate", need="sad-deploy export")
    request = engine.request(graph.target)
    from ..export_bundle import export_bundle

    with interruptible(f"{bundle} is unchanged"):
        exported = export_bundle(
            opened,
            options=graph.options(),
            engine=request,
            also_for_cpu=graph.target is None,
            status=print_status,
        )
    if as_json:
        print_json(_as_json(exported))
    for written in exported.graphs:
        name = f"{bundle}/{written.entry.file}"
        if not as_json:
            print_result(figures_table(f"{name} against PyTorch", {"": written.verification.as_dict()}))
        print_written(name, written.bytes, written.shortfalls)
    for file in exported.removed:
        print_warning(f"removed {file}, of the earlier graph; --trt builds a new one")
    if exported.engine is not None:
        print_engine(exported.engine)
    return exported.bundle


def print_written(name: str, size: int, shortfalls: tuple[str, ...]) -> None:
    """One line on stderr: what was written; another if it is below its tolerance."""
    print_status(f"{name}: {size / 1e6:.2f} MB, {'kept as it is' if shortfalls else 'verified'}")
    if shortfalls:
        print_warning(f"{name} is below its tolerance: {'; '.join(shortfalls)}")


def _as_json(exported: Exported) -> dict[str, Any]:
    return {
        "bundle": str(exported.bundle.root),
        "graphs": [
            {**dataclasses.asdict(each.entry), "bytes": each.bytes, "shortfalls": each.shortfalls}
            for each in exported.graphs
        ],
        "engine": exported.engine and dataclasses.asdict(exported.engine),
        "removed": exported.removed,
    }
