"""What the graph returned for some images → their rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ErrorCode
from ..prediction import Prediction
from .ranking import rank
from .row import Failure, PlainPass, Row, SaliencyStatistics


def rows_of(
    rows: Sequence[Row],
    prediction: Prediction,
    classes: Sequence[str],
    *,
    top_k: int,
    logits: bool = False,
    statistics: bool = False,
) -> list[Row]:
    """Fill rows with their predictions. An output that is not finite makes its row a failure.

    Args:
        rows: N rows without prediction.
        prediction: Of the N images; what it holds beside the logits is looked at too.
        classes: K names.
        top_k: Classes in each ranking, at most K.
        logits: Whether rows hold all logits.
        statistics: Whether rows hold the size of the saliency, which must be there.

    Returns:
        N rows.
    """
    rankings = rank(prediction.logits, classes, top_k)
    bad = {"logits": np.array([ranking is None for ranking in rankings])}
    plain: list[PlainPass] | None = None
    if prediction.plain_logits is not None:
        labels: list[int] = prediction.plain_logits.argmax(axis=1).tolist()
        plain = [PlainPass(label, classes[label]) for label in labels]
        bad["plain logits"] = _not_finite(prediction.plain_logits)
    if prediction.saliency is not None:
        bad["saliency"] = _not_finite(prediction.saliency)
    done = []
    for n, (row, ranking) in enumerate(zip(rows, rankings, strict=True)):
        what = [name for name, rows_of_name in bad.items() if rows_of_name[n]]
        if ranking is None or what:
            failure = Failure(ErrorCode.NON_FINITE, f"the model's {' and '.join(what)} are not finite")
            done.append(row._replace(error=failure))
            continue
        done.append(
            row._replace(
                ranking=ranking,
                plain=plain[n] if plain else None,
                statistics=_size(prediction.saliency[n])
                if statistics and prediction.saliency is not None
                else None,
                logits=_short(prediction.logits[n]) if logits else None,
            )
        )
    return done


def _not_finite(values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(N,): which of (N, …) hold a value that is not finite."""
    return np.asarray(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))


def _size(saliency: npt.NDArray[np.float32]) -> SaliencyStatistics:
    absolute = np.abs(saliency).ravel().astype(np.float64)  # squares of float32 overflow
    return SaliencyStatistics(
        float(absolute.mean()), float(np.sqrt(absolute @ absolute)), float(absolute.max())
    )


def _short(logits: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Nine digits give a float32 back exactly, and take half the room of a float64."""
    return tuple(float(f"{value:.9g}") for value in logits.tolist())
