"""What typer says of a wrong command line, in the words of all other errors."""

from __future__ import annotations

import re
from typing import Any


def explained(error: Any) -> tuple[str, str]:
    """Message and hint of one of typer's usage errors."""
    ctx = error.ctx
    help_command = f"{ctx.command_path if ctx else 'sad-deploy'} --help"
    kind = type(error).__name__
    if kind == "NoSuchOption" and ctx is not None:
        name = error.option_name
        return f"{ctx.command_path} has no option {name}", _other_option(name, ctx) or f"see {help_command}"
    if kind == "MissingParameter" and error.param is not None:
        what = error.param.metavar or error.param.name.upper()
        if error.param.param_type_name == "option":
            what = error.param.opts[0]
        return f"{ctx.command_path} needs {what}", _example(ctx) or f"see {help_command}"
    if kind == "BadParameter" and error.param is not None:
        names = [name for name in error.param.opts if name.startswith("-")]
        return f"{names[0] if names else error.param.name}: {_plain(error.message)}", f"see {help_command}"
    return _plain(error.format_message()), f"see {help_command}"


def _other_option(name: str, ctx: Any) -> str | None:
    """Where an option that a command does not have may be found."""
    from difflib import get_close_matches

    from .commands import COMMANDS, load

    own = _options(ctx.command, ctx)
    arguments = [each.name for each in ctx.command.params if each.param_type_name == "argument"]
    if name.lstrip("-") in arguments:
        return f"it is no option but an argument: {_example(ctx)}"
    if near := get_close_matches(name, own, n=1, cutoff=0.7):
        return f"did you mean {near[0]}?"
    others = [each for each in COMMANDS if each != ctx.info_name and name in _options(load(each), ctx)]
    return f"it is an option of {' and '.join(others)}" if others else None


def _options(command: Any, ctx: Any) -> list[str]:
    return [name for param in command.get_params(ctx) for name in param.opts if name.startswith("--")]


def _example(ctx: Any) -> str:
    from .commands import COMMANDS

    info = COMMANDS.get(ctx.info_name)
    return f"for example {info.examples[0]}" if info else ""


def _plain(message: str) -> str:
    """Without the full stop and ranges of typer, and of pydantic behind it."""
    message = re.sub(r"is not in the range x>=(\S+)\.?$", r"is less than \1", message.strip())
    message = re.sub(r"is not in the range (\S+)<=x<=(\S+?)\.?$", r"is not from \1 to \2", message)
    message = message.rstrip(".").removeprefix("value error, ").removeprefix("Value error, ")
    message = re.sub(r"^[Ii]nput should be greater than or equal to", "it must be at least", message)
    message = re.sub(r"^[Ii]nput should be less than or equal to", "it must be at most", message)
    return message[:1].lower() + message[1:]
