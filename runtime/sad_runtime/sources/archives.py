"""Images inside zip and tar archives, read in place; nothing is ever extracted.

A zip file has a directory: its images come in name order and are read when they are asked for, by any
thread. A tar file is a tape: its images come as they lie, and the iterating thread reads each one's bytes as
it passes it, so that a compressed archive is gone through once. What those bytes cost is bounded by how many
items the caller holds.

An archive is a stranger's: every size is checked before it is believed, and whatever a parser raises means
that the archive is damaged.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import stat
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, cast

from ..errors import ErrorCode, ImageError
from ..images import MAX_FILE_BYTES
from .items import FailedItem, MemberItem, Stamp, too_large, unreadable
from .left_out import LeftOut
from .names import has_image_ending, name_digest

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Names by which an archive is known, in lower case; what it is, its first bytes say."""

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


def is_archive_name(name: str) -> bool:
    """Whether a name ends as an archive's does."""
    return name.lower().endswith(ENDINGS)


class Archive:
    """One archive, open until :meth:`close` or until nobody refers to it.

    Args:
        name: The file; its members' names begin with it.
        zip_encoding: Of names in a zip that are not marked as UTF-8; code page 437 by the format's standard.

    Raises:
        ImageError: It cannot be opened, its first bytes are of no archive, or its names are in another
            encoding.
    """

    def __init__(self, name: str, *, zip_encoding: str | None = None) -> None:
        self.name = name
        try:
            if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116 - the name as the user wrote it
                raise ImageError(ErrorCode.UNREADABLE, "not a regular file")
            self._file = open(name, "rb")  # noqa: PTH123, SIM115 - closed by close()
        except OSError as error:
            raise unreadable(error) from None
        self._close = weakref.finalize(self, self._file.close)
        try:
            self._changed = os.fstat(self._file.fileno()).st_mtime_ns
            head = self._file.read(6)
            self._file.seek(0)
            is_zip = head.startswith(_ZIP)
            self._zip = zipfile.ZipFile(self._file, metadata_encoding=zip_encoding) if is_zip else None
        except UnicodeDecodeError:
            self.close()
            raise ImageError(ErrorCode.CORRUPT, f"its names are not in {zip_encoding}") from None
        except Exception as error:
            self.close()
            raise _damaged(error) from None
        self._lock = threading.Lock()
        self._compression = _compression(head)

    def close(self) -> None:
        """Close the file; members that were not read yet cannot be any more."""
        self._close()

    def members(
        self, left_out: LeftOut, *, beside: tuple[str, ...] = ()
    ) -> Iterator[MemberItem | TarMember | FailedItem]:
        """Regular files with an image's ending that are not hidden; links and devices of such a name fail.

        If the archive is damaged, its last item is one that says so, with the archive's name. Names are made
        safe: they stay under the archive's own, and a name that occurs again gets a number. May be used once.

        Args:
            left_out: Told of members without an image's ending, as of files in a folder: not of directories
                nor of what is hidden. A link counts as a file; where it leads is not looked at.
            beside: Endings, in lower case, of files that say something of an image, such as ``.cls``; they
                are given too, under the names that they have.
        """
        names = _Names(self.name, left_out, beside)
        try:
            yield from self._of_zip(names) if self._zip is not None else self._of_tar(names)
        except Exception as error:
            failure = _damaged(error)
            yield FailedItem(self.name, failure.code, failure.message)

    def _of_zip(self, names: _Names) -> Iterator[MemberItem]:
        zipped = cast(zipfile.ZipFile, self._zip)
        for info in sorted(zipped.infolist(), key=lambda info: info.filename):
            name = None if info.is_dir() else names.of(info.filename)
            if name is not None:
                contents = functools.partial(self._read_zip, info)
                yield MemberItem(name, contents, Stamp(info.file_size, self._changed))

    def _read_zip(self, info: zipfile.ZipInfo) -> bytes:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _not_regular()
        if info.flag_bits & 0x1:
            raise ImageError(ErrorCode.UNREADABLE, "encrypted in its archive")
        if info.file_size > MAX_FILE_BYTES:
            raise too_large()
        try:
            return self._read_open_zip(info)
        except ImageError:
            raise
        except NotImplementedError as error:
            raise ImageError(ErrorCode.UNREADABLE, f"cannot be unpacked: {error}") from None
        except Exception as error:
            raise _damaged(error, "its data in the archive") from None

    def _read_open_zip(self, info: zipfile.ZipInfo) -> bytes:
        zipped = cast(zipfile.ZipFile, self._zip)
        # Members may be read side by side, but zipfile counts what is open without a lock.
        with self._lock:
            member = zipped.open(info)
        try:
            # zipfile gives no more than the size said, and compares the checksum when it has.
            data = member.read(info.file_size + 1)
        finally:
            with self._lock:
                member.close()
        if len(data) < info.file_size:
            raise ImageError(ErrorCode.TRUNCATED, "its data in the archive ends early")
        return data

    def _of_tar(self, names: _Names) -> Iterator[TarMember]:
        tape = _Tape(self._compression(self._file))
        # Not a mode that tries compressions: those go back to the beginning.
        tar: Any  # the stubs leave out what has to be cleared
        with tarfile.open(fileobj=cast(IO[bytes], tape), mode="r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # it would keep them all
                name = None if info.isdir() else names.of(info.name)
                if name is not None:
                    yield TarMember(name, tar, info, self._changed)
            tape.check_end()


class TarMember:
    """A member of a tar archive while the tape is at it.

    Args:
        name: As in :class:`~.items.Item`.
        tar: The archive.
        info: The member.
        changed: When the archive was changed, nanoseconds.
    """

    def __init__(self, name: str, tar: tarfile.TarFile, info: tarfile.TarInfo, changed: int) -> None:
        self.name = name
        self._tar = tar
        self._info = info
        self._changed = changed

    def held(self) -> MemberItem:
        """The item with its bytes, or with what is wrong with them; to be called before the next member.

        Raises:
            Exception: The archive itself is damaged here.
        """
        stamp = Stamp(self._info.size, self._changed)
        failure = None
        if not self._info.isreg():
            failure = _not_regular()
        elif self._info.size > MAX_FILE_BYTES:
            failure = too_large()
        if failure is not None:
            return MemberItem(self.name, functools.partial(_fail, failure.code, failure.message), stamp)
        try:
            file = cast(IO[bytes], self._tar.extractfile(self._info))
            with file:
                data = file.read()
        except Exception as error:
            failure = _damaged(error, "its data in the archive")
            return MemberItem(self.name, functools.partial(_fail, failure.code, failure.message), None)
        return MemberItem(self.name, functools.partial(bytes, data), stamp)


class _Names:
    """Safe, unique names for the images among an archive's members, and for the files beside them."""

    def __init__(self, archive: str, left_out: LeftOut, beside: tuple[str, ...] = ()) -> None:
        self._archive = archive
        self._left_out = left_out
        self._beside = beside
        self._seen: set[bytes] = set()

    def of(self, member: str) -> str | None:
        """The item's name; ``None`` for a hidden member, and for one to leave out, which is counted."""
        parts = [part for part in member.replace("\0", "").split("/") if part not in ("", ".", "..")]
        if not parts or any(part.startswith(".") for part in parts):
            return None
        path = "/".join(parts)
        if not has_image_ending(parts[-1]):
            if parts[-1].lower().endswith(self._beside):
                return f"{self._archive}/{path}"
            self._left_out.add(parts[-1])
            return None
        stem, _, ending = path.rpartition(".")
        name, again = path, 1
        while (digest := name_digest(name)) in self._seen:
            again += 1
            name = f"{stem} ({again}).{ending}"
        self._seen.add(digest)
        return f"{self._archive}/{name}"


class _Tape:
    """A file that is only read forwards and in measure, whatever an archive's headers say."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_FILE_BYTES:
            raise tarfile.ReadError("a header holds an impossible size")
        self._last = self._file.read(size)
        return self._last

    def seek(self, position: int) -> int:
        if position < self.tell():
            raise tarfile.ReadError("a header points backwards")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def check_end(self) -> None:
        """tarfile takes a damaged header, and no header at all, for the end; the end is a block of zeros."""
        if len(self._last) < tarfile.BLOCKSIZE:
            raise EOFError
        if any(self._last):
            raise tarfile.ReadError("a header is damaged")


def _compression(head: bytes) -> Callable[[BinaryIO], BinaryIO]:
    if head.startswith(b"\x1f\x8b"):
        return lambda file: cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if head.startswith(b"BZh"):
        return lambda file: cast(BinaryIO, bz2.BZ2File(file))
    if head.startswith(b"\xfd7zXZ\0"):
        return lambda file: cast(BinaryIO, lzma.LZMAFile(file))
    return lambda file: file


def _damaged(error: Exception, what: str = "the archive") -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(error)
    text = str(error).lower()
    if isinstance(error, EOFError) or "unexpected end" in text or "truncated" in text or "not a zip" in text:
        return ImageError(ErrorCode.TRUNCATED, f"{what} ends early")
    return ImageError(ErrorCode.CORRUPT, f"{what} is damaged: {error or type(error).__name__}")


def _not_regular() -> ImageError:
    return ImageError(ErrorCode.UNREADABLE, "a link or device in its archive, which is not followed")


def _fail(code: ErrorCode, message: str) -> bytes:
    raise ImageError(code, message)
