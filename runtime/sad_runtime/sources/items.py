"""One image to read, wherever it lies: its name, its bytes, and a stamp that shows whether it changed."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

from ..errors import ErrorCode, ImageError
from ..images import MAX_FILE_BYTES


class Stamp(NamedTuple):
    """What tells a file from a later version of it.

    Attributes:
        size: Bytes of the image.
        mtime_ns: When the file, or the archive it is in, was last changed: nanoseconds since 1970.
    """

    size: int
    mtime_ns: int


class Item(Protocol):
    """One image. Items may be read in any order, by several threads at once.

    Attributes:
        name: As the user would write it; a member of an archive is ``photos.zip/inside/a.jpg``.
    """

    @property
    def name(self) -> str: ...

    def read(self) -> bytes:
        """The whole file, at most :data:`~sad_runtime.images.MAX_FILE_BYTES`.

        Raises:
            ImageError: It cannot be had; the code says why.
        """
        ...

    def stamp(self) -> Stamp | None:
        """Size and time of change; ``None`` if there is nothing to read."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class FileItem:
    """A file of its own; see :class:`Item`."""

    name: str

    def read(self) -> bytes:
        """See :meth:`Item.read`."""
        return read_file(self.name)

    def stamp(self) -> Stamp | None:
        """See :meth:`Item.stamp`; ``None`` also for what is no regular file."""
        try:
            status = os.stat(self.name)  # noqa: PTH116 - half the time of Path.stat, a million times
        except (OSError, ValueError):
            return None
        return Stamp(status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


@dataclasses.dataclass(frozen=True, slots=True)
class MemberItem:
    """A file inside an archive; see :class:`Item`.

    Attributes:
        contents: Gives the bytes or raises the :class:`~sad_runtime.errors.ImageError`.
        stamped: What :meth:`stamp` returns.
    """

    name: str
    contents: Callable[[], bytes]
    stamped: Stamp | None

    def read(self) -> bytes:
        """See :meth:`Item.read`."""
        return self.contents()

    def stamp(self) -> Stamp | None:
        """See :meth:`Item.stamp`; the time is the archive's own, because members often carry none."""
        return self.stamped


@dataclasses.dataclass(frozen=True, slots=True)
class FailedItem:
    """Something that should hold images and cannot be looked into: a folder or an archive; see :class:`Item`.

    Attributes:
        code: Why.
        message: The same for people.
    """

    name: str
    code: ErrorCode
    message: str

    def read(self) -> NoReturn:
        """Raise what is wrong; see :meth:`Item.read`."""
        raise ImageError(self.code, self.message)

    def stamp(self) -> None:
        """``None``: it may be mended by the next time."""
        return None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file, read once and never waiting for one that is a pipe.

    Args:
        path: The file.

    Raises:
        ImageError: ``not-found``, ``unreadable`` or ``too-large``.
    """
    try:
        # Not blocking: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(error) from None
    except ValueError:  # a null character in the name
        raise ImageError(ErrorCode.NOT_FOUND, "no such file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(ErrorCode.UNREADABLE, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise too_large()
        with open(descriptor, "rb", closefd=False) as file:
            # No more than the size said, also of a file that is still being written: read() allocates what it
            # is asked for before it reads.
            return file.read(status.st_size)
    except OSError as error:
        raise unreadable(error) from None
    finally:
        os.close(descriptor)


def unreadable(error: OSError) -> ImageError:
    """The image's error for what the system says."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return ImageError(ErrorCode.NOT_FOUND, "no such file")
    return ImageError(ErrorCode.UNREADABLE, f"cannot be read: {error.strerror or error}")


def too_large() -> ImageError:
    """The error of a file beyond the limit."""
    return ImageError(ErrorCode.TOO_LARGE, f"the file has more than {MAX_FILE_BYTES >> 20} MiB")


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root, without ``.`` and ``..``; links are not followed, so that names stay apart."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() follows links
