"""The text of ``--help``: options under their panels' titles, readable at 80 columns, without rich."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_WIDEST = 100
_NARROWEST = 40
_NAMES_WIDTH = 26
_OTHER = "Other"
_GLUE = "\xa0"
"""A space at which no line is broken."""
_BARE = {
    "str": "TEXT",
    "int": "N",
    "float": "X",
    "path": "PATH",
    "file": "FILE",
    "text": "TEXT",
    "integer": "N",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a panel.

    Attributes:
        name: The command, or the option with its value.
        text: What it is, in words.
    """

    name: str
    text: str


def group_help(group: Any, ctx: Any, panels: Mapping[str, Sequence[Entry]]) -> str:
    """Help of ``sad-deploy`` itself.

    Args:
        group: The click group.
        ctx: Its context.
        panels: The commands under their titles.
    """
    width = _width(entry for entries in panels.values() for entry in entries)
    blocks = [_head(group, ctx), *(_panel(title, entries, width) for title, entries in panels.items())]
    return _joined(
        [*blocks, *_options(group, ctx), "sad-deploy COMMAND --help has the options of a command."]
    )


def command_help(command: Any, ctx: Any, examples: Iterable[str]) -> str:
    """Help of one command.

    Args:
        command: The click command.
        ctx: Its context.
        examples: Command lines to show at the end.
    """
    lines = "\n".join(f"  {example}" for example in examples)
    return _joined([_head(command, ctx), *_options(command, ctx), f"{_title('Examples')}\n{lines}"])


def _joined(blocks: Iterable[str]) -> str:
    return "\n\n".join(blocks) + "\n"


def _head(command: Any, ctx: Any) -> str:
    paragraphs = inspect.cleandoc(command.help or "").partition("\n\nRaises:")[0].split("\n\n")
    return "\n\n".join([_usage(command, ctx), *("\n".join(_wrapped(text, 0)) for text in paragraphs)])


def _usage(command: Any, ctx: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    pieces = [f"{_title('Usage:')} {ctx.command_path} [OPTIONS]"]
    for param in arguments:
        name = _entry(param, ctx).name
        pieces.append(name if param.required else f"[{name}]")
    return " ".join([*pieces, *(["COMMAND ..."] if hasattr(command, "commands") else [])])


def _options(command: Any, ctx: Any) -> Iterator[str]:
    """A block for each panel, what belongs to none last."""
    panels: dict[str, list[Entry]] = {}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        is_argument = param.param_type_name == "argument"
        panel = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or _OTHER
        panels.setdefault(panel, []).append(_entry(param, ctx))
    if _OTHER in panels:
        panels[_OTHER if len(panels) > 1 else "Options"] = panels.pop(_OTHER)
    width = _width(entry for entries in panels.values() for entry in entries)
    for title, entries in panels.items():
        yield _panel(title, entries, width)


def _entry(param: Any, ctx: Any) -> Entry:
    text = " ".join((getattr(param, "help", None) or "").split())
    shown = _default(param)
    if param.required and param.param_type_name != "argument":
        text += " [required]"
    elif shown:
        default = f"[default: {shown}]"
        text += " " + (default.replace(" ", _GLUE) if len(default) <= _NAMES_WIDTH else default)
    if param.param_type_name == "argument":
        return Entry(
            (param.metavar or param.name.upper()) + ("..." if param.nargs == -1 else ""), text.strip()
        )
    names = ", ".join(sorted(param.opts, key=len))
    if param.secondary_opts:
        names += f"/{param.secondary_opts[0]}"
    value = "" if param.is_flag else _value(param, ctx)
    return Entry(f"{names} {value}".strip(), text.strip())


def _value(param: Any, ctx: Any) -> str:
    """What an option takes."""
    if param.metavar:
        return str(param.metavar)
    if hasattr(param, "display_type"):
        kind = str(param.display_type(ctx))
    else:  # typer before 0.25 leaves types to click
        choices = getattr(param.type, "choices", None) or ()
        kind = "|".join(str(getattr(each, "value", each)) for each in choices) or param.type.name
    kind = kind.strip("<>").removeprefix("list[").removesuffix("]").removesuffix(" range")
    return _BARE.get(kind, kind)


def _default(param: Any) -> str | None:
    if isinstance(param.show_default, str):
        return param.show_default
    default = param.default
    if not param.show_default or default is None or default is False or callable(default):
        return None
    if isinstance(default, enum.Enum):
        return str(default.value)
    return str(default) if isinstance(default, (str, int, float, Path)) else None


def _width(entries: Iterable[Entry]) -> int:
    """Of the names: as wide as the longest, but for those that have a line of their own."""
    return max((len(entry.name) for entry in entries if len(entry.name) <= _NAMES_WIDTH), default=0)


def _panel(title: str, entries: Sequence[Entry], width: int) -> str:
    """A title, and below it names on the left, words on the right; a long name has a line of its own."""
    lines = [_title(title)]
    for entry in entries:
        words = _wrapped(entry.text, width + 4)
        if len(entry.name) <= width:
            first, *words = words or [""]
            lines.append(
                f"  {_styled(entry.name, '36')}{' ' * (width - len(entry.name))}  {first.strip()}".rstrip()
            )
        else:
            lines.append(f"  {_styled(entry.name, '36')}")
        lines += words
    return "\n".join(lines)


def _wrapped(text: str, indent: int) -> list[str]:
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    space = " " * indent
    lines = textwrap.wrap(
        text.replace("\n", " "),
        width,
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines]


def _title(text: str) -> str:
    return _styled(text, "1")


def _styled(text: str, code: str) -> str:
    plain = "NO_COLOR" in os.environ or not sys.stdout or not sys.stdout.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"
