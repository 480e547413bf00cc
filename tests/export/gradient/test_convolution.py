from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
import pytest
import torch

from tests.support.differentiate import check, forward_model, gradient, gradient_model, node, run

RNG = np.random.default_rng(7)

# kernel, stride, dilation, pads (top, left, bottom, right), group, size
CASES = {
    "pointwise": ((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1, (5, 6)),
    "same": ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1, (5, 6)),
    "stride": ((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 1, (8, 8)),
    "stride_odd_size": ((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 1, (7, 9)),
    "pointwise_stride": ((1, 1), (2, 2), (1, 1), (0, 0, 0, 0), 1, (8, 7)),
    "pointwise_stride_padded": ((1, 1), (2, 2), (1, 1), (1, 2, 1, 0), 1, (8, 7)),
    "stem_7x7": ((7, 7), (2, 2), (1, 1), (3, 3, 3, 3), 1, (16, 15)),
    "stride_beyond_kernel": ((2, 2), (3, 3), (1, 1), (0, 0, 0, 0), 1, (10, 11)),
    "unequal_strides": ((3, 2), (2, 3), (1, 1), (1, 0, 1, 1), 1, (9, 10)),
    "asymmetric_pads": ((3, 3), (2, 1), (1, 1), (0, 2, 1, 0), 1, (8, 7)),
    "padding_beyond_kernel": ((1, 2), (1, 1), (1, 1), (2, 3, 1, 2), 1, (4, 5)),
    "dilation": ((3, 3), (1, 1), (2, 3), (2, 3, 2, 3), 1, (9, 10)),
    "stride_and_dilation": ((3, 3), (2, 2), (2, 2), (2, 2, 2, 2), 1, (11, 12)),
    "stride_and_coprime_dilation": ((3, 3), (2, 2), (3, 3), (3, 3, 3, 3), 1, (11, 12)),
    "groups": ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 2, (6, 5)),
    "depthwise_stride": ((3, 3), (2, 2), (1, 1), (1, 1, 1, 1), 4, (7, 8)),
    "depthwise": ((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 4, (6, 7)),
    "depthwise_stride_asymmetric": ((3, 4), (2, 3), (1, 1), (0, 2, 1, 0), 4, (8, 11)),
    "depthwise_stride_and_dilation": ((3, 3), (2, 2), (2, 2), (2, 2, 2, 2), 4, (11, 12)),
    "depthwise_stride_beyond_kernel": ((2, 1), (3, 2), (1, 1), (0, 0, 0, 0), 4, (10, 9)),
    "depthwise_padding_beyond_kernel": ((2, 2), (2, 2), (1, 1), (3, 2, 2, 3), 4, (6, 7)),
    "whole_image": ((5, 6), (1, 1), (1, 1), (0, 0, 0, 0), 1, (5, 6)),
}


@pytest.mark.parametrize("target", ["portable", "cpu", "int8"])
@pytest.mark.parametrize("conv_gradient", ["auto", "auto-fp16", "convtranspose", "conv"])
@pytest.mark.parametrize("case", CASES)
def test_conv_equals_float64_autograd(case: str, conv_gradient: str, target: str) -> None:
    kernel, strides, dilations, pads, group, size = CASES[case]
    x = RNG.normal(size=(2, 4, *size))
    w = RNG.normal(size=(6 if group != 4 else 8, 4 // group, *kernel))
    xt = torch.tensor(x, requires_grad=True)
    padded = torch.nn.functional.pad(xt, (pads[1], pads[3], pads[0], pads[2]))
    y = torch.nn.functional.conv2d(padded, torch.tensor(w), stride=strides, dilation=dilations, groups=group)
    dy = RNG.normal(size=y.shape)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
    nodes = [
        node(
            "Conv",
            ["x", "w"],
            kernel_shape=kernel,
            strides=strides,
            dilations=dilations,
            pads=pads,
            group=group,
        )
    ]
    dx = gradient(nodes, x, dy, {"w": w}, conv_gradient=conv_gradient, target=target)
    np.testing.assert_allclose(dx, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "stride", "expected"),
    [
        ("portable", 1, {"Conv"}),
        ("portable", 2, {"Conv", "ConvTranspose"}),
        ("cpu", 1, {"Conv"}),
        ("cpu", 2, {"Conv", "ConvTranspose"}),
    ],
)
def test_depthwise_lowering(target: str, stride: int, expected: set[str]) -> None:
    conv = node("Conv", ["x", "w"], strides=[stride, stride], group=16)
    forward = forward_model([conv], ["N", 16, 8, 8], {"w": RNG.normal(size=(16, 1, 3, 3))})
    graph = gradient_model(forward, target=target).graph
    assert {n.op_type for n in graph.node if "Conv" in n.op_type} == expected
    spread = [n for n in graph.node if n.op_type == "ConvTranspose"]
    kernels = [list(a.ints) for n in spread for a in n.attribute if a.name == "kernel_shape"]
    assert kernels == ([] if stride == 1 else [[1, 1]] if target == "cpu" else [[3, 3]])


@pytest.mark.parametrize("conv_gradient", ["convtranspose", "conv"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv_with_auto_pad(auto_pad: str, conv_gradient: str) -> None:
    w = RNG.normal(size=(3, 2, 4, 3))
    check(
        [node("Conv", ["x", "w"], auto_pad=auto_pad, strides=[2, 3])],
        (2, 2, 9, 8),
        {"w": w},
        conv_gradient=conv_gradient,
    )


@pytest.mark.parametrize("conv_gradient", ["convtranspose", "conv"])
def test_conv_in_one_dimension(conv_gradient: str) -> None:
    w = RNG.normal(size=(3, 2, 3))
    check(
        [node("Conv", ["x", "w"], strides=[2], pads=[1, 0])], (2, 2, 9), {"w": w}, conv_gradient=conv_gradient
    )


@pytest.mark.parametrize("conv_gradient", ["convtranspose", "conv"])
def test_conv_over_a_sweep_of_sizes(conv_gradient: str) -> None:
    """Every small combination along one axis: the places where an off-by-one hides."""
    checked = 0
    for size, k, s, d, begin, end in itertools.product(
        (4, 7), (1, 2, 3), (1, 2, 3), (1, 2), (0, 1, 2), (0, 2)
    ):
        if (k - 1) * d + 1 > size + begin + end:
            continue
        w = RNG.normal(size=(2, 1, k))
        x = RNG.normal(size=(1, 1, size))
        xt = torch.tensor(x, requires_grad=True)
        y = torch.nn.functional.conv1d(
            torch.nn.functional.pad(xt, (begin, end)), torch.tensor(w), stride=s, dilation=d
        )
        dy = RNG.normal(size=y.shape)
        (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
        nodes = [node("Conv", ["x", "w"], strides=[s], dilations=[d], pads=[begin, end])]
        dx = gradient(nodes, x, dy, {"w": w}, conv_gradient=conv_gradient)
        np.testing.assert_allclose(
            dx, expected.numpy(), rtol=1e-4, atol=1e-5, err_msg=str((size, k, s, d, begin, end))
        )
        checked += 1
    assert checked > 150


def test_convtranspose_form_reads_the_forward_initializer() -> None:
    w = RNG.normal(size=(3, 2, 3, 3))
    forward = forward_model([node("Conv", ["x", "w"], strides=[2, 2])], ["N", 2, 9, 9], {"w": w})
    model = gradient_model(forward, conv_gradient="convtranspose")
    (backward,) = [n for n in model.graph.node if n.op_type == "ConvTranspose"]
    assert backward.input[1] == "w"
    assert sum(len(tensor.raw_data) for tensor in model.graph.initializer) < 1.1 * w.size * 4


def test_stride_with_dilation_never_becomes_a_convtranspose_in_auto() -> None:
    """TensorRT refuses that combination."""
    w = RNG.normal(size=(3, 2, 3, 3))
    forward = forward_model(
        [node("Conv", ["x", "w"], strides=[2, 2], dilations=[2, 2])], ["N", 2, 9, 9], {"w": w}
    )
    operators = {n.op_type for n in gradient_model(forward).graph.node}
    assert "ConvTranspose" not in operators


def test_batch_is_dynamic() -> None:
    w = RNG.normal(size=(3, 2, 3, 3))
    model = gradient_model(
        forward_model([node("Conv", ["x", "w"], strides=[2, 2])], ["N", 2, 9, 9], {"w": w}),
        conv_gradient="conv",
    )
    x = RNG.normal(size=(5, 2, 9, 9)).astype(np.float32)
    dy = RNG.normal(size=(5, 3, 4, 4)).astype(np.float32)
    whole = run(model, x=x, dy=dy)[1]
    single = np.concatenate([run(model, x=x[i : i + 1], dy=dy[i : i + 1])[1] for i in range(5)])
    np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-6)


LARGE = RNG.normal(size=(256, 256, 1, 1)) / 16
RESIDUALS = {
    "plain": ([node("Conv", ["x", "w"])], "Conv"),
    "residual": ([node("Conv", ["x", "w"], ["c"]), node("Add", ["c", "x"])], "ConvTranspose"),
    "clipped": (
        [node("Conv", ["x", "w"], ["c"]), node("Clip", ["c", "low", "high"])],
        "ConvTranspose",
    ),
    "residual_of_relu": (
        [node("Relu", ["x"], ["r"]), node("Conv", ["r", "w"], ["c"]), node("Add", ["r", "c"])],
        "ConvTranspose",
    ),
    "two_convolutions": (
        [
            node("Conv", ["x", "w"], ["c"]),
            node("Conv", ["x", "v"], ["d"], pads=[1, 1, 1, 1]),
            node("Add", ["c", "d"]),
        ],
        "Conv",
    ),
}


@pytest.mark.parametrize("case", RESIDUALS)
def test_in_fp16_a_large_pointwise_convolution_is_written_as_its_engine_shares_it(case: str) -> None:
    """A Conv of one more row where the forward weight is packed, ConvTranspose where a residual is added."""
    nodes, expected = RESIDUALS[case]
    weights = {"w": LARGE}
    if case == "clipped":
        weights |= {"low": np.array(0.0), "high": np.array(6.0)}
    if case == "two_convolutions":
        weights["v"] = RNG.normal(size=(256, 256, 3, 3)) / 48
    check(nodes, (2, 256, 3, 4), weights, conv_gradient="auto-fp16")
    model = gradient_model(forward_model(nodes, ["N", 256, 3, 4], weights), conv_gradient="auto-fp16")
    same = {"w"} | {n.output[0] for n in model.graph.node if n.op_type == "Max" and set(n.input) == {"w"}}
    deconvolved = [n for n in model.graph.node if n.op_type == "ConvTranspose" and n.input[1] in same]
    pads = [list(a.ints) for n in model.graph.node for a in n.attribute if a.name == "pads"]
    assert (len(deconvolved), pads.count([0, 0, 1, 0])) == {"ConvTranspose": (1, 0), "Conv": (0, 1)}[expected]


@pytest.mark.parametrize(("out", "channels"), [(255, 256), (256, 255)])
def test_a_smaller_one_is_shared_by_convtranspose_in_fp16_too(out: int, channels: int) -> None:
    weight = RNG.normal(size=(out, channels, 1, 1))
    forward = forward_model([node("Conv", ["x", "w"])], ["N", channels, 3, 3], {"w": weight})
    model = gradient_model(forward, conv_gradient="auto-fp16")
    assert [n.op_type for n in model.graph.node] == ["Conv", "ConvTranspose"]


@pytest.mark.parametrize("target", ["portable", "cpu", "int8"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_a_strided_conv_and_its_strided_shortcut_are_summed_before_they_are_interleaved(
    size: tuple[int, int], target: str
) -> None:
    x = RNG.normal(size=(2, 16, *size))
    w, v = RNG.normal(size=(16, 16, 3, 3)), RNG.normal(size=(16, 16, 1, 1))
    xt = torch.tensor(x, requires_grad=True)
    y = torch.conv2d(xt, torch.tensor(w), stride=2, padding=1) + torch.conv2d(xt, torch.tensor(v), stride=2)
    dy = RNG.normal(size=y.shape)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy))
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", ["x", "v"], ["b"], strides=[2, 2]),
        node("Add", ["a", "b"]),
    ]
    for conv_gradient in ("auto", "conv"):
        dx = gradient(nodes, x, dy, {"w": w, "v": v}, conv_gradient=conv_gradient, target=target)
        np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)
    model = gradient_model(
        forward_model(nodes, ["N", *x.shape[1:]], {"w": w, "v": v}), conv_gradient="conv", target="int8"
    )
    live = ir.from_proto(model)
    common_passes.RemoveUnusedNodesPass()(live)
    assert sum(n.op_type == "DepthToSpace" for n in live.graph) == 1
