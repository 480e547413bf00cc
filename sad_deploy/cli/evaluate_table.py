"""How an evaluation looks in the terminal: the worst case first, with everything that it depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .score_lines import interval

if TYPE_CHECKING:
    from sad_deploy.evaluation.data import Labelled
    from sad_deploy.evaluation.evaluate import Evaluation, Result
    from sad_runtime.labelled import Share

_WIDE, _NAME = 48, 20


def lines(evaluation: Evaluation, data: Labelled, model: str) -> Iterator[str]:
    """The whole table."""
    from sad_deploy.evaluation.record import UPPER_BOUND

    for i, result in enumerate(evaluation.results):
        if i:
            yield ""
        yield from _result(result, data, model, evaluation.seed)
    left_out = "; ".join(evaluation.left_out)
    yield f"  left out: {left_out}. {UPPER_BOUND}" if left_out else f"  {UPPER_BOUND}"


def _result(result: Result, data: Labelled, model: str, seed: int) -> Iterator[str]:
    outcome, other, paired = result.defended, result.undefended, result.paired
    count = len(data.images)
    which = f"{count} {data.split} images of {data.source} · seed {seed}"
    yield f"robustness of {model} · {outcome.threat} · {which}"
    yield ""
    yield (
        _figure("worst case per image, all attacks below", outcome.worst_case, "95 %: ")
        + "  ← quote this line whole"
    )
    if other is not None and paired is not None:
        verdict = f"p = {paired.p:.2g}" if paired.is_significant else "not significant"
        gained = f"SAD: {paired.points:+.1f} points, {verdict}".replace("-", "−")
        yield _figure("undefended network, same attacks on itself", other.worst_case) + f"  {gained}"
    clean = f"  {'clean':<44}{outcome.clean_accuracy.percent:5.1f} %"
    yield clean + ("" if other is None else f"  undefended {other.clean_accuracy.percent:.1f} %")
    yield ""
    yield f"  {'attacker knows':<16}{'way':<{_WIDE}}{'attack':<{_NAME}}{'alone':>7}{'worst so far':>14}"
    for row in outcome.rows:
        alone = "–" if row.alone is None else f"{row.alone.percent:.1f}"
        yield (
            f"  {row.stage.knows:<16}{row.stage.way:<{_WIDE}}{row.stage.name:<{_NAME}}{alone:>7}"
            f"{row.worst.percent:>14.1f}"
        )
    yield ""
    yield from _files(result)
    for check in result.checks:
        yield f"  {'✓' if check.passed else '✗'} {check.words}"


def _files(result: Result) -> Iterator[str]:
    if not result.files:
        return
    yield f"  {'file':<28}{'attacked itself':>16}{'replayed':>12}{'worst':>9}{'same labels':>13}"
    for each in result.files:
        direct = "–" if each.direct is None else f"{each.direct.percent:.1f}"
        yield (
            f"  {each.file:<28}{direct:>16}{each.replayed.percent:>12.1f}{each.worst.percent:>9.1f}"
            f"{100 * each.agreement:>11.1f} %"
        )
    yield ""


def _figure(words: str, value: Share, prefix: str = "") -> str:
    return f"  {words:<44}{value.percent:5.1f} %  ({prefix}{interval(value)})"
