"""Each of ONNX's own backend node tests whose operator has a rule is differentiated and checked."""

from __future__ import annotations

import collections

import pytest

from tests.support.backend_nodes import cases, gradient_of, largest_error, step_and_tolerance

CHECKED_AT_LEAST = 950
OPERATORS_AT_LEAST = 95

_MASKED = "a row whose keys are all masked is 0/0 in the backward too, as in PyTorch"
NOT_COMPARED = {
    "test_quantizelinear": "straight through the rounding, which has slope 0: see test_precision",
    "test_attention_causal_boolmask_nan_robustness": _MASKED,
    "test_attention_23_boolmask_fullymasked_row_nan_robustness": _MASKED,
    "test_attention_23_fullymasked_qk_matmul_output_mode3_zero": _MASKED,
    "test_attention_24_fullymasked_qk_matmul_output_mode3_zero": _MASKED,
    "test_attention_4d_causal_nonpad_negative_offset_structural_empty": _MASKED,
    "test_attention_local_window_gqa_rank4_mask": _MASKED,
}
"""By the beginning of the name."""

WITHOUT_RULE = {
    "AffineGrid": "its body has control flow; makes coordinates, not images",
    "Col2Im": "not in classifiers, refused by TensorRT",
    "Compress": "the shape of its output depends on numbers",
    "CumProd": "not in classifiers",
    "DFT": "complex numbers",
    "DeformConv": "not in classifiers of the usual zoos, refused by TensorRT",
    "Det": "not in classifiers",
    "GRU": "recurrent",
    "GridSample": "spatial transformers are not covered",
    "LSTM": "recurrent",
    "LinearAttention": "its body has control flow",
    "MaxUnpool": "refused by TensorRT",
    "OneHot": "its values are a table, not an image",
    "RNN": "recurrent",
    "ReverseSequence": "sequences",
    "RoiAlign": "detection",
    "STFT": "complex numbers",
    "SequenceMap": "sequences",
    "SplitToSequence": "sequences",
    "OptionalGetElement": "optionals",
    "TensorScatter": "caches of language models",
    "TopK": "not covered",
    "Unique": "the shape of its output depends on numbers",
}


@pytest.mark.slow
def test_backend_node_tests_agree_with_central_differences() -> None:
    checked: collections.Counter[str] = collections.Counter()
    wrong, without_rule = [], set()
    for case in cases():
        if case.name.startswith(tuple(NOT_COMPARED)):
            continue
        gradient, reason = gradient_of(case)
        if gradient is None:
            if reason.startswith("no gradient rule for "):
                without_rule.add(reason.removeprefix("no gradient rule for "))
            continue
        error = largest_error(case, gradient)
        checked[case.op_type] += 1
        if not error <= step_and_tolerance(case)[1]:
            wrong.append(f"{case.name}: {error:.1e}")
    print(f"{checked.total()} cases of {len(checked)} operators")
    assert wrong == []
    assert without_rule == set(WITHOUT_RULE)
    assert checked.total() >= CHECKED_AT_LEAST
    assert len(checked) >= OPERATORS_AT_LEAST
