"""The target ``cpu``: the same gradients, from operators that stay in onnxruntime's blocked layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import onnxruntime
import pytest
import torch
from torch import nn

from sad_export import two_pass
from tests.support.differentiate import check, forward_model, gradient, gradient_model, node, run
from tests.support.models import forward_onnx, randomised

RNG = np.random.default_rng(5)
KERNEL = {"w": RNG.normal(size=(16, 16, 3, 3)) / 5}
BLOCKED = "com.microsoft.nchwc"
CONV = node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1])


def blocked_net() -> nn.Module:
    """A residual net whose channels fill whole blocks."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1),
                nn.BatchNorm2d(16),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.body(x))

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), *(Residual() for _ in range(4))]
    return randomised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)))


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[tuple[str, str]]:
    """(domain, operator) of what onnxruntime makes of a graph; the blocked layout has a domain of its own."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter((n.domain, n.op_type) for n in onnx.load(str(folder / "optimised.onnx")).graph.node)


def reorders(model: onnx.ModelProto, folder: Path) -> int:
    operators = optimised(model, folder)
    return operators[BLOCKED, "ReorderInput"] + operators[BLOCKED, "ReorderOutput"]


@pytest.mark.parametrize("activation", [["Relu"], ["Clip", "low", "high"]], ids=["Relu", "ReLU6"])
def test_masks_in_the_blocked_layout_are_the_same(activation: list[str]) -> None:
    op_type, *bounds = activation
    nodes = [CONV, node(op_type, ["a", *bounds], ["r"]), node("Conv", ["r", "w"], ["y"], pads=[1, 1, 1, 1])]
    constants = {**KERNEL, "low": np.array(0.0), "high": np.array(0.5)}
    constants = {name: constants[name] for name in ("w", *bounds)}
    check(nodes, (2, 16, 6, 6), constants, target="cpu")
    x, dy = RNG.normal(size=(2, 16, 6, 6)), RNG.normal(size=(2, 16, 6, 6))
    plain, blocked = (gradient(nodes, x, dy, constants, target=target) for target in ("portable", "cpu"))
    # Sums of 144 products in another order: beside the largest of them, where they nearly cancel.
    np.testing.assert_allclose(blocked, plain, rtol=1e-4, atol=3e-6 * np.abs(plain).max())


def test_a_blocked_mask_is_zero_at_the_kink_and_one_right_above() -> None:
    """A 1×1 convolution by the identity, so that the ReLU sees exactly x."""
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"])]
    x = np.zeros((1, 16, 1, 6))
    x[..., :] = [-1.0, -1e-20, 0.0, 1e-20, 1e-7, 1e10]
    dx = gradient(nodes, x, np.ones_like(x), {"w": np.eye(16).reshape(16, 16, 1, 1)}, target="cpu")
    np.testing.assert_array_equal(dx[0, 0, 0], [0, 0, 0, 1, 1, 1])


def test_a_blocked_relu6_mask_is_zero_at_both_kinks_and_one_between() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Clip", ["a", "low", "high"])]
    below_six = np.nextafter(np.float32(6), np.float32(0))
    x = np.zeros((1, 16, 1, 8))
    x[..., :] = [-1.0, 0.0, 1e-15, 1e-7, 3.0, below_six, 6.0, 1e10]
    constants = {"w": np.eye(16).reshape(16, 16, 1, 1), "low": np.array(0.0), "high": np.array(6.0)}
    dx = gradient(nodes, x, np.ones_like(x), constants, target="cpu")
    np.testing.assert_array_equal(dx[0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0])


def test_a_blocked_clip_to_other_bounds_is_the_same() -> None:
    nodes = [CONV, node("Clip", ["a", "low", "high"], ["r"]), node("Conv", ["r", "w"], ["y"], pads=[1] * 4)]
    check(nodes, (2, 16, 6, 6), {**KERNEL, "low": np.array(-0.3), "high": np.array(0.5)}, target="cpu")


def test_a_blocked_hard_swish_has_the_same_slope_at_its_kinks_and_between() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("HardSwish", ["a"])]
    x = np.zeros((1, 16, 1, 9))
    inside = np.nextafter(np.float32(-3), np.float32(0))
    x[..., :] = [-1e10, -3.5, -3.0, inside, -0.5, 0.0, 2.9, 3.0, 1e10]
    constants = {"w": np.eye(16).reshape(16, 16, 1, 1)}
    dx = gradient(nodes, x, np.ones_like(x), constants, target="cpu")
    portable = gradient(nodes, x, np.ones_like(x), constants)
    np.testing.assert_allclose(dx, portable, rtol=1e-6, atol=2e-7)
    np.testing.assert_array_equal(dx[0, 0, 0, [0, 1, 2, 7, 8]], [0, 0, 0, 1, 1])


def test_a_blocked_hard_swish_is_the_same() -> None:
    nodes = [CONV, node("HardSwish", ["a"], ["r"]), node("Conv", ["r", "w"], ["y"], pads=[1] * 4)]
    check(nodes, (2, 16, 6, 6), KERNEL, target="cpu")


class SqueezeExcitation(nn.Module):
    """As in EfficientNet: Swish, a strided depthwise convolution, and channels weighted by their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Sequential(
            nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.depthwise(nn.functional.silu(self.stem(x))))
        gate = nn.functional.silu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return torch.as_tensor(self.head(x * torch.sigmoid(self.excite(gate))))


def test_a_padded_gradient_enters_the_layout_by_a_convolution() -> None:
    """onnxruntime would merge the padding into a 1×1 MaxPool, and refuse the graph."""
    nodes = [CONV, node("Relu", ["a"], ["r"]), node("Slice", ["r", "one", "five", "axis"], ["y"])]
    constants = {**KERNEL, "one": np.array([1]), "five": np.array([5]), "axis": np.array([2])}
    check(nodes, (2, 16, 6, 6), constants, target="cpu")


