"""Frozen dataclasses to JSON and back, strictly; what is wrong is collected by dotted name.

Known kinds: ``bool``, ``int``, ``float``, ``str``, enums, dataclasses, ``tuple[X, ...]``, ``tuple[X, Y]``,
``Mapping[str, X]``, unions of these, and ``Any`` for free JSON. An integer is a valid ``float``, a boolean is
never a number, and a number is always finite.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from .errors import UserError

_INVALID = object()
"""Stands for a value that could not be read; its problem has been noted."""


def parse(text: str | bytes) -> Any:
    """Parse JSON, refusing what Python's parser lets through: NaN, Infinity and a name given twice.

    Raises:
        ValueError: Not JSON, with line and column where there is one.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = (
            sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        )
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}")
        return dict(pairs)

    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=without_duplicates, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def from_plain(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """Turn parsed JSON into a value of ``kind``.

    Args:
        kind: A resolved type annotation of the kinds above.
        value: What :func:`parse` returned.
        where: Dotted name of the value, for the problems; empty at the root.
        problems: Gets one line for everything wrong.

    Returns:
        The value; of no use once ``problems`` has grown.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _free(value, where, problems)
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast(type, kind), value, where, problems)
    if origin is types.UnionType or origin is typing.Union:
        for arm in arguments:
            attempt: list[str] = []
            read = from_plain(arm, value, where, attempt)
            if not attempt:
                return read
        return _wrong(kind, value, where, problems)
    if origin is tuple and isinstance(value, list):
        items = [arguments[0]] * len(value) if arguments[1:] == (...,) else list(arguments)
        if len(items) != len(value):
            return _wrong(kind, value, where, problems)
        return tuple(
            from_plain(item, v, f"{where}[{i}]", problems)
            for i, (item, v) in enumerate(zip(items, value, strict=True))
        )
    if origin is Mapping and isinstance(value, dict):
        return {
            _text(name, f"{where}.{name!r}", problems): from_plain(
                arguments[1], v, f"{where}.{name}", problems
            )
            for name, v in value.items()
        }
    return _scalar(kind, value, where, problems)


def to_plain(value: Any, where: str, problems: list[str]) -> Any:
    """Turn a dataclass into what :func:`json.dumps` takes; the converse of :func:`from_plain`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name), _dotted(where, field.name), problems)
            for field in dataclasses.fields(value)
        }
    if isinstance(value, enum.Enum):
        return value.value
    return _free(value, where, problems)


def _object(kind: type, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, dict):
        return _wrong(kind, value, where, problems)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    before = len(problems)
    problems += [f"{_dotted(where, name)}: unknown field" for name in value if name not in fields]
    problems += [f"{_dotted(where, name)}: missing" for name in fields if name not in value]
    read = {
        name: from_plain(hints[name], value[name], _dotted(where, name), problems)
        for name in fields
        if name in value
    }
    if len(problems) > before:
        return _INVALID
    try:
        return kind(**read)
    except UserError as error:  # a dataclass that checks itself
        problems.append(f"{where}: {error.message}" if where else error.message)
        return _INVALID


def _scalar(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if isinstance(value, str) and value in {member.value for member in kind}:
            return kind(value)
    elif kind is bool or kind is int:
        if type(value) is kind:
            return value
    elif kind is float:
        if type(value) in (int, float):
            return _finite(value, where, problems)
    elif kind is str and isinstance(value, str):
        return _text(value, where, problems)
    return _wrong(kind, value, where, problems)


def _free(value: Any, where: str, problems: list[str]) -> Any:
    """Any JSON value, checked all the way down; tuples become lists."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return _finite(value, where, problems)
    if isinstance(value, str):
        return _text(value, where, problems)
    if isinstance(value, (list, tuple)):
        return [to_plain(v, f"{where}[{i}]", problems) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        problems += [
            f"{_dotted(where, str(n))}: a name must be a text" for n in value if not isinstance(n, str)
        ]
        return {str(name): to_plain(v, _dotted(where, str(name)), problems) for name, v in value.items()}
    problems.append(f"{where}: {type(value).__name__} is not a JSON value")
    return _INVALID


def _finite(value: int | float, where: str, problems: list[str]) -> Any:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        return number
    problems.append(f"{where}: must be a finite number")
    return _INVALID


def _text(value: str, where: str, problems: list[str]) -> str:
    # JSON can spell half of a surrogate pair; nothing can print or encode it later.
    if any("\ud800" <= c <= "\udfff" for c in value):
        problems.append(f"{where.encode('ascii', 'backslashreplace').decode()}: is not valid Unicode text")
    return value


def _wrong(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    shown = json.dumps(value)
    problems.append(
        f"{where}: must be {_described(kind)}, got {shown if len(shown) <= 40 else shown[:37] + '...'}"
    )
    return _INVALID


def _described(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join(_described(arm) for arm in arguments)
    if origin is tuple:
        if arguments[1:] == (...,):
            return "a list"
        return "[" + ", ".join(_described(item) for item in arguments) + "]"
    if origin is Mapping or dataclasses.is_dataclass(kind):
        return "an object"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    return {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[kind]


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
