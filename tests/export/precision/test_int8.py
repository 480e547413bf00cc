"""Two-pass graphs in 8-bit integers: TensorRT's form, and that of onnxruntime's CPU."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from sad_export import GraphError, GraphOptions, two_pass
from sad_export.graph.write import save_graph, to_proto
from sad_export.loading import load_classifier
from sad_export.precision import PRECISION_KEY, Variant, gradient_scales, lower, lower_to_integers
from sad_export.precision.int8.grid import Grid, weight_codes
from sad_export.precision.int8.ranges import measured_ranges
from sad_export.tensorrt import build_engine
from tests.support.differentiate import cosines, forward_model, node
from tests.support.integer_kernels import kernels_saturate
from tests.support.models import forward_onnx, randomised, small_cnn, two_pass_graph

Array = np.ndarray[Any, Any]
SPACE = {"eta": 0.3, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
OUTPUTS = ["logits", "saliency", "plain_logits"]


def smooth_images(count: int, side: int) -> Array:
    """White noise would give most networks nothing but large activations that cancel."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    resized = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in noise]
    return np.stack([np.asarray(each).transpose(2, 0, 1) for each in resized]).astype(np.float32) / 255


IMAGES = smooth_images(8, 16)


exact_kernels = pytest.mark.skipif(
    kernels_saturate(), reason="onnxruntime's integer kernels saturate on this processor, which has no VNNI"
)


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


def run(
    model: onnx.ModelProto, images: Array, *, fused: bool = True, optimised: Path | None = None
) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(OUTPUTS, session.run(OUTPUTS, {"image": images}), strict=True))


# Grids and ranges


@pytest.mark.parametrize(
    "grid", [Grid.between(-0.3, 1.7), Grid.around_zero(-0.3, 1.7), Grid.symmetric(-3, 2)]
)
def test_zero_is_exactly_a_code_and_what_is_beyond_saturates(grid: Grid) -> None:
    assert grid.code(0.0) == grid.zero
    lowest, highest = (-128, 127) if grid.signed else (0, 255)
    assert (grid.code(-1e9), grid.code(1e9)) == (lowest, highest)


def test_a_range_without_a_negative_part_has_zero_at_code_0() -> None:
    """Saturation there is a ReLU."""
    assert Grid.between(0.0, 2.0).zero == 0


def test_a_tensor_of_zeros_has_a_grid() -> None:
    assert Grid.between(0.0, 0.0).scale == Grid.around_zero(0.0, 0.0).scale == 1.0


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_to_half_a_code_of_their_own_channel(axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 4, 3, 3)) * 10.0 ** np.arange(4).reshape(4, 1, 1, 1)
    codes, scales = weight_codes(weight, axis)
    shaped = scales.reshape([-1 if i == axis else 1 for i in range(4)])
    assert (np.abs(codes * shaped - weight) <= shaped * 0.5001).all()
    others = tuple(i for i in range(4) if i != axis)
    assert (np.abs(codes).max(axis=others) == 127).all()


def test_a_percentile_leaves_outliers_out_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    forward = forward_model([node("Neg", ["x"])], ["N", 1, 64, 64])
    model = ir.from_proto(forward)
    model.graph.inputs[0].name = "image"
    images = np.random.default_rng(0).random((8, 1, 64, 64), dtype=np.float32)
    images[0, 0, 0, 0] = 50.0
    (value,) = model.graph.outputs
    low, high = measured_ranges(model, {value: 99.9}, images)[value]
    whole, _ = measured_ranges(model, {value: 100.0}, images)[value]
    assert low == pytest.approx(-1, abs=0.1)
    assert high == pytest.approx(0, abs=0.1)
    assert whole == pytest.approx(-50, abs=0.1)
    assert capsys.readouterr().out == ""


# For onnxruntime's CPU


def in_integers(forward: onnx.ModelProto, *words: str, **defence: Any) -> onnx.ModelProto:
    options = GraphOptions(*(words or ("int8",)), target="cpu")
    graph = two_pass_graph(forward, options, **defence)
    return to_proto(lower_to_integers(graph, options.variant, IMAGES))


@pytest.fixture(scope="module")
def integers(forward: onnx.ModelProto) -> onnx.ModelProto:
    return in_integers(forward, **SPACE)


