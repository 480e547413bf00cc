"""A uniform sample of a stream of pictures, in bounded memory, in a file that survives an interruption.

Kept are the images with the smallest hashes of their names. That depends neither on the order in which they
come nor on interruptions, and whether one is kept is known when it comes: a later one may only push it out.

The file is a header and records, appended: hash of the name, length, CRC-32, picture. Pictures pushed out
stay in it; of n images with room for k, about k·(1 + ln(n/k)) are written.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError, reason_of

_MAGIC = b"sad-deploy pictures 1\n"
_RECORD = struct.Struct("<16sII")


class Sample:
    """The kept pictures. Safe to use from several threads.

    Args:
        path: The file; one that was left by an interrupted run is gone on with.
        identity: 16 bytes that say what the pictures depend on beside the images; a file with others is
            started again.
        size: How many pictures are kept at most.
        resume: Whether pictures that are there are used; otherwise the file is started again.

    Raises:
        UserError: The file cannot be written.
    """

    def __init__(self, path: Path, *, identity: bytes, size: int, resume: bool) -> None:
        self.path = path
        self._size = size
        self._lock = threading.Lock()
        self._places: dict[bytes, tuple[int, int]] = {}  # hash of the name → offset and length of the picture
        self._largest: list[int] = []  # heap of the negated hashes: the largest comes first
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened so that an existing file is kept; append mode would write wherever the file ends.
            self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            self._open(_MAGIC + identity, resume)
        except OSError as error:
            raise self._cannot_write(error) from error

    def wants(self, name: str) -> bool:
        """Whether a picture of this image would be kept."""
        with self._lock:
            return self._wants(_digest(name))

    def add(self, name: str, encoded: bytes) -> None:
        """Keep a picture, if it is still wanted. A second one of the same name takes the place of the first.

        Raises:
            UserError: The file cannot be written.
        """
        digest = _digest(name)
        with self._lock:
            if not self._wants(digest):
                return
            try:
                start = self._file.seek(0, os.SEEK_END)
                self._file.write(_RECORD.pack(digest, len(encoded), zlib.crc32(encoded)) + encoded)
                self._file.flush()
            except OSError as error:
                raise self._cannot_write(error) from error
            self._note(digest, start + _RECORD.size, len(encoded))

    def read(self, name: str) -> bytes | None:
        """The kept picture of an image, or ``None``."""
        place = self._places.get(_digest(name))
        return None if place is None else os.pread(self._file.fileno(), place[1], place[0])

    def lacks(self, name: str) -> bool:
        """Whether an image has no picture here although its hash is small enough: it never came by."""
        digest = _digest(name)
        return digest not in self._places and self._wants(digest)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _digest(name) in self._places

    def close(self) -> None:
        """Close the file and leave it. May be called twice."""
        with contextlib.suppress(OSError):  # a write that failed before would be tried, and fail, again
            self._file.close()

    def remove(self) -> None:
        """Close the file and delete it."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _open(self, header: bytes, resume: bool) -> None:
        if not resume or self._file.read(len(header)) != header:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(header)
            self._file.flush()
            return
        end = len(header)
        while True:
            head = self._file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                break
            digest, length, checksum = _RECORD.unpack(head)
            encoded = self._file.read(length)
            if len(encoded) < length or zlib.crc32(encoded) != checksum:
                break
            if self._wants(digest):
                self._note(digest, end + _RECORD.size, length)
            end += _RECORD.size + length
        self._file.truncate(end)  # what an interruption tore

    def _wants(self, digest: bytes) -> bool:
        if digest in self._places or len(self._places) < self._size:
            return True
        return bool(self._largest) and int.from_bytes(digest) < -self._largest[0]

    def _note(self, digest: bytes, offset: int, length: int) -> None:
        if digest not in self._places:
            heapq.heappush(self._largest, -int.from_bytes(digest))
        self._places[digest] = (offset, length)
        if len(self._places) > self._size:
            del self._places[(-heapq.heappop(self._largest)).to_bytes(16)]

    def _cannot_write(self, error: OSError) -> UserError:
        reason = reason_of(error)
        return UserError(f"cannot write the report's pictures to {self.path}: {reason}")


def _digest(name: str) -> bytes:
    # surrogatepass: names that are not UTF-8 hold lone surrogates.
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
