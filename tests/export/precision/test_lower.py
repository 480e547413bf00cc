"""Two-pass graphs in lower precision: which types are where, and that the saliency survives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from sad_export import GraphError, GraphOptions
from sad_export.graph.write import to_proto
from sad_export.loading import load_classifier
from sad_export.precision import Variant, gradient_scales, lower
from sad_export.tensorrt import build_engine
from tests.support.differentiate import cosines, run
from tests.support.last_weight import with_last_weight
from tests.support.models import forward_onnx, randomised, small_cnn, two_pass_graph

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = np.random.default_rng(0).random((8, 3, 16, 16), dtype=np.float32)
OUTPUTS = ["logits", "saliency", "plain_logits"]
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


class Written(NamedTuple):
    graph: onnx.ModelProto
    emulation: onnx.ModelProto
    kept: Mapping[str, str]


def made(forward: onnx.ModelProto, *words: str) -> tuple[onnx.ModelProto, Written]:
    """The float32 graph, and the lowered one."""
    options = GraphOptions(*words)
    graph = two_pass_graph(forward, options, eta=0.3, normalization="rms", mean=MEAN, std=STD)
    lowered = lower(graph, options.variant)
    return to_proto(graph), Written(to_proto(lowered.graph), to_proto(lowered.emulation), lowered.kept)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value and initializer."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**found, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


@pytest.mark.parametrize("words", [("fp16",), ("bf16",), ("fp32", "fp16")])
def test_the_image_and_all_outputs_stay_float32(forward: onnx.ModelProto, words: tuple[str, ...]) -> None:
    _, lowered = made(forward, *words)
    for model in (lowered.graph, lowered.emulation):
        graph = model.graph
        assert [value.name for value in [*graph.input, *graph.output]] == ["image", *OUTPUTS]
        kinds = {value.type.tensor_type.elem_type for value in [*graph.input, *graph.output]}
        assert kinds == {TensorProto.FLOAT}


def test_each_weight_is_stored_once_and_in_half_the_bytes(forward: onnx.ModelProto) -> None:
    graph, lowered = made(forward, "fp16")
    before = {t.name: t for t in graph.graph.initializer if len(t.dims) == 4 and np.prod(t.dims) > 200}
    after = {t.name: t for t in lowered.graph.graph.initializer}
    stem = next(node.input[1] for node in graph.graph.node if node.op_type == "Conv")
    for name in before.keys() - {stem}:
        assert after[name].data_type == TensorProto.FLOAT16
        # First pass, backward and second pass.
        assert sum(name in node.input for node in lowered.graph.graph.node) == 3
    assert len(after) <= len(graph.graph.initializer) + 1


def test_image_space_is_float32(forward: onnx.ModelProto) -> None:
    """x = (image − mean) / std, n(S) and x + η·n(S)."""
    _, lowered = made(forward, "fp16")
    of = types(lowered.graph)
    names = [node for node in lowered.graph.graph.node if node.name.startswith(("normalise/", "mix/"))]
    assert len([node for node in names if node.op_type != "Cast"]) >= 8
    floats = {of[name] for node in names if node.op_type != "Cast" for name in [*node.input, *node.output]}
    assert floats <= {TensorProto.FLOAT, TensorProto.INT64}


def test_a_saliency_in_another_precision_leaves_the_second_pass_as_it_is(forward: onnx.ModelProto) -> None:
    graph, lowered = made(forward, "fp32", "fp16")
    of = types(lowered.graph)
    second = [node for node in lowered.graph.graph.node if node.name.startswith("second/")]
    assert {of[name] for node in second for name in node.output} == {TensorProto.FLOAT}
    backward = [node for node in lowered.graph.graph.node if node.op_type == "ConvTranspose"]
    assert {of[node.output[0]] for node in backward} == {TensorProto.FLOAT16}
    # Weights are stored in float32 for the second pass and cast for the others: no second copy in the file.
    assert lowered.graph.ByteSize() < 1.2 * graph.ByteSize()


@pytest.mark.parametrize(
    ("words", "least"), [(("fp16",), 0.999), (("bf16",), 0.99), (("fp32", "bf16"), 0.99)]
)
def test_the_rounding_form_computes_what_the_types_say(
    forward: onnx.ModelProto, words: tuple[str, ...], least: float
) -> None:
    """Against ONNX's reference, which computes in the types themselves and rounds every value."""
    graph, lowered = made(forward, *words)
    reference: Any = ReferenceEvaluator(lowered.graph)
    typed = dict(zip(OUTPUTS, reference.run(OUTPUTS, {"image": IMAGES}), strict=True))
    rounded = dict(zip(OUTPUTS, run(lowered.emulation, image=IMAGES), strict=True))
    exact = dict(zip(OUTPUTS, run(graph, image=IMAGES), strict=True))
    for one, other in ((typed, rounded), (rounded, exact)):
        assert np.median(cosines(one["saliency"], other["saliency"])) >= least
        assert (one["plain_logits"].argmax(1) == other["plain_logits"].argmax(1)).mean() >= 7 / 8
    assert not np.array_equal(rounded["plain_logits"], exact["plain_logits"])