def test_every_convolution_is_an_integer_one_in_both_passes_and_the_backward(
    integers: onnx.ModelProto, tmp_path: Path
) -> None:
    run(integers, IMAGES, optimised=tmp_path / "optimised.onnx")
    found = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    layers = sum(node.op_type == "Conv" for node in integers.graph.node)
    assert found["QLinearConv"] == layers > 2 * 4
    assert not found["Conv"] + found["ConvTranspose"] + found["FusedConv"] + found["MaxPool"]
    # What stands between them, Greater and Where and Pad, is on codes too: floats are read of the pooled
    # features (each pass and the mask before them), of S and of the weights of the seed only.
    assert found["DequantizeLinear"] <= 6
    assert found["Transpose"] < layers


@exact_kernels
def test_labels_and_saliency_are_those_of_float32(
    forward: onnx.ModelProto, integers: onnx.ModelProto
) -> None:
    want, got = run(two_pass(forward, **SPACE), IMAGES), run(integers, IMAGES)
    assert (got["plain_logits"].argmax(1) == want["plain_logits"].argmax(1)).all()
    assert cosines(got["plain_logits"], want["plain_logits"]).min() > 0.999
    assert np.median(cosines(got["saliency"], want["saliency"])) > 0.95


@exact_kernels
def test_the_integer_kernels_compute_what_the_graph_says(integers: onnx.ModelProto) -> None:
    """The same graph with its codes decoded before every layer, in float32."""
    fused, decoded = run(integers, IMAGES), run(integers, IMAGES, fused=False)
    assert cosines(fused["saliency"], decoded["saliency"]).min() > 0.99
    np.testing.assert_allclose(fused["plain_logits"], decoded["plain_logits"], rtol=0.02, atol=0.02)


def test_the_batch_stays_dynamic(integers: onnx.ModelProto) -> None:
    whole, parts = run(integers, IMAGES), [run(integers, IMAGES[i : i + 1]) for i in range(len(IMAGES))]
    for name in OUTPUTS:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_an_int8_saliency_under_a_float32_second_pass(forward: onnx.ModelProto) -> None:
    mixed = in_integers(forward, "fp32", "int8", **SPACE)
    got, want = run(mixed, IMAGES), run(two_pass(forward, **SPACE), IMAGES)
    assert cosines(got["logits"], want["logits"]).min() > 0.9999
    (metadata,) = [entry.value for entry in mixed.metadata_props if entry.key == PRECISION_KEY]
    assert metadata == "fp32-int8"


def test_the_file_holds_the_weights_in_8_bits() -> None:
    """Twice: the backward's outputs are the forward's inputs, and have scales of their own."""
    forward = forward_onnx(wide_cnn())
    graph = in_integers(forward, **SPACE)
    assert graph.ByteSize() < 0.6 * forward.ByteSize()


def wide_cnn() -> nn.Module:
    torch.manual_seed(0)
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 128, 3, 1, 1), nn.BatchNorm2d(128), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5),
        )
    )  # fmt: skip


