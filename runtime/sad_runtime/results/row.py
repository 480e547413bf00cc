r"""One row per image, and the line of JSON that it is written as and read from.

A line holds, in this order: path, size and mtime_ns, then either error or label, class, probability and
top_k, and what else was asked for. A path that is not UTF-8 keeps its odd bytes as the escapes ``\udc80`` to
``\udcff``, which Python's ``os.fsencode`` turns back.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from ..errors import ErrorCode


# Tuples, because a report reads a million rows: a frozen dataclass takes three times as long to make.
class Ranked(NamedTuple):
    """One class of an image's ranking.

    Attributes:
        label: Index of the logit.
        class_name: Its name in the manifest.
        probability: Softmax of the logits.
    """

    label: int
    class_name: str
    probability: float


class PlainPass(NamedTuple):
    """What the first pass says: the recalibrated network without saliency, not the one that was trained.

    Attributes:
        label: Index of the first pass's largest logit.
        class_name: Its name in the manifest.
    """

    label: int
    class_name: str


class SaliencyStatistics(NamedTuple):
    """The size of S, in the network's input space, over all channels and pixels.

    Attributes:
        l1_mean: Mean of |S|.
        l2: √ΣS².
        largest: Largest |S|.
    """

    l1_mean: float
    l2: float
    largest: float


class Failure(NamedTuple):
    """Why an image has no prediction.

    Attributes:
        code: Stable reason.
        message: The same for people.
    """

    code: ErrorCode
    message: str


class Row(NamedTuple):
    """What became of one image: a ranking or a failure.

    Attributes:
        path: The image, as the user named it.
        ranking: The most probable classes, the first one being the prediction; empty for a failure.
        error: The failure; ``None`` for a prediction.
        size: Bytes of the file when it was read; ``None`` if that cannot be had.
        mtime_ns: When the file was last changed, in nanoseconds since 1970; ``None`` if that cannot be had.
        plain: The first pass's answer, if the graph gives it.
        saliency: The overlay that was written, if one was asked for.
        statistics: The size of the saliency, if asked for.
        frames: Frames or pages of the file, of which the first was classified.
        logits: All K of the second pass, if asked for.
    """

    path: str
    ranking: tuple[Ranked, ...] = ()
    error: Failure | None = None
    size: int | None = None
    mtime_ns: int | None = None
    plain: PlainPass | None = None
    saliency: str | None = None
    statistics: SaliencyStatistics | None = None
    frames: int = 1
    logits: tuple[float, ...] | None = None

    @property
    def label(self) -> int | None:
        """The predicted label; ``None`` for a failure."""
        return self.ranking[0].label if self.ranking else None

    @property
    def class_name(self) -> str | None:
        """The predicted class; ``None`` for a failure."""
        return self.ranking[0].class_name if self.ranking else None

    @property
    def probability(self) -> float | None:
        """The predicted class's probability; ``None`` for a failure."""
        return self.ranking[0].probability if self.ranking else None

    @property
    def changed(self) -> bool:
        """Whether the label is known to be another than the first pass's."""
        return bool(self.ranking) and self.plain is not None and self.plain.label != self.ranking[0].label

    def to_json(self) -> str:
        """The row as one line of JSON, without the line's end."""
        # In the order that `match_head` knows.
        values: dict[str, Any] = {"path": self.path}
        if self.size is not None and self.mtime_ns is not None:
            values["size"] = self.size
            values["mtime_ns"] = self.mtime_ns
        if self.error is not None:
            values["error"] = {"code": self.error.code.value, "message": self.error.message}
        else:
            ranking = [
                {"label": item.label, "class": item.class_name, "probability": item.probability}
                for item in self.ranking
            ]
            values |= ranking[0]
            values["top_k"] = ranking
        if self.plain is not None:
            values["plain_label"] = self.plain.label
            values["plain_class"] = self.plain.class_name
        if self.saliency is not None:
            values["saliency"] = self.saliency
        if self.statistics is not None:
            values["saliency_l1_mean"] = self.statistics.l1_mean
            values["saliency_l2"] = self.statistics.l2
            values["saliency_max"] = self.statistics.largest
        if self.frames != 1:
            values["frames"] = self.frames
        if self.logits is not None:
            values["logits"] = self.logits
        text = _AS_IS.encode(values)
        try:
            text.encode()
        except UnicodeEncodeError:
            text = _ESCAPED.encode(values)
        return text

    @classmethod
    def from_json(cls, line: str | bytes) -> Row:
        """Read what :meth:`to_json` writes; in any order, and whatever else is there is left out.

        Args:
            line: One line, with or without its end.

        Raises:
            ValueError: It is not a row.
        """
        try:
            return _row(json.loads(line if isinstance(line, str) else line.decode()))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a row: {error!r}") from None