@pytest.mark.parametrize("size", [8, 9])
def test_strided_convolutions_in_whole_blocks(size: int) -> None:
    w = {"w": RNG.normal(size=(16, 16, 3, 3)) / 5, "v": RNG.normal(size=(16, 16, 1, 1))}
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1] * 4),
        node("Conv", ["x", "v"], ["b"], strides=[2, 2]),
        node("Add", ["a", "b"]),
    ]
    check(nodes, (2, 16, size, size), w, target="cpu")
    backward = gradient_model(forward_model(nodes, ["N", 16, size, size], w), target="cpu").graph.node
    assert [n.op_type for n in backward if n.op_type == "ConvTranspose"] == ["ConvTranspose"]  # of the 1×1


def test_squeeze_and_excitation_stays_blocked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    forward = forward_onnx(SqueezeExcitation().eval(), (3, 12, 12))
    portable, cpu = (two_pass(forward, eta=0.3, target=target) for target in ("portable", "cpu"))
    operators = optimised(cpu, tmp_path)
    # Both passes repeat the gate, the backward the gradients of both means (of the gate it reads the first
    # pass's); each pass averages twice, and the gate's gradient is summed: all in blocks.
    assert operators[BLOCKED, "Upsample"] == 4
    assert operators[BLOCKED, "GlobalAveragePool"] == 5
    assert operators["", "Resize"] == operators["", "ReduceMean"] == 0
    assert reorders(cpu, tmp_path) < reorders(portable, tmp_path)
    image = RNG.normal(size=(3, 3, 12, 12)).astype(np.float32)
    for a, b in zip(run(cpu, image=image), run(portable, image=image), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stem", ["7x7", "3x3", "1x1"])
def test_a_stem_takes_the_gradient_of_its_pool_phase_by_phase(stem: str) -> None:
    """Nothing is interleaved between them. With a short kernel, a phase begins beyond the first row."""
    kernel = int(stem[0])
    pads = [kernel // 2] * 4
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=pads),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    ]
    w = RNG.normal(size=(16, 3, kernel, kernel))
    check(nodes, (2, 3, 16, 24), {"w": w}, target="cpu")
    forward = forward_model(nodes, ["N", 3, 16, 24], {"w": w})
    model = ir.from_proto(gradient_model(forward, target="cpu"))
    common_passes.RemoveUnusedNodesPass()(model)
    operators = Counter(n.op_type for n in model.graph)
    assert operators["ConvTranspose"] == 4
    assert operators["Concat"] == operators["Slice"] == 0


def test_a_stem_interleaves_what_was_cropped() -> None:
    """Of 15 positions the last phase has one less than the first."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1] * 4),
        node("Relu", ["a"], ["r"]),
        node("MaxPool", ["r"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
    ]
    check(nodes, (2, 3, 29, 30), {"w": RNG.normal(size=(16, 3, 3, 3))}, target="cpu")


def test_a_concat_is_blocked_and_the_gradients_of_a_growing_one_are_added_outside(tmp_path: Path) -> None:
    """As in a DenseNet: the gradient of each Concat is sliced, which leaves the layout."""
    nodes = [
        CONV,
        node("Conv", ["a", "w"], ["b"], pads=[1] * 4),
        node("Concat", ["a", "b"], ["ab"], axis=1),
        node("Conv", ["ab", "v"], ["c"], pads=[1] * 4),
        node("Concat", ["a", "b", "c"], ["abc"], axis=1),
        node("Conv", ["abc", "u"], ["y"]),
    ]
    wide = {
        **KERNEL,
        "v": RNG.normal(size=(16, 32, 3, 3)) / 9,
        "u": RNG.normal(size=(16, 48, 1, 1)) / 4,
    }
    check(nodes, (2, 16, 6, 6), wide, target="cpu")
    model = gradient_model(forward_model(nodes, ["N", 16, 6, 6], wide), target="cpu")
    # Only where a slice meets the gradient of what was not concatenated, `a`.
    assert [n.op_type for n in model.graph.node].count("MaxPool") == 1
    operators = optimised(model, tmp_path)
    assert operators[BLOCKED, "Concat"] + operators["", "Concat"] == 2
    # Into the layout: the image, dy, two slices that convolutions read, one that enters a sum.
    assert operators[BLOCKED, "ReorderInput"] == 5


def test_an_odd_number_of_channels_stays_in_the_plain_form() -> None:
    w = {"w": RNG.normal(size=(5, 5, 3, 3))}
    forward = forward_model([CONV, node("Relu", ["a"])], ["N", 5, 6, 6], w)
    assert "Clip" not in {n.op_type for n in gradient_model(forward, target="cpu").graph.node}


def test_a_grouped_convolution_without_whole_blocks_stays_in_the_plain_form() -> None:
    conv = node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1], group=4)
    forward = forward_model([conv, node("Relu", ["a"])], ["N", 48, 6, 6], {"w": np.ones((48, 12, 3, 3))})
    assert "Clip" not in {n.op_type for n in gradient_model(forward, target="cpu").graph.node}


def test_the_whole_backward_of_a_residual_net_stays_blocked(tmp_path: Path) -> None:
    forward = forward_onnx(blocked_net(), (3, 12, 12))
    portable, cpu = (two_pass(forward, eta=0.3, target=target) for target in ("portable", "cpu"))
    # Into the layout at the head of the backward, out of it before each global pool.
    assert reorders(cpu, tmp_path) <= 4 < reorders(portable, tmp_path)
    image = RNG.normal(size=(3, 3, 12, 12)).astype(np.float32)
    for a, b in zip(run(cpu, image=image), run(portable, image=image), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
