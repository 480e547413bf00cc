"""``NAME(key=value, …)`` → name and keyword arguments; values are literals, and nothing is run.

Names with a colon, or of a ``.pt2`` file, are networks from elsewhere:

1. ``timm:NAME``: :mod:`.from_timm`;
2. ``hf:FOLDER``: :mod:`.from_hugging_face`;
3. ``FILE.pt2``: :mod:`.exported_program`;
4. ``package.module:factory``: :mod:`.factories`.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
from collections.abc import Mapping

from sad_runtime.errors import UserError


class Origin(enum.Enum):
    """Where a network comes from."""

    NAMED = "here, or torchvision"
    FACTORY = "package.module:factory"
    TIMM = "timm"
    HUGGING_FACE = "hf"
    EXPORTED = ".pt2"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A network's name, taken apart.

    Attributes:
        text: As it was given.
        origin: Where it comes from.
        name: Without ``timm:`` or ``hf:`` and without arguments.
        arguments: By name.
    """

    text: str
    origin: Origin
    name: str
    arguments: Mapping[str, object]

    def refuse_arguments(self) -> None:
        """For what takes none.

        Raises:
            UserError: There are some.
        """
        if self.arguments:
            raise UserError(
                f"{self.name} takes no arguments, got {', '.join(self.arguments)}",
                hint="timm:NAME, hf:FOLDER and package.module:factory take them",
            )


def is_foreign(text: str) -> bool:
    """Whether a name is a network from elsewhere, of which nothing is known here."""
    return origin_of(text) is not Origin.NAMED


def origin_of(text: str) -> Origin:
    """By the name alone."""
    name = text.partition("(")[0]
    if name.startswith("timm:"):
        return Origin.TIMM
    if text.startswith("hf:"):
        return Origin.HUGGING_FACE
    if text.endswith(".pt2"):
        return Origin.EXPORTED
    return Origin.FACTORY if ":" in name else Origin.NAMED


def reference(text: str) -> Reference:
    """Take a name apart.

    Raises:
        UserError: What is in parentheses is no list of keyword arguments with literal values.
    """
    origin = origin_of(text)
    if origin is Origin.EXPORTED:
        return Reference(text, origin, text, {})
    # A folder's name may hold parentheses itself.
    name, parenthesis, inside = (text.rpartition if origin is Origin.HUGGING_FACE else text.partition)("(")
    if not parenthesis or not text.endswith(")"):
        name, arguments = text, {}
    else:
        arguments = _arguments(text, inside.removesuffix(")"))
    if origin in (Origin.TIMM, Origin.HUGGING_FACE):
        name = name.partition(":")[2]
    return Reference(text, origin, name, arguments)


def _arguments(text: str, inside: str) -> dict[str, object]:
    try:
        call = ast.parse(f"_({inside})", mode="eval").body
        names = [each.arg for each in call.keywords] if isinstance(call, ast.Call) else []
        once = len(set(names)) == len(names) and None not in names
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args or not once:
            raise ValueError("only key=value, each once")
        return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise UserError(
            f"--model {text}: ({inside}) is no list of keyword arguments with literal values",
            hint='for example \'mine.nets:small(width=64, names=["a", "b"])\'; the shell needs the quotes',
        ) from None
