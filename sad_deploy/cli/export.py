"""``sad-deploy export``: a calibrated bundle, or a forward ONNX graph, to a two-pass graph and engine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sad_runtime.choices import (
    ConvGradient,
    FlavorChoice,
    HardwareCompatibility,
    Normalization,
    Precision,
    Ranges,
    Target,
)
from sad_runtime.errors import UserError
from sad_runtime.extras import require

from .console import interruptible, print_note, print_status, print_warning, stdout
from .engine_options import DEFAULT_BATCH, PANEL, EngineOptions

if TYPE_CHECKING:
    from sad_runtime.tensorrt import EngineInfo

DEFAULT_BUNDLE = Path("sad-model")


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="[BUNDLE|forward.onnx]", help="A calibrated bundle, or a forward ONNX graph."),
    ] = DEFAULT_BUNDLE,
    trt: Annotated[
        bool, typer.Option("--trt", help="Also build a TensorRT engine (RTX: needs no GPU).")
    ] = False,
    flavor: Annotated[
        FlavorChoice, typer.Option(help="Which TensorRT builds it.", rich_help_panel=PANEL)
    ] = FlavorChoice.AUTO,
    batch: Annotated[
        str,
        typer.Option(
            metavar="MIN:BEST:MAX", help="Batch sizes that the engine serves.", rich_help_panel=PANEL
        ),
    ] = ":".join(map(str, DEFAULT_BATCH)),
    optimization_level: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=5,
            help="How long the builder searches.",
            show_default="TensorRT's",
            rich_help_panel=PANEL,
        ),
    ] = None,
    gpu_target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="sm_XX|current",
            help="RTX: build for this GPU; may be repeated.",
            show_default="sm_80 and newer",
            rich_help_panel=PANEL,
        ),
    ] = None,
    hardware_compatibility: Annotated[
        HardwareCompatibility,
        typer.Option(
            help="Enterprise: which GPUs besides the one it is built on.",
            rich_help_panel=PANEL,
        ),
    ] = HardwareCompatibility.NONE,
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32", help="Let float32 products be rounded to TF32; faster.", rich_help_panel=PANEL
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", help="Show TensorRT's own log on stderr.", rich_help_panel=PANEL),
    ] = False,
    no_engine_cache: Annotated[
        bool,
        typer.Option(
            "--no-engine-cache",
            help="Build anew; by default engines are kept in ~/.cache/sad-deploy.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    dgrad: Annotated[
        ConvGradient,
        typer.Option(help="How convolutions are differentiated; auto: conv where TensorRT lacks a kernel."),
    ] = ConvGradient.AUTO,
    target: Annotated[
        Target, typer.Option(help="cpu: faster in onnxruntime on the CPU, in fp32 or int8; no engine.")
    ] = Target.PORTABLE,
    precision: Annotated[
        Precision,
        typer.Option(help="Type that the graph computes in; a bundle holds one graph of each."),
    ] = Precision.FP32,
    saliency_precision: Annotated[
        Precision | None,
        typer.Option(help="Another type for the first pass and the gradient.", show_default="as --precision"),
    ] = None,
    allow_inaccurate: Annotated[
        bool, typer.Option("--allow-inaccurate", help="Keep lower precision also below its tolerance.")
    ] = False,
    ranges: Annotated[
        Ranges | None,
        typer.Option(help="int8: how ranges are found on real images.", show_default="percentile"),
    ] = None,
    eta: Annotated[
        float | None, typer.Option(help="forward.onnx only: the hybridization ratio.", show_default=False)
    ] = None,
    normalization: Annotated[
        Normalization | None, typer.Option(help="forward.onnx only: scaling of S.", show_default="none")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="forward.onnx only: comma-separated, per channel; put into the graph.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="forward.onnx only: likewise.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="forward.onnx only: real images to verify on, and for int8's ranges.", show_default=False
        ),
    ] = None,
    logits: Annotated[
        str | None,
        typer.Option(help="forward.onnx only: the output that holds the logits.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="forward.onnx only: where the graph goes.", show_default="NAME.sad.onnx"),
    ] = None,
) -> None:
    """Write the two-pass ONNX graph, verify it on real images, and build a TensorRT engine with --trt.

    A bundle is verified against its PyTorch model and rewritten as a whole, or left as it was. A bare forward
    graph is taken as it is: S at its input, and no BatchNorm statistics recalibrated.
    """
    engine_options = EngineOptions(
        flavor=flavor.value,
        batch=_parse_batch(batch),
        optimization_level=optimization_level,
        targets=tuple(gpu_target or ()),
        hardware_compatibility=hardware_compatibility,
        tf32=tf32,
        verbose=verbose,
        no_cache=no_engine_cache,
    )
    if not trt:
        engine_options.refuse_any()
    if trt and target is Target.CPU:
        raise UserError(
            "--trt builds its engine from the portable graph", hint="leave out --target cpu, or --trt"
        )
    bare_only = {
        "--eta": eta, "--normalization": normalization, "--mean": mean, "--std": std,
        "--images": images, "--logits": logits, "--out": out,
    }  # fmt: skip
    if source.suffix == ".onnx":
        if eta is None:
            raise UserError(
                f"a bare graph needs --eta: {source} says nothing of it", hint="for example --eta 0.05"
            )
        require("onnx_ir", extra="export", need="sad-deploy export")
        from sad_export import GraphOptions, defend
        from sad_export.defend import engine_files
        from sad_runtime.tensorrt import Flavor

        options = GraphOptions(precision, saliency_precision, ranges, target, dgrad, allow_inaccurate)
        variant = options.variant
        out = out or source.with_name(variant.suffixed(f"{source.stem}.sad.onnx"))
        refuse_same_file(source, out)
        if images is None and source.is_file():
            print_warning("verifying on noise: give a folder of real images with --images")
        made = defend(
            source,
            out,
            eta=eta,
            normalization=normalization or Normalization.NONE,
            mean=_numbers(mean, "--mean"),
            std=_numbers(std, "--std"),
            images=images,
            logits=logits,
            options=options,
            engine=engine_options.request() if trt else None,
            status=print_status,
            notice=print_note,
        )
        in_fp32 = made.graph if variant.is_fp32 else "its float32 form"
        _print_figures(f"{in_fp32} against {source}", dataclasses.asdict(made.verification))
        if made.lowered is not None:
            _print_figures(f"{made.graph} against its float32 form", made.lowered.as_dict())
        _print_written(str(made.graph), made.bytes, made.shortfalls)
        info = made.engine
        for each in Flavor:
            stale, _ = engine_files(out, each)
            if stale.exists() and (info is None or each != info.flavor):
                print_warning(f"{stale} is of an earlier graph: build it again with --trt, or delete it")
    else:
        if given := [name for name, value in bare_only.items() if value is not None]:
            raise UserError(f"a bundle brings its own {', '.join(given)}: only for a bare forward.onnx")
        words = (precision, saliency_precision, ranges, target, dgrad, allow_inaccurate)
        info = _export_bundle(source, words, engine_options if trt else None)
    if info is not None:
        _print_engine(info)


def _export_bundle(
    source: Path,
    words: tuple[Precision, Precision | None, Ranges | None, Target, ConvGradient, bool],
    engine: EngineOptions | None,
) -> EngineInfo | None:
    from sad_runtime.bundle import Bundle

    bundle = Bundle.open(source)
    require("torch", extra="calibrate", need="sad-deploy export of a bundle")
    require("onnx_ir", extra="calibrate", need="sad-deploy export of a bundle")
    from sad_export import GraphOptions

    from ..export_bundle import export_bundle

    options = GraphOptions(*words)

    with interruptible(f"{source} is unchanged"):
        exported = export_bundle(
            bundle,
            options=options,
            engine=engine.request() if engine else None,
            status=print_status,
        )
    for graph in exported.graphs:
        name = f"{source}/{graph.entry.file}"
        _print_figures(f"{name} against PyTorch", graph.verification.as_dict())
        _print_written(name, graph.bytes, graph.shortfalls)
    for engine_file in exported.removed:
        again = "--trt" if options.target != "cpu" else "an export with --trt and without --target cpu"
        print_warning(f"removed {engine_file}, of the earlier graph; {again} builds a new one")
    return exported.engine


def _print_written(name: str, size: int, shortfalls: tuple[str, ...]) -> None:
    print_status(f"{name}: {size / 1e6:.2f} MB, {'kept as it is' if shortfalls else 'verified'}")
    if shortfalls:
        print_warning(f"{name} is below its tolerance: {'; '.join(shortfalls)}")


def _print_figures(title: str, figures: dict[str, float]) -> None:
    """A two-column table on stdout."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.6g}")
    stdout.print(table)


def refuse_same_file(source: Path, out: Path) -> None:
    """Refuse to write over the graph that is read.

    Raises:
        UserError: ``out`` is ``source``.
    """
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the graph that is read", hint="name another file")


def _print_engine(info: EngineInfo) -> None:
    smallest, best, largest = info.batch
    made = "taken from the cache, " if info.from_cache else ""
    print_status(
        f"TensorRT engine: {info.bytes / 1e6:.2f} MB, {info.flavor} {info.version}, {info.precision}, "
        f"batch {smallest} to {largest} (best {best}), {made}built in {info.seconds:.1f} s; "
        f"runs on {', '.join(info.targets)}"
    )


def _parse_batch(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise UserError(f"--batch is MIN:BEST:MAX, got {text!r}", hint="for example --batch 1:8:64")
    smallest, best, largest = map(int, parts)
    if not 1 <= smallest <= best <= largest:
        raise UserError(
            f"--batch must ascend from at least 1, got {text!r}", hint="for example --batch 1:8:64"
        )
    return smallest, best, largest


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} takes comma-separated numbers, got {text!r}") from None
