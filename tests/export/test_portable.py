"""Every rule's gradient runs at the oldest and the newest opset, and TensorRT for RTX builds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from sad_export.gradient import covered, reverse, without_rule
from sad_export.loading import normalise
from sad_export.lowering import Portable
from sad_export.tensorrt import build_engine
from tests.support.differentiate import forward_model
from tests.support.operator_cases import CASES, SHAPE, opsets

NEWEST_OF_ONNXRUNTIME = 26

WITHOUT_A_CASE = {"Scatter", "ScatterElements", "ScatterND", "Unsqueeze", "DequantizeLinear"}
"""Scatter is the old name of ScatterElements, whose indices count images; the others are inside a case."""


def self_seeded(case: str, opset: int) -> onnx.ModelProto:
    """x → y, dx with dy = y, so that an engine has one input."""
    nodes, constants = CASES[case]
    model = ir.from_proto(forward_model(nodes, SHAPE, constants, opset=opset))
    normalise(model)
    graph = model.graph
    x, y = graph.inputs[0], graph.outputs[0]
    assert without_rule(Portable(opset=opset), list(graph), x, y) == []
    g = Portable(opset=opset)
    dx = reverse(g, list(graph), {y: g.of(y)}, x)
    g.append_to(graph)
    graph.outputs.append(dx)
    proto: Any = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert isinstance(proto, onnx.ModelProto)
    return proto


def test_every_rule_has_a_case() -> None:
    assert {case.partition(",")[0] for case in CASES} == set(covered()) - WITHOUT_A_CASE


@pytest.mark.parametrize("case", CASES)
def test_the_oldest_and_the_newest_opset_give_the_same_gradient(case: str) -> None:
    x = np.random.default_rng(41).uniform(0.2, 0.9, size=(2, 4, 6, 6)).astype(np.float32) + (
        1 if case == "Acosh" else 0
    )
    oldest, newest = opsets(case)
    session = onnxruntime.InferenceSession(
        self_seeded(case, oldest).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    _, first = session.run(None, {"x": x})
    graph = self_seeded(case, newest)
    if newest <= NEWEST_OF_ONNXRUNTIME or case == "GlobalLpPool":
        return  # the reference evaluator has no GlobalLpPool
    _, last = ReferenceEvaluator(graph).run(None, {"x": x})
    np.testing.assert_allclose(first, last, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_tensorrt_builds_the_gradient_of_every_rule(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
    refused = []
    for case in CASES:
        path = tmp_path / "m.onnx"
        onnx.save(self_seeded(case, max(20, opsets(case)[0])), str(path))
        try:
            build_engine(path, tmp_path / "m.plan", flavor="rtx", batch=(1, 2, 4))
        except Exception as error:
            refused.append(f"{case}: {error}")
    assert refused == []