class Everything(nn.Module):
    """What else a classifier moves, masks and averages: ReLU6, AveragePool, Concat, Split, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.BatchNorm2d(16), nn.ReLU6())
        self.left = nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 3, 2, 1, groups=24), nn.BatchNorm2d(24), nn.ReLU6())
        self.head = nn.Sequential(
            nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stem(x * 4).chunk(2, 1)
        return self.head(self.depthwise(torch.cat([self.left(a), b], 1)) * 2)  # type: ignore[no-any-return]


def test_other_operators_are_right_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    forward = forward_onnx(randomised(Everything()))
    graph = in_integers(forward, **SPACE)
    got, want = (
        run(graph, IMAGES, optimised=tmp_path / "optimised.onnx"),
        run(two_pass(forward, **SPACE), IMAGES),
    )
    assert np.median(cosines(got["saliency"], want["saliency"])) > 0.9
    assert cosines(got["plain_logits"], want["plain_logits"]).min() > 0.99
    found = Counter(node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node)
    assert found["QGemm"] >= 2
    assert not found["Conv"]


@exact_kernels
def test_a_relu6_masks_what_it_saturates() -> None:
    """The bound is the last code of its grid: beyond it the gradient is 0, not that of what lies below.

    Channel by channel the pre-activation lies below 0, inside, or beyond 6, for every image.
    """
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 1)
    with torch.no_grad():
        stem.weight.mul_(0.3)
        stem.bias.copy_(torch.tensor([-3.0, 3.0, 9.0, 3.0] * 4))  # type: ignore[union-attr]
    model = nn.Sequential(stem, nn.BatchNorm2d(16), nn.ReLU6(), nn.Flatten(), nn.Linear(16 * 16 * 16, 5))
    forward = forward_onnx(model.eval())
    graph = in_integers(forward, eta=0.0)
    got, want = run(graph, IMAGES)["saliency"], run(two_pass(forward, eta=0.0), IMAGES)["saliency"]
    assert cosines(got, want).min() > 0.999


@exact_kernels
def test_a_relu6_beside_larger_values_saturates_where_it_should() -> None:
    """A Concat gives both one grid, which goes on beyond 6."""

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
            self.bn = nn.BatchNorm2d(16)
            self.head = nn.Linear(32 * 16 * 16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bounded = nn.functional.relu6(self.bn(self.small(x)))
            return self.head(torch.cat([bounded, torch.relu(self.large(x))], 1).flatten(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Beside()
    with torch.no_grad():
        model.small.weight.mul_(0.3)
        model.small.bias.copy_(torch.tensor([-3.0, 3.0, 9.0, 3.0] * 4))  # type: ignore[union-attr]
        model.large.bias.fill_(20.0)  # type: ignore[union-attr]
    forward = forward_onnx(model.eval())
    graph = in_integers(forward, eta=0.0)
    got, want = run(graph, IMAGES), run(two_pass(forward, eta=0.0), IMAGES)
    assert cosines(got["saliency"], want["saliency"]).min() > 0.999
    assert cosines(got["plain_logits"], want["plain_logits"]).min() > 0.999


def test_a_graph_that_is_no_two_pass_graph_is_refused(forward: onnx.ModelProto) -> None:
    with pytest.raises(GraphError, match="not a two-pass graph"):
        lower_to_integers(load_classifier(forward).model, Variant.of("int8"), IMAGES)


# For TensorRT


@pytest.fixture(scope="module")
def simulated(forward: onnx.ModelProto) -> onnx.ModelProto:
    graph = two_pass_graph(forward, GraphOptions("int8"), **SPACE)
    scales = gradient_scales(graph, IMAGES)
    return to_proto(lower(graph, Variant.of("int8"), gradient_scales=scales, images=IMAGES).graph)


def test_weights_are_stored_once_as_codes_and_the_backward_reads_them_in_fp16(
    simulated: onnx.ModelProto,
) -> None:
    weights = {t.name: t for t in simulated.graph.initializer if ".weight" in t.name and len(t.dims) == 4}
    assert all(name.endswith("/codes") for name in weights)
    assert {t.data_type for t in weights.values()} == {onnx.TensorProto.INT8}
    decoded = {n.output[0]: n.input[0] for n in simulated.graph.node if n.op_type == "DequantizeLinear"}
    casts = {n.output[0]: n.input[0] for n in simulated.graph.node if n.op_type == "Cast"}
    backward = [n for n in simulated.graph.node if n.op_type == "ConvTranspose"]
    assert backward
    assert all(casts[n.input[1]] in decoded for n in backward)


def test_zero_points_are_zero_as_tensorrt_wants_them(simulated: onnx.ModelProto) -> None:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in simulated.graph.initializer}
    pairs = [n for n in simulated.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert all(constants[n.input[2]].dtype == np.int8 and not constants[n.input[2]].any() for n in pairs)


def test_the_saliency_survives_in_tensorrts_form(
    forward: onnx.ModelProto, simulated: onnx.ModelProto
) -> None:
    """It was all zeros once, under right logits."""
    got, want = run(simulated, IMAGES, fused=False), run(two_pass(forward, **SPACE), IMAGES)
    assert np.median(cosines(got["saliency"], want["saliency"])) > 0.97
    assert cosines(got["logits"], want["logits"]).min() > 0.99


@pytest.mark.parametrize("words", [("int8",), ("fp32", "int8"), ("int8", "fp16"), ("fp16", "int8")])
def test_tensorrt_builds_every_mixture(
    forward: onnx.ModelProto, words: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
    options = GraphOptions(*words)
    graph = two_pass_graph(forward, options, **SPACE)
    save_graph(lower(graph, options.variant, images=IMAGES).graph, tmp_path / "m.onnx")
    info = build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", flavor="rtx")
    assert info.precision == options.variant.label
