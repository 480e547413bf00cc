"""Paths from a list or from standard input: one a line, or separated by null characters.

The second form, which ``find -print0`` writes, is for names with a line's end in them. In the first, a
carriage return at the end of a line belongs to the line's end, blank lines are skipped, and nothing else has
a meaning: ``#`` begins a name like any other character.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import IO

from ..errors import UserError

NULL, LINE = b"\0", b"\n"

_CHUNK = 1 << 16
# Linux takes paths of up to 4096 bytes.
_LONGEST = 1 << 16
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def chunks(stream: IO[bytes] | IO[str]) -> Iterator[bytes]:
    """What a stream has, piece by piece as it comes, without waiting for more than is there."""
    stream = getattr(stream, "buffer", stream)
    read = getattr(stream, "read1", stream.read)
    while piece := read(_CHUNK):
        yield piece if isinstance(piece, bytes) else os.fsencode(piece)


def separator_of(path: str) -> bytes:
    """What separates the paths of a list file: a null character if it holds one anywhere.

    Raises:
        OSError: It cannot be read.
        UserError: It is UTF-16, as some Windows programs write.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - the name as the user wrote it
        pieces = chunks(file)
        first = next(pieces, b"")
        if first.startswith(_UTF16):
            raise UserError(f"the list {path} is UTF-16", hint="write it as UTF-8")
        if NULL in first or any(NULL in piece for piece in pieces):
            return NULL
    return LINE


def split(pieces: Iterable[bytes], separator: bytes | None, what: str) -> Iterator[str]:
    r"""Paths out of bytes.

    Args:
        pieces: The bytes, cut anywhere.
        separator: ``None``: a null character if one is there when the first line's end is, or before. As
            ``find`` writes 4096 bytes or all it has at once, and no path is as long, that is always so.
        what: What is read, for the error.

    Raises:
        UserError: A path is longer than any system takes.
    """
    rest = b""
    for piece in pieces:
        rest += piece
        if separator is None and (NULL in rest or LINE in rest):
            separator = NULL if NULL in rest else LINE
        if separator is not None:
            *paths, rest = rest.split(separator)
            yield from _named(paths, separator)
        if len(rest) > _LONGEST:
            raise UserError(
                f"{what} holds a path of more than {_LONGEST} bytes", hint="write one path a line"
            )
    yield from _named([rest], separator)


def _named(paths: list[bytes], separator: bytes | None) -> Iterator[str]:
    for path in paths:
        name = path if separator == NULL else path.removesuffix(b"\r")
        if name:
            yield os.fsdecode(name)
