"""The commands, loaded one at a time, and how their ``--help`` looks.

``sad-deploy --help`` imports none of them, and no command's help imports rich.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
import typer.core

from sad_runtime.errors import UserError

from .console import flush_streams, print_warning, readable, silence
from .help import Entry, command_help, group_help

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


@dataclasses.dataclass(frozen=True)
class CommandInfo:
    """A command, as much as can be said without importing it.

    Attributes:
        summary: The first line of its help.
        panel: Under which title it is listed.
        examples: Command lines that work as they stand, but for the names of files.
        renamed: Options of earlier versions that still work, with their names of today.
    """

    summary: str
    panel: str
    examples: tuple[str, str]
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


_MAKE, _RUN, _LOOK = "Make", "Run", "Look"
_DGRAD = {"--dgrad": "--conv-gradient"}

COMMANDS = {
    "calibrate": CommandInfo(
        "Calibrate a classifier's BatchNorm statistics for SAD and write a bundle.",
        _MAKE,
        (
            "sad-deploy calibrate",
            "sad-deploy calibrate --model resnet50 --weights weights.pt --data photos/",
        ),
    ),
    "tradeoff": CommandInfo(
        "Draw the course of eta: clean accuracy, and what a fast attack that knows the defence leaves.",
        _MAKE,
        (
            "sad-deploy tradeoff --test-epsilon 0.05 --plot tradeoff.png",
            "sad-deploy tradeoff --from photo-model --data photos/train --val-data val/",
        ),
    ),
    "export": CommandInfo(
        "Write a bundle's two-pass ONNX graph, verified on real images, and a TensorRT engine with --trt.",
        _MAKE,
        (
            "sad-deploy export --trt --batch 1:8:64",
            "sad-deploy export sad-model --precision int8 --target cpu",
        ),
        _DGRAD,
    ),
    "defend": CommandInfo(
        "Defend a bare ONNX classifier: its two-pass graph, verified, and a TensorRT engine with --trt.",
        _MAKE,
        (
            "sad-deploy defend forward.onnx --eta 0.05 --images photos/",
            "sad-deploy defend forward.onnx --eta 0.05 --precision fp16 --trt",
        ),
        _DGRAD,
    ),
    "gradient": CommandInfo(
        "Add the gradient of the largest logit to an ONNX classifier: outputs logits and gradient.",
        _MAKE,
        (
            "sad-deploy gradient forward.onnx",
            "sad-deploy gradient forward.onnx --method gradcam --out heatmap.onnx",
        ),
        _DGRAD,
    ),
    "infer": CommandInfo(
        "Classify images with the defence, one row each. A bad image is an error row and exit code 3.",
        _RUN,
        (
            "sad-deploy infer photos/ --report report.html",
            "sad-deploy infer photos/ more.zip --bundle photo-model --out predictions.csv",
        ),
    ),
    "benchmark": CommandInfo(
        "Measure decoding, the model with and without the defence, and all of it together, on this machine.",
        _RUN,
        ("sad-deploy benchmark", "sad-deploy benchmark photos/ --bundle photo-model --plot speed.png"),
    ),
    "evaluate": CommandInfo(
        "Attack the file that is shipped: worst case over all attacks, beside the undefended network.",
        _RUN,
        (
            "sad-deploy evaluate --epsilon 8/255",
            "sad-deploy evaluate photo-model --data photos/val --epsilon 4/255 --budget 10m",
        ),
    ),
    "verify": CommandInfo(
        "Run every graph and engine that loads here and compare it with what PyTorch said at export.",
        _LOOK,
        (
            "sad-deploy verify",
            "sad-deploy verify model.sad.onnx --against model.onnx --backend openvino",
        ),
    ),
    "inspect": CommandInfo(
        "Show what a bundle is and how good; check every file. Exit code 2 if one was changed.",
        _LOOK,
        ("sad-deploy inspect", "sad-deploy inspect photo-model --json"),
    ),
    "doctor": CommandInfo(
        "Show versions, extras, the providers that really load, the GPU, and TensorRT.",
        _LOOK,
        ("sad-deploy doctor", "sad-deploy doctor --require rtx"),
    ),
}


def load(name: str) -> Any:
    """The command of this name, for click."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    function = getattr(importlib.import_module(f".{name}", __package__), name)
    app.command(name, cls=Command, context_settings=HELP_OPTIONS)(function)
    command = typer.main.get_command(app)
    command.name = name
    return command


class Command(typer.core.TyperCommand):
    """One of :data:`COMMANDS`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read options, those of earlier versions by their names of today."""
        for old, new in COMMANDS[self.name or ""].renamed.items():
            for i, word in enumerate(args):
                if word.partition("=")[0] == old:
                    args[i] = new + word.removeprefix(old)
                    if not ctx.resilient_parsing:
                        print_warning(f"{old} is now {new}")
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text."""
        formatter.write(readable(command_help(self, ctx, COMMANDS[self.name or ""].examples)))


class Commands(typer.core.TyperGroup):
    """All of :data:`COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them, imported now."""
        return load(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by its name, and ``defend`` by its name of earlier versions.

        Raises:
            UserError: There is no such command.
        """
        name, *rest = args
        if name == "export" and not ctx.resilient_parsing and any(word.endswith(".onnx") for word in rest):
            print_warning("for a bare graph, export is now: sad-deploy defend FORWARD.onnx")
            args = ["defend", *rest]
        elif name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else "sad-deploy --help lists them"
            raise UserError(f"there is no command {name}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help text."""
        panels: dict[str, list[Entry]] = {}
        for name, info in COMMANDS.items():
            panels.setdefault(info.panel, []).append(Entry(name, info.summary))
        formatter.write(readable(group_help(self, ctx, panels)))

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the options before the command; ``--help`` is written here."""
        with _reader_may_leave():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _reader_may_leave():
            return super().invoke(ctx)


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Results that nobody reads any more are no failure."""
    try:
        yield
    except BrokenPipeError:
        flush_streams()
        for stream in (sys.stdout, sys.stderr):
            silence(stream)
        raise typer.Exit from None
