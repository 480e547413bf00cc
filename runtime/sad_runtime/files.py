"""Files that are written whole or not at all, wherever their name leads.

1. A regular file, or a name that is free: written beside its place and renamed. Missing folders are made.
2. A symbolic link: the same for the file that it leads to; the link stays.
3. A pipe or a character device (``/dev/null``, ``/dev/stdout``): written into, or refused; never replaced.
4. A folder, a socket, a disk: refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError, reason_of

_LONGEST_NAME_BYTES = 200
"""A draft's name is the file's with some letters around it; names end at 255 bytes."""


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where a file goes, looked at before there is something to write.

    Attributes:
        path: As the user gave it.
        place: The regular file to replace, links followed; None for a pipe or device, which is written into.
        option: Which option gave it, for messages.
    """

    path: Path
    place: Path | None
    option: str

    @classmethod
    def of(cls, path: str | os.PathLike[str], *, option: str = "--out", regular: bool = False) -> Destination:
        """Find out what a name leads to.

        Args:
            path: A file's name.
            option: Which option gives it, for the message.
            regular: Refuse pipes and devices.

        Raises:
            UserError: No file can be written there.
        """
        named = Path(path)
        if not os.fspath(path):
            raise UserError(f"{option} is empty", hint=f"give {option} a file's name")
        try:
            mode = named.stat().st_mode
        except FileNotFoundError:
            if str(path).endswith(os.sep):
                raise UserError(f"{path} is a folder's name; {option} names a file") from None
            return cls(named, Path(os.path.realpath(named)), option)
        except OSError as error:
            raise _unwritable(named, error, option) from error
        if stat.S_ISDIR(mode):
            raise UserError(f"{path} is a folder; {option} names a file")
        if stat.S_ISREG(mode):
            place = Path(os.path.realpath(named))
            if not os.access(named, os.W_OK):
                raise UserError(f"cannot write {path}: it is read-only", hint=f"choose another {option}")
            # Not so for a file that is open but has no name any more, as /dev/stdout may be.
            return cls(named, place if place.exists() and place.samefile(named) else None, option)
        if regular or not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            raise UserError(
                f"{path} is {_kind(mode)}, which is not replaced by a file", hint=f"choose another {option}"
            )
        return cls(named, None, option)

    def check(self) -> None:
        """Find out whether it can be written, by writing another file beside it; folders are made.

        Raises:
            UserError: It cannot.
        """
        if self.place is not None:
            with self.draft() as draft:
                draft.touch(exist_ok=False)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """A name beside the file, or in a temporary folder for a device; what is left under it is removed.

        Raises:
            UserError: The disk is full, or a folder cannot be made.
        """
        with contextlib.ExitStack() as stack, self._writing():
            if self.place is None:
                yield Path(stack.enter_context(tempfile.TemporaryDirectory())) / "draft"
                return
            self.place.parent.mkdir(parents=True, exist_ok=True)
            name = self.place.name if len(os.fsencode(self.place.name)) <= _LONGEST_NAME_BYTES else "draft"
            draft = self.place.with_name(f".{name}.{secrets.token_hex(4)}")
            stack.callback(draft.unlink, missing_ok=True)
            yield draft

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """The like for several drafts: a folder, removed with what is left in it.

        Raises:
            UserError: The disk is full, or a folder cannot be made.
        """
        with self._writing():
            parent = None if self.place is None else self.place.parent
            if parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=".sad-deploy.") as folder:
                yield Path(folder)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename is not None and self.place is not None:
                touched = Path(os.path.realpath(os.fsdecode(error.filename)))
                if not (touched.is_relative_to(self.place.parent) or touched in self.place.parents):
                    raise  # about something else that the body did
            raise _unwritable(self.path, error, self.option) from error

    def put(self, draft: Path) -> None:
        """Give a finished draft its name, with the permissions of the file it replaces.

        Raises:
            OSError: It cannot be written; a regular file is as it was.
        """
        if self.place is None:
            with draft.open("rb") as whole, self.path.open("wb", buffering=0) as special:
                shutil.copyfileobj(whole, special)
            return
        with contextlib.suppress(FileNotFoundError):
            draft.chmod(stat.S_IMODE(self.place.stat().st_mode))
        draft.replace(self.place)


@contextlib.contextmanager
def written_whole(
    path: str | os.PathLike[str], *, option: str = "--out", durable: bool = False, regular: bool = True
) -> Iterator[Path]:
    """Write a file: the body fills a draft, which takes the file's name when the body ends well.

    Args:
        path: The file; an older one is replaced.
        option: Which option names it, for the message.
        durable: Have the system put it on the disk before it gets its name.
        regular: Refuse pipes and devices instead of writing into them.

    Yields:
        The draft, which does not exist yet.

    Raises:
        UserError: It cannot be written, or the name is no file's. What was there is as it was.
    """
    destination = Destination.of(path, option=option, regular=regular)
    with destination.draft() as draft:
        yield draft
        if durable:
            flush(draft)
        destination.put(draft)
        if durable and destination.place is not None:
            flush(destination.place.parent)


def flush(path: Path) -> None:
    """Have the system put a file or folder on the disk.

    Raises:
        OSError: It cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems have no fsync of a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _kind(mode: int) -> str:
    if stat.S_ISBLK(mode):
        return "a disk"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"


def _unwritable(path: Path, error: OSError, option: str) -> UserError:
    return UserError(f"cannot write {path}: {reason_of(error)}", hint=f"choose another {option}")


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/sad-deploy``, by default ``~/.cache/sad-deploy``; need not exist."""
    home = os.environ.get("XDG_CACHE_HOME")
    cache = Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache"
    return cache / "sad-deploy"
