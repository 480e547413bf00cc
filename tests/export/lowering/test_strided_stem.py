"""A strided convolution on blocks of its input computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sad_export.lowering.integers import StridedStemPass
from tests.support.differentiate import forward_model, node, run

RNG = np.random.default_rng(11)

# kernel, stride, pads, channels, size
CASES = {
    "resnet": ((7, 7), 2, (3, 3, 3, 3), 3, (16, 12)),
    "mobilenet": ((3, 3), 2, (1, 1, 1, 1), 3, (8, 8)),
    "no_padding": ((3, 3), 2, (0, 0, 0, 0), 3, (8, 10)),
    "patches": ((4, 4), 4, (0, 0, 0, 0), 1, (8, 12)),
    "unequal_kernel": ((5, 2), 2, (2, 0, 2, 1), 4, (8, 6)),
    "asymmetric": ((3, 3), 2, (0, 0, 1, 1), 3, (8, 8)),
    "odd_padding": ((6, 6), 2, (1, 2, 3, 2), 2, (12, 8)),
    "stride_beyond_kernel": ((1, 1), 2, (0, 0, 0, 0), 3, (6, 6)),
}


def rewritten(kernel, stride, pads, channels, size, **attributes):  # type: ignore[no-untyped-def]
    w, b = RNG.normal(size=(5, channels, *kernel)), RNG.normal(size=5)
    conv = node(
        "Conv", ["x", "w", "b"], kernel_shape=kernel, strides=[stride, stride], pads=pads, **attributes
    )
    before = forward_model([conv], ["N", channels, *size], {"w": w, "b": b})
    model = ir.from_proto(before)
    modified = StridedStemPass()(model).modified
    return before, ir.to_proto(model), modified


@pytest.mark.parametrize("case", CASES)
def test_the_sums_are_the_same(case: str) -> None:
    before, after, modified = rewritten(*CASES[case])
    assert modified
    assert [n.op_type for n in after.graph.node] == ["SpaceToDepth", "Conv"]
    x = RNG.normal(size=(2, CASES[case][3], *CASES[case][4])).astype(np.float32)
    np.testing.assert_allclose(run(after, x=x)[0], run(before, x=x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "channels", "attributes"),
    [((7, 8), 3, {}), ((8, 8), 5, {}), ((8, 8), 3, {"dilations": [2, 2]})],
    ids=["odd size", "many channels", "dilated"],
)
def test_what_does_not_fit_into_blocks_is_left_alone(
    size: tuple[int, int], channels: int, attributes: dict[str, list[int]]
) -> None:
    before, after, modified = rewritten((3, 3), 2, (1, 1, 1, 1), channels, size, **attributes)
    assert not modified
    assert after.graph.node == before.graph.node
