"""What may be quoted of a bundle's evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.bundle.robustness import EVALUATION, NOT_EVALUATED, robustness
from sad_runtime.errors import BundleError
from tests.support.tiny_bundle import linear_model, write_tiny_bundle

RESULT = {
    "worst_case": {"percent": 79.0, "images": 100, "interval": [69.7, 86.5]},
    "threat_model": {"norm": "linf", "epsilon": 0.1},
    "undefended": {"worst_case": {"percent": 80.0}},
    "attacks": [{}, {}, {}],
    "checks": [{"id": "masking_transfer", "passed": False}],
}


def evaluated(bundle: Bundle, record: Any) -> Bundle:
    with write_bundle(bundle.root) as draft:
        draft.keep(bundle, *bundle.manifest.files)
        draft.path(EVALUATION).write_text(json.dumps(record))
        draft.manifest = bundle.manifest
    return Bundle.open(bundle.root)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_tiny_bundle(tmp_path / "b", linear_model())
    return Bundle.open(tmp_path / "b")


def test_a_figure_comes_with_all_its_conditions(bundle: Bundle) -> None:
    (name, digest), *_ = bundle.manifest.files.items()
    record = {"files": {name: digest}, "results": [RESULT], "data": {"split": "test", "source": "digits"}}
    (said,) = robustness(evaluated(bundle, record))
    conditions = (
        "79.0 %",
        "69.7 … 86.5",
        "worst case over 3 attacks",
        "L∞, ε 0.1",
        "100 test images of digits",
    )
    for part in (*conditions, "undefended 80.0 %", "gradients are masked"):
        assert part in said


def test_without_an_evaluation_it_says_so(bundle: Bundle) -> None:
    assert robustness(bundle) == [NOT_EVALUATED]


def test_a_figure_of_a_file_that_was_written_again_is_not_shown(bundle: Bundle) -> None:
    record = {"files": {"model.onnx": "0" * 64}, "results": [RESULT], "data": {}}
    (said,) = robustness(evaluated(bundle, record))
    assert said.startswith("not evaluated since model.onnx was written again") and "79" not in said


@pytest.mark.parametrize("record", [[], {}, {"files": {}, "results": [{}]}, {"files": {}, "results": 3}])
def test_something_else_in_its_place_is_refused(bundle: Bundle, record: Any) -> None:
    with pytest.raises(BundleError, match="not what sad-deploy evaluate writes"):
        robustness(evaluated(bundle, record))
