"""The options of ``sad-deploy infer``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sad_runtime.choices import BackendChoice
from sad_runtime.errors import UserError
from sad_runtime.result_format import ResultFormat

from .options import RESULT

if TYPE_CHECKING:
    from sad_runtime.backends.server import Server
    from sad_runtime.run import RunOptions

_PICTURES = "Pictures"
_EARLIER = "Earlier runs"
_RUNNING = "Running"

SourceArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="Folders (read recursively), files, patterns, zip or tar archives, @LIST of paths, - for a "
        "list on standard input. A first one that ends in .onnx is the graph to run.",
    ),
]
BundleFolder = Annotated[
    Path, typer.Option(metavar="DIR|GRAPH", help="The bundle to run, or a bare graph (.onnx).")
]
Out = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="What to write; - for standard output.",
        show_default="predictions.jsonl",
        rich_help_panel=RESULT,
    ),
]
SummaryAsJson = Annotated[
    bool,
    typer.Option("--json", help="Print the run's counts as JSON, for programs.", rich_help_panel=RESULT),
]


@dataclasses.dataclass(frozen=True)
class RunChoices:
    """How a run goes; see :class:`sad_runtime.run.RunOptions`."""

    table: Annotated[
        ResultFormat | None,
        typer.Option(
            "--format",
            help="Its format.",
            show_default="by its extension, else jsonl",
            rich_help_panel=RESULT,
        ),
    ] = None
    top_k: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Classes listed for every image.", rich_help_panel=RESULT),
    ] = 5
    logits: Annotated[
        bool, typer.Option("--logits", help="Also write all logits.", rich_help_panel=RESULT)
    ] = False
    saliency_stats: Annotated[
        bool,
        typer.Option(
            "--saliency-stats",
            help="Also write the saliency's mean |S|, L2 norm and largest |S|.",
            rich_help_panel=RESULT,
        ),
    ] = False
    saliency: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw saliency overlays (PNG) here.", rich_help_panel=_PICTURES),
    ] = None
    saliency_intensity: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="X", help="Colour of the overlays, 0 to 1.", rich_help_panel=_PICTURES
        ),
    ] = 0.75
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write an HTML page to look through results.", rich_help_panel=_PICTURES
        ),
    ] = None
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="folders|FILE.csv",
            help="What the images show, to say how right the answers are: the class whose name a folder has, "
            "or a list of path,label lines.",
            show_default=False,
            rich_help_panel=RESULT,
        ),
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Complete --out: skip images that have a row and were not changed since.",
            rich_help_panel=_EARLIER,
        ),
    ] = False
    retry_errors: Annotated[
        bool,
        typer.Option(
            "--retry-errors", help="With --resume: try failed images again.", rich_help_panel=_EARLIER
        ),
    ] = False
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier run's results.", rich_help_panel=_EARLIER),
    ] = False
    backend: Annotated[
        BackendChoice,
        typer.Option(
            help="Where to run; auto takes the fastest that runs here and says which.",
            rich_help_panel=_RUNNING,
        ),
    ] = BackendChoice.AUTO
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which of the graphs: fp32, fp16, bf16, int8, fp32-fp16, …",
            rich_help_panel=_RUNNING,
        ),
    ] = "fp32"
    tf32: Annotated[
        bool,
        typer.Option(
            "--tf32",
            help="Let a GPU round products of float32 to TF32: faster, less exact. An engine must have been "
            "built so.",
            rich_help_panel=_RUNNING,
        ),
    ] = False
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What --backend openvino runs on: CPU, GPU, NPU.",
            rich_help_panel=_RUNNING,
        ),
    ] = "CPU"
    unverified: Annotated[
        bool,
        typer.Option(
            "--unverified",
            help="Run also what does not compute here what the bundle's references say.",
            rich_help_panel=_RUNNING,
        ),
    ] = False
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Images the backend gets at once. What is more than an engine takes is split, and copied "
            "while it computes.",
            rich_help_panel=_RUNNING,
        ),
    ] = 32
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Decoding threads.",
            show_default="the cores available",
            rich_help_panel=_RUNNING,
        ),
    ] = None
    fast_decode: Annotated[
        bool,
        typer.Option(
            "--fast-decode",
            help="Decode large JPEGs at lower resolution: faster, pixels differ a little.",
            rich_help_panel=_RUNNING,
        ),
    ] = False
    zip_encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoding of names in zip archives that are not marked as UTF-8: cp932, cp866, gbk.",
            show_default="cp437",
            rich_help_panel=_RUNNING,
        ),
    ] = None
    server: Annotated[
        str | None,
        typer.Option(
            metavar="grpc://HOST:PORT|http://HOST:PORT",
            help="Run the model on this server of the Open Inference Protocol, Triton for example.",
            show_default=False,
            rich_help_panel=_RUNNING,
        ),
    ] = None
    server_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="With --server: the model's name there.",
            show_default="the bundle's folder",
            rich_help_panel=_RUNNING,
        ),
    ] = None
    server_timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --server: longest time for an answer.",
            show_default="30",
            rich_help_panel=_RUNNING,
        ),
    ] = None
    server_patience: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --server: how long it is asked again while it is not available.",
            show_default="60",
            rich_help_panel=_RUNNING,
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Take the I-th of N equal parts.", rich_help_panel=_RUNNING),
    ] = None

    def options(self) -> RunOptions:
        """For the runtime.

        Raises:
            UserError: They contradict each other.
        """
        from sad_runtime.run import RunOptions
        from sad_runtime.sources import Shard

        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        prefix = "server_"
        of_server = {name: given.pop(name) for name in list(given) if name.startswith(prefix)}
        given["server"] = self._at(
            {name.removeprefix(prefix): value for name, value in of_server.items() if value is not None}
        )
        return RunOptions(**given | {"shard": Shard.parse(self.shard) if self.shard else None})

    def _at(self, options: dict[str, Any]) -> Server | None:
        """Where the model runs.

        Raises:
            UserError: Options of a server, and no server.
        """
        if self.server is None:
            if options:
                raise UserError(f"{', '.join(f'--server-{name}' for name in options)}: only with --server")
            return None
        from sad_runtime.backends.server import Server

        return Server(self.server, **options)
