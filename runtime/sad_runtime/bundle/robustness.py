"""What ``sad-deploy evaluate`` found of a bundle, in a sentence with all its conditions."""

from __future__ import annotations

import json
from typing import Any

from ..errors import BundleError
from .read import Bundle

EVALUATION = "evaluation.json"
"""Name of the record inside a bundle."""

NOT_EVALUATED = "not evaluated: sad-deploy evaluate attacks it"


def robustness(bundle: Bundle) -> list[str]:
    """The headlines, one for each ε, that the bundle's evaluation allows to be quoted.

    Returns:
        One sentence that it was not evaluated, if so, or that a judged file was changed since.
    """
    if EVALUATION not in bundle.manifest.files:
        return [NOT_EVALUATED]
    try:
        recorded = json.loads(bundle.file(EVALUATION).read_bytes())
        files = bundle.manifest.files
        stale = [name for name, digest in recorded["files"].items() if files.get(name) != digest]
        if stale:
            return [f"not evaluated since {', '.join(stale)} was written again: sad-deploy evaluate"]
        return [_headline(each, recorded) for each in recorded["results"]]
    except (KeyError, TypeError, ValueError) as error:
        path = bundle.root / EVALUATION
        raise BundleError(f"{path} is not what sad-deploy evaluate writes: {error}") from None


def _headline(result: dict[str, Any], recorded: dict[str, Any]) -> str:
    worst, threat, data = result["worst_case"], result["threat_model"], recorded["data"]
    low, high = worst["interval"]
    norm = {"linf": "L∞", "l2": "L2"}.get(threat["norm"], threat["norm"])
    other = result["undefended"]
    beside = "" if other is None else f"; undefended {other['worst_case']['percent']:.1f} %"
    masked = [check["id"] for check in result["checks"] if not check["passed"] and "masking" in check["id"]]
    return (
        f"{worst['percent']:.1f} % ({low:.1f} … {high:.1f}) in the worst case over "
        f"{len(result['attacks'])} attacks, {norm}, ε {threat['epsilon']:.4g}, "
        f"{worst['images']} {data['split']} images of {data['source']}{beside}"
        f"{'; gradients are masked' if masked else ''}"
    )
