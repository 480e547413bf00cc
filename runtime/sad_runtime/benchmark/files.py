"""Files that are written whole or not at all, and found to be writable before there is something to write."""

from __future__ import annotations

import secrets
from pathlib import Path

from ..errors import UserError


def check_writable(path: Path, option: str) -> None:
    """Find out whether a file can be written, by writing another one beside it.

    Args:
        path: The file.
        option: Which option names it, for the message.

    Raises:
        UserError: It cannot.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; {option} names a file")
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", hint=f"choose another {option}") from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place and rename it.

    Args:
        path: The file; an older one is replaced.
        data: Its contents.

    Raises:
        UserError: The disk is full, or the folder gone.
    """
    temporary = _beside(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
