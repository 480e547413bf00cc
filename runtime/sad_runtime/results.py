"""One row an image, and the JSON Lines they are written as.

The file is a journal: rows are appended and put on the disk batch by batch under ``NAME.partial``, which gets
its real name at the end. What was finished survives an interruption.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from .classifier import softmax
from .errors import ErrorCode, UserError

STDOUT = "-"
"""As a file name: standard output."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One class of an image's ranking.

    Attributes:
        label: Index of the logit.
        class_name: Its name in the manifest.
        probability: Softmax of the logits.
    """

    label: int
    class_name: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an image has no prediction.

    Attributes:
        code: Stable reason.
        message: The same for people.
    """

    code: ErrorCode
    message: str


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one image: a ranking or a failure.

    Attributes:
        path: The image, as the user named it.
        ranking: The most probable classes, the first one being the prediction; empty for a failure.
        error: The failure; ``None`` for a prediction.
        saliency: The overlay that was written, if one was asked for.
    """

    path: str
    ranking: tuple[Ranked, ...] = ()
    error: Failure | None = None
    saliency: str | None = None

    def to_json(self) -> str:
        r"""The row as one line of JSON, without the line's end.

        A path that is not UTF-8 keeps its odd bytes as the escapes ``\udc80`` to ``\udcff``, which Python's
        ``os.fsencode`` turns back.
        """
        values: dict[str, Any] = {"path": self.path}
        if self.error is not None:
            values["error"] = {"code": self.error.code.value, "message": self.error.message}
        else:
            ranking = [
                {"label": item.label, "class": item.class_name, "probability": item.probability}
                for item in self.ranking
            ]
            values |= ranking[0]
            values["top_k"] = ranking
        if self.saliency is not None:
            values["saliency"] = self.saliency
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            text = json.dumps(values, allow_nan=False)
        return text


def rank(
    logits: npt.NDArray[np.float32], classes: Sequence[str], top_k: int
) -> list[tuple[Ranked, ...] | None]:
    """The most probable classes of each image.

    Args:
        logits: (N, K).
        classes: K names.
        top_k: How many, at most K.

    Returns:
        N rankings, largest logit first, the lower index first among equals; ``None`` where a logit is not
        finite.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    probabilities = np.zeros(logits.shape)
    probabilities[finite] = softmax(logits[finite])
    return [
        tuple(Ranked(int(k), classes[k], float(probabilities[i, k])) for k in order[i]) if finite[i] else None
        for i in range(len(logits))
    ]


class Journal:
    """Writes rows as JSON Lines; a context manager.

    To a file: under ``NAME.partial`` until the body ends without an exception, which replaces an older file
    only then. To standard output, a pipe or a device: directly.

    Args:
        path: A file, or ``-`` for standard output.

    Attributes:
        count: Rows written; exact after the end, however it came.
        writing_to: Where the rows are until the end; ``None`` for standard output.

    Raises:
        UserError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.count = 0
        self._path = Path(path)
        self._file: IO[str] | None = None
        self._final: Path | None = None
        self.writing_to: Path | None = None
        if os.fspath(path) == STDOUT:
            return
        try:
            if self._path.is_dir():
                raise UserError(f"{path} is a folder; --out names a file")
            if _is_special(self._path):  # never rename over a device or a pipe
                self.writing_to = self._path
            else:
                self._final = Path(os.path.realpath(self._path))
                self._final.parent.mkdir(parents=True, exist_ok=True)
                self.writing_to = self._path.with_name(self._path.name + ".partial")
            self._file = self.writing_to.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", hint="choose another --out") from error

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows and have the system put them on the disk.

        Raises:
            UserError: The disk is full or gone.
            BrokenPipeError: The reader of standard output went away.
        """
        text = "".join(row.to_json() + "\n" for row in rows)
        file = self._file or sys.stdout
        try:
            file.write(text)
            file.flush()
            if self._final:
                os.fsync(file.fileno())
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                f"cannot write to {self.writing_to or 'standard output'}: {error.strerror}; "
                f"the first {self.count} rows are written"
            ) from error
        self.count += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError:  # flushing what could not be written before
            if kind is None:
                raise
        if self._final is None or self.writing_to is None:
            return
        if kind is None:
            self.writing_to.replace(self._final)
            return
        # An interruption may have come between two bytes of a row, or before the last rows were counted.
        self.count = _keep_whole_lines(self.writing_to)
        if not self.count:
            self.writing_to.unlink()


def _keep_whole_lines(path: Path) -> int:
    """Cut off what follows the last line's end; returns how many lines are left."""
    lines, end = 0, 0
    with path.open("rb+") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, end = lines + 1, end + len(line)
        file.truncate(end)
    return lines


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
