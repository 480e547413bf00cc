"""The lists of operators against the standard's own type constraints."""

from __future__ import annotations

import onnx
import pytest

from sad_export.gradient import covered
from sad_export.graph.operators import CLASSIFIED, FLOAT32_ONLY, NOT_IN_BF16, SUMS
from tests.support.differentiate import forward_model, gradient_model
from tests.support.operator_cases import CASES, SHAPE, opsets

BF16_FROM = 22


@pytest.mark.parametrize("op_type", sorted({*covered(), "Equal", "Greater", "OneHot", "TopK"}))
def test_an_operator_without_bf16_in_the_standard_stays_float32(op_type: str) -> None:
    """By its output, or its first input where the output is no float; others may have types of their own."""
    schema = onnx.defs.get_schema(op_type)
    if schema.since_version > BF16_FROM and op_type not in ("RMSNormalization", "Swish"):  # new in 23 and 24
        schema = onnx.defs.get_schema(op_type, BF16_FROM, "")
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    values = [*schema.outputs[:1], *schema.inputs[:1]]
    floats = [allowed[v.type_str] for v in values if "tensor(float)" in allowed.get(v.type_str, ())]
    if floats and "tensor(bfloat16)" not in floats[0]:
        assert op_type in FLOAT32_ONLY | NOT_IN_BF16 | SUMS


def written(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("target", ["portable", "cpu", "int8"])
def test_every_operator_that_a_rule_or_lowering_writes_is_in_the_table(target: str) -> None:
    """Unknown ones would stay float32 unnoticed, or, before there was a table, be lowered unnoticed."""
    found = {
        op_type
        for case, (nodes, constants) in CASES.items()
        for op_type in written(
            gradient_model(forward_model(nodes, SHAPE, constants, opset=opsets(case)[1]), target=target)
        )
    }
    assert found - CLASSIFIED == set()


def test_every_operator_with_a_rule_is_in_the_table() -> None:
    assert set(covered()) - CLASSIFIED == set()