def test_the_saliency_survives_a_max_pool_where_a_runtime_leaves_values_unrounded(
    forward: onnx.ModelProto,
) -> None:
    """onnxruntime's CPU does: a maximum then is not equal to the rounded input that it came from."""
    graph, lowered = made(forward, "fp16")
    _, narrow, _ = run(lowered.graph, image=IMAGES)
    _, wide, _ = run(graph, image=IMAGES)
    assert np.median(cosines(narrow, wide)) >= 0.999
    assert "compared for equality" in lowered.kept.values()


def test_the_stem_before_the_first_max_pool_stays_float32(forward: onnx.ModelProto) -> None:
    _, lowered = made(forward, "fp16")
    of = types(lowered.graph)
    pool = next(node for node in lowered.graph.graph.node if node.op_type == "MaxPool")
    assert of[pool.input[0]] == of[pool.output[0]] == TensorProto.FLOAT
    assert "in the stem, before the first MaxPool" in lowered.kept.values()


def test_a_weight_beyond_fp16_stays_float32_and_finite(forward: onnx.ModelProto) -> None:
    large = with_last_weight(
        forward, lambda weight: np.where(weight == weight.max(), np.float32(1e5), weight)
    )
    _, lowered = made(large, "fp16")
    assert any("reaches 1e+05, beyond fp16" in reason for reason in lowered.kept.values())
    arrays = [numpy_helper.to_array(tensor) for tensor in lowered.graph.graph.initializer]
    assert all(np.isfinite(array).all() for array in arrays if array.dtype != np.int64)
    assert any(array.max() == np.float32(1e5) for array in arrays if array.dtype == np.float32)
    _, in_bf16 = made(large, "bf16")
    assert not any("beyond" in reason for reason in in_bf16.kept.values())


def test_an_epsilon_that_fp16_cannot_hold_stays_float32() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (x.abs() + 1e-7)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Scaled(), nn.Flatten(), nn.Linear(784, 5))
    _, lowered = made(forward_onnx(randomised(model)), "fp16")
    assert any("is at most 1e-07" in reason for reason in lowered.kept.values())


def test_bf16_leaves_to_float32_what_tensorrt_lacks() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Flatten(), nn.Linear(784, 5)
    )
    _, lowered = made(forward_onnx(randomised(model)), "bf16")
    of = types(lowered.graph)
    operators = [node.op_type for node in lowered.graph.graph.node]
    assert "ConvTranspose" not in operators
    activations = [node for node in lowered.graph.graph.node if node.op_type == "HardSwish"]
    assert activations and {of[node.output[0]] for node in activations} == {TensorProto.FLOAT}
    convolutions = [node for node in lowered.graph.graph.node if node.op_type == "Conv"]
    assert {of[node.output[0]] for node in convolutions} == {TensorProto.BFLOAT16}


def test_bf16_is_written_in_an_opset_that_has_it(forward: onnx.ModelProto) -> None:
    """Conv takes bf16 from opset 22 on."""
    _, lowered = made(forward, "bf16")
    assert forward.opset_import[0].version < 22 <= lowered.graph.opset_import[0].version


def test_a_graph_in_half_precision_is_refused(forward: onnx.ModelProto) -> None:
    lowered = lower(two_pass_graph(forward, eta=0.3), Variant.of("fp16"))
    with pytest.raises(GraphError, match="are in half precision already") as caught:
        lower(lowered.graph, Variant.of("bf16"))
    assert "give the float32 classifier" in str(caught.value.hint)


def test_a_graph_without_parts_is_refused(forward: onnx.ModelProto) -> None:
    with pytest.raises(GraphError, match=r"not a two-pass graph: .* belongs to none of its parts"):
        lower(load_classifier(forward).model, Variant.of("fp16"))


def test_the_float32_graph_is_not_changed(forward: onnx.ModelProto) -> None:
    graph = two_pass_graph(forward, eta=0.3)
    before = to_proto(graph).SerializeToString(deterministic=True)
    lower(graph, Variant.of("fp16"), gradient_scales=gradient_scales(graph, IMAGES))
    assert to_proto(graph).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("words", [("fp16",), ("bf16",), ("fp32", "fp16")])
def test_an_engine_builds_without_a_gpu_and_carries_the_name(
    forward: onnx.ModelProto, words: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
    _, lowered = made(forward, *words)
    onnx.save(lowered.graph, str(tmp_path / "graph.onnx"))
    info = build_engine(tmp_path / "graph.onnx", tmp_path / "graph.plan", flavor="rtx", batch=(1, 4, 8))
    assert info.precision == Variant.of(*words).label


def test_a_graph_that_says_nothing_of_itself_is_named_by_its_weights(
    forward: onnx.ModelProto, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")
    _, lowered = made(forward, "fp16")
    del lowered.graph.metadata_props[:]
    onnx.save(lowered.graph, str(tmp_path / "graph.onnx"))
    info = build_engine(tmp_path / "graph.onnx", tmp_path / "graph.plan", flavor="rtx", batch=(1, 4, 8))
    assert info.precision == "fp16"
