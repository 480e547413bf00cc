"""One row an image, and the line of JSON it is written as."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ..errors import ErrorCode


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True, slots=True)
class PlainPass:
    """What the network says without the defence.

    Attributes:
        label: Index of the first pass's largest logit.
        class_name: Its name in the manifest.
    """

    label: int
    class_name: str


@dataclasses.dataclass(frozen=True, slots=True)
class SaliencyStatistics:
    """The size of S, in the network's input space, over all channels and pixels.

    Attributes:
        l1_mean: Mean of |S|.
        l2: √ΣS².
        largest: Largest |S|.
    """

    l1_mean: float
    l2: float
    largest: float


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why an image has no prediction.

    Attributes:
        code: Stable reason.
        message: The same for people.
    """

    code: ErrorCode
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
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

    def to_json(self) -> str:
        r"""The row as one line of JSON, without the line's end.

        A path that is not UTF-8 keeps its odd bytes as the escapes ``\udc80`` to ``\udcff``, which Python's
        ``os.fsencode`` turns back.
        """
        # `finished.py` reads path, stamp and the name after them without parsing the rest.
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


_AS_IS = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_ESCAPED = json.JSONEncoder(allow_nan=False)
