"""A square weight that is read as it is and transposed: OpenVINO packs it once for both, and is wrong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from sad_export import input_gradient, two_pass
from tests.support.differentiate import forward_model, node

RNG = np.random.default_rng(0)
C = 64
CONV = RNG.normal(size=(C, C, 3, 3)) / 24
GROUPED = RNG.normal(size=(C, C // 4, 3, 3)) / 12
SQUARE = RNG.normal(size=(C, C)) / 8
END = [node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"])]
CONVOLUTION = [node("Conv", ["x", "w"], ["b"], pads=[1] * 4), node("Relu", ["b"], ["c"]), *END]
GROUPS = [node("Conv", ["x", "w"], ["b"], pads=[1] * 4, group=4), node("Relu", ["b"], ["c"]), *END]
TOKENS = [
    node("GlobalAveragePool", ["x"], ["p"]),
    node("Flatten", ["p"], ["f"]),
]
NETWORKS = {
    "convolution": (CONVOLUTION, CONV),
    "grouped_convolution": (GROUPS, GROUPED),
    "matmul": ([*TOKENS, node("MatMul", ["f", "w"], ["m"]), node("Relu", ["m"])], SQUARE),
    "gemm": ([*TOKENS, node("Gemm", ["f", "w"], ["m"]), node("Relu", ["m"])], SQUARE),
    "gemm_transposed": ([*TOKENS, node("Gemm", ["f", "w"], ["m"], transB=1), node("Relu", ["m"])], SQUARE),
}


def network(case: str) -> onnx.ModelProto:
    nodes, weight = NETWORKS[case]
    return forward_model(nodes, ["N", C, 9, 9], {"w": weight})


@pytest.mark.parametrize("case", NETWORKS)
def test_openvino_gives_the_gradient_too(case: str) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino; the test install has it")
    model = input_gradient(network(case)).SerializeToString()
    images: npt.NDArray[np.float32] = RNG.random((3, C, 9, 9), dtype=np.float32)
    want = onnxruntime.InferenceSession(model).run(["gradient"], {"x": images})[0]
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got = compiled([images])["gradient"]
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("case", NETWORKS)
def test_the_weight_is_stored_once(case: str) -> None:
    model = two_pass(network(case), eta=0.1)
    assert [tuple(t.dims) for t in model.graph.initializer].count(NETWORKS[case][1].shape) == 1
    copies = [n for n in model.graph.node if n.op_type == "Max" and set(n.input) == {"w"}]
    assert len(copies) == 1
    first = next(n for n in model.graph.node if "w" in n.input)
    assert first.op_type != "Max"


def test_a_weight_that_is_not_square_is_read_as_it_is() -> None:
    model = two_pass(forward_model(CONVOLUTION, ["N", C, 9, 9], {"w": CONV[:32]}), eta=0.1)
    assert "Max" not in {n.op_type for n in model.graph.node}
