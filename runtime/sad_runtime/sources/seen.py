"""A set of file names in 24 to 48 bytes each, however long they are; half as much again while it grows."""

from __future__ import annotations

import hashlib
import os

_SIZE = 16
_EMPTY = bytes(_SIZE)
_FIRST_SLOTS = 64


class SeenNames:
    """Which names were seen, as 128-bit digests in one array: open addressing, at most two thirds full."""

    def __init__(self) -> None:
        self._count = 0
        self._slots = _FIRST_SLOTS
        self._table = bytearray(_SIZE * self._slots)

    def add(self, name: str) -> bool:
        """Remember a name; returns whether it is new."""
        digest = _digest(name)
        at = self._find(digest)
        if self._table[at : at + _SIZE] == digest:
            return False
        self._table[at : at + _SIZE] = digest
        self._count += 1
        if 3 * self._count > 2 * self._slots:
            self._grow()
        return True

    def __contains__(self, name: str) -> bool:
        if not self._count:
            return False
        digest = _digest(name)
        at = self._find(digest)
        return self._table[at : at + _SIZE] == digest

    def _find(self, digest: bytes) -> int:
        """Where in the table the digest is, or would go."""
        slot = int.from_bytes(digest[:8], "little") % self._slots
        while self._table[slot * _SIZE : (slot + 1) * _SIZE] not in (digest, _EMPTY):
            slot = (slot + 1) % self._slots
        return slot * _SIZE

    def _grow(self) -> None:
        old = self._table
        self._slots *= 2
        self._table = bytearray(_SIZE * self._slots)
        for start in range(0, len(old), _SIZE):
            digest = bytes(old[start : start + _SIZE])
            if digest != _EMPTY:
                at = self._find(digest)
                self._table[at : at + _SIZE] = digest


def _digest(name: str) -> bytes:
    return hashlib.blake2b(os.fsencode(name), digest_size=_SIZE).digest()