_AS_IS = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_ESCAPED = json.JSONEncoder(allow_nan=False)


def _row(values: dict[str, Any]) -> Row:
    path, get = values["path"], values.get
    if not isinstance(path, str):
        raise TypeError(f"path {path!r}")
    error, plain, statistics = get("error"), None, None
    ranking: tuple[Ranked, ...] = ()
    if error is None:
        ranking = tuple(
            [
                Ranked(int(one["label"]), one["class"], float(one["probability"]))
                for one in get("top_k") or [values]
            ]
        )
    if "plain_label" in values:
        plain = PlainPass(int(values["plain_label"]), values["plain_class"])
    if "saliency_l2" in values:
        statistics = SaliencyStatistics(
            values["saliency_l1_mean"], values["saliency_l2"], values["saliency_max"]
        )
    return Row(
        path,
        ranking,
        error and Failure(ErrorCode(error["code"]), str(error["message"])),
        get("size"),
        get("mtime_ns"),
        plain,
        get("saliency"),
        statistics,
        int(get("frames", 1)),
        tuple(values["logits"]) if "logits" in values else None,
    )


def flat_values(line: bytes) -> dict[str, Any]:
    """A line's values by the names of a table's columns; ``top_k`` and ``logits`` stay lists.

    Args:
        line: A row as :meth:`Row.to_json` writes it.
    """
    values: dict[str, Any] = json.loads(line)
    error = values.pop("error", None)
    if error is None:
        values.setdefault("frames", 1)
    else:
        values["error_code"], values["error_message"] = error["code"], error["message"]
    return values


Head = tuple[bytes, tuple[int, ...], bool]
"""What tells whether an image needs classifying again: its path in UTF-8, lone surrogates as they are; size
and mtime_ns, empty if unknown; whether the row is an error."""

_HEAD = re.compile(
    rb'\{"path": "([^"\\]*(?:\\.[^"\\]*)*)"'
    rb'(?:, "size": (\d+), "mtime_ns": (-?\d+))?, "(?:label|(error))": '
)


def match_head(line: bytes) -> Head | None:
    """The head of a line as :meth:`Row.to_json` writes it, read no further than needed.

    A ranking costs ten times as much to parse as the rest.

    Args:
        line: One line with its end.

    Returns:
        The head; ``None`` if the line is written otherwise, torn, or not a row: :func:`parse_head` tells.
    """
    match = _HEAD.match(line)
    if match is None or not line.endswith(b"}\n"):
        return None
    path, size, mtime_ns, failed = match.groups()
    if b"\\" in path:
        path = json.loads(b'"%b"' % path).encode("utf-8", "surrogatepass")
    return path, () if size is None else (int(size), int(mtime_ns)), failed is not None


def parse_head(line: bytes) -> Head | None:
    """The head of a line, parsed as a whole; ``None`` if the line is torn or not a row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
        if not isinstance(row["path"], str) or ("label" in row) == ("error" in row):
            return None
        stamp = (int(row["size"]), int(row["mtime_ns"])) if "size" in row else ()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return row["path"].encode("utf-8", "surrogatepass"), stamp, "error" in row
