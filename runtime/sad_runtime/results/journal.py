"""The file that rows are appended to, batch by batch, each put on the disk before the next.

One process at a time writes it, by a lock that the system releases however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import UserError
from ..files import flush
from .row import Row


class Journal:
    """Rows as JSON Lines, appended to one file under a lock; a context manager.

    Args:
        path: The file; made if it is not there.

    Attributes:
        path: The file.
        count: Rows written by this process.

    Raises:
        UserError: Another run is writing the file.
        OSError: It cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = _open_locked(path)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and have the system put them on the disk; all of them, or none if that fails.

        Raises:
            UserError: The disk is full or gone.
        """
        data = memoryview(to_lines(rows))
        end = self.size
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; {self.count} rows of this run are written"
            ) from error
        self.count += len(rows)

    def truncate(self, size: int) -> None:
        """Cut the file to its first ``size`` bytes."""
        self._file.truncate(size)

    def replace(self, whole: Path) -> None:
        """Put another file into the journal's place, whole or not at all, and go on at its end.

        Raises:
            OSError: It cannot be put on the disk.
        """
        file = _open_locked(whole)  # locked before it gets the name, so that nobody comes between
        try:
            os.fsync(file.fileno())
            whole.replace(self.path)
        except BaseException:
            file.close()
            raise
        self._file.close()
        self._file = file
        flush(self.path.parent)  # else the name could still lead to the old file after a power failure

    def close(self) -> None:
        """Close the file and release the lock. May be called twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def to_lines(rows: Sequence[Row]) -> bytes:
    """Rows as JSON Lines in UTF-8."""
    return "".join(row.to_json() + "\n" for row in rows).encode()


def _open_locked(path: Path) -> io.FileIO:
    while True:
        file = io.FileIO(path, "ab")
        try:
            _lock(file)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another run renamed it away between opening and locking


def _lock(file: io.FileIO) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another run is writing {os.fsdecode(file.name)}",
            hint="wait until it has ended, or choose another --out",
        ) from None
    except OSError:  # a file system without locks
        return


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
