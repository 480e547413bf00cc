"""No robust accuracy stands in the documents without what it depends on, in the same sentence or table.

That is: norm or ε, how many images, which attacks, and whether it is the worst case or one attack alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

FIGURE = re.compile(r"\d(?:[.,]\d+)?\s?%|[Aa]ccurac(?:y|ies) in percent")
ATTACKED = re.compile(r"\b(attack|robust|worst case|adversarial image|A?PGD|AutoAttack|RayS|Square\b)", re.I)
NEEDED = {
    "norm or ε": re.compile(r"ε\s?[\d.]|\d/255|L2\b"),
    "images": re.compile(r"(?<![\d.])\d+(?:,\d{3})* (?:[a-z-]+ ){0,3}images|\bn = \d"),
    "attacks": re.compile(r"all attacks|A?PGD|AutoAttack|RayS|Square"),
    "worst case or not": re.compile(r"worst case|alone\b"),
}


def units(text: str) -> Iterator[str]:
    """Sentences; and tables, each with the paragraph before it."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    paragraph = ""
    for block in re.split(r"\n\s*\n", text):
        if block.lstrip().startswith("|"):
            yield f"{paragraph} {block}"
            continue
        for item in re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", block):
            joined = " ".join(item.split())
            yield from re.split(r"(?<=[.!?])\s+(?=[A-Z*`])", joined)
        paragraph = " ".join(block.split())


def missing(unit: str) -> list[str]:
    """What a unit with a robust accuracy leaves out; nothing for any other."""
    if not (FIGURE.search(unit) and ATTACKED.search(unit)):
        return []
    return [name for name, pattern in NEEDED.items() if not pattern.search(unit)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_robust_accuracy_says_what_it_depends_on(path: Path) -> None:
    found = [(unit, left) for unit in units(path.read_text(encoding="utf-8")) if (left := missing(unit))]
    assert not found, "\n".join(f"{', '.join(left)} missing: {unit[:300]}" for unit, left in found)


WHOLE = "At L∞, ε 0.1, on 100 test images, the worst case over all attacks is 79 %."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (WHOLE, []),
        (WHOLE.replace("L∞, ε 0.1", "some radius"), ["norm or ε"]),
        (WHOLE.replace("100 test", "test"), ["images"]),
        (WHOLE.replace("all attacks", "what we tried"), ["attacks"]),
        (WHOLE.replace("the worst case over all attacks", "accuracy under APGD"), ["worst case or not"]),
        ("It keeps 79 % under attack.", list(NEEDED)),
        ("Robust accuracy: 79%.", list(NEEDED)),
        ("Export takes 12 % longer.", []),
        (f"{WHOLE[:-1]}. Attacked, 40 % are left.", list(NEEDED)),
        ("APGD, all attacks, accuracies in percent.\n\n| a | b |\n|---|---|\n| worst case | 29 |",
         ["norm or ε", "images", "worst case or not", "norm or ε", "images"]),
        ("- Attacked, 40 % are left.\n- ε 0.1, 100 images, APGD alone.", list(NEEDED)),
    ],
)  # fmt: skip
def test_what_is_left_out_is_found(text: str, left: list[str]) -> None:
    assert [name for unit in units(text) for name in missing(unit)] == left


def test_the_documents_hold_such_figures() -> None:
    """Otherwise all of the above would pass on nothing."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert any(FIGURE.search(unit) and ATTACKED.search(unit) for unit in units(text))
