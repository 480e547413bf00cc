from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from sad_deploy.classifier import SADClassifier
from sad_export import GraphError, two_pass
from tests.support.differentiate import run
from tests.support.models import forward_onnx, small_cnn

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, 3, 16, 16), dtype=np.float32)


def reference(pixels: np.ndarray, **options: object) -> dict[str, np.ndarray]:
    """SADClassifier in float64, S in the network's input space."""
    x = (torch.from_numpy(pixels).double() - torch.tensor(MEAN).double().reshape(-1, 1, 1)) / torch.tensor(
        STD
    ).double().reshape(-1, 1, 1)
    defended = SADClassifier(small_cnn().double(), **options).defend(x)
    return {name: value.numpy() for name, value in defended._asdict().items()}


@pytest.mark.parametrize("normalization", ["none", "rms", "linf", "sign"])
@pytest.mark.parametrize(
    "clip",
    [None, ((-1.5, -1.0, -0.5), (1.0, 1.5, 2.0)), (-1.0, 1.0)],
    ids=["no clip", "per channel", "one bound"],
)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_two_pass_equals_the_pytorch_classifier(
    forward: onnx.ModelProto, normalization: str, clip: tuple, batch: int
) -> None:
    options = {"eta": 0.3, "normalization": normalization, "clip": clip}
    graph = two_pass(forward, mean=MEAN, std=STD, **options)
    pixels = images(batch)
    want = reference(pixels, **options)
    for got, name in zip(run(graph, image=pixels), ("logits", "saliency", "plain_logits"), strict=True):
        np.testing.assert_allclose(got, want[name], rtol=2e-3, atol=2e-5 if name == "saliency" else 2e-4)


@pytest.mark.parametrize("conv_gradient", ["convtranspose", "conv"])
def test_lowerings_agree(forward: onnx.ModelProto, conv_gradient: str) -> None:
    pixels = images(4)
    want = run(two_pass(forward, eta=0.3), image=pixels)
    for a, b in zip(
        run(two_pass(forward, eta=0.3, conv_gradient=conv_gradient), image=pixels), want, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_names_shapes_and_dynamic_batch_are_the_contract(forward: onnx.ModelProto) -> None:
    graph = two_pass(forward, eta=0.3, mean=MEAN, std=STD).graph
    assert [i.name for i in graph.input] == ["image"]
    assert [o.name for o in graph.output] == ["logits", "saliency", "plain_logits"]
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims[1:] == [3, 16, 16]
    assert isinstance(dims[0], str)


def test_no_operator_that_tensorrt_refuses_and_no_rank_zero_eta(forward: onnx.ModelProto) -> None:
    graph = two_pass(forward, eta=0.3, normalization="rms", mean=MEAN, std=STD).graph
    operators = {n.op_type for n in graph.node}
    assert not operators & {"If", "Loop", "Scan", "MaxUnpool", "Col2Im", "BatchNormalization"}
    assert all(len(n.output) == 1 for n in graph.node if n.op_type == "MaxPool")
    scalars = {t.name for t in graph.initializer if not t.dims}
    # Pad's fill value is rank 0 by the operator's specification; everything else is [1] at least.
    assert {n.op_type for n in graph.node if scalars & set(n.input)} <= {"Pad"}


@pytest.mark.parametrize("conv_gradient", ["auto", "convtranspose", "conv"])
def test_weights_are_stored_once(forward: onnx.ModelProto, conv_gradient: str) -> None:
    """What is added are constants of a few numbers: no flipped, transposed or second copy of a kernel."""
    graph = two_pass(forward, eta=0.3, conv_gradient=conv_gradient).graph
    weights = {t.name for t in forward.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert weights <= {t.name for t in graph.initializer}
    assert max(np.prod(t.dims) for t in graph.initializer if t.name not in weights) <= 16


def test_the_forward_graph_is_not_modified(forward: onnx.ModelProto) -> None:
    before = forward.SerializeToString()
    two_pass(forward, eta=0.3, mean=MEAN, std=STD)
    assert forward.SerializeToString() == before


def test_a_zero_saliency_stays_zero_under_every_normalization() -> None:
    """A network whose last layer ignores its input: S = 0, so both passes are equal and finite."""
    model = small_cnn()
    torch.nn.init.zeros_(model[-1].weight)
    forward = forward_onnx(model)
    for normalization in ("none", "rms", "linf", "sign"):
        logits, saliency, plain = run(
            two_pass(forward, eta=0.3, normalization=normalization), image=images(2)
        )
        assert not saliency.any()
        np.testing.assert_array_equal(logits, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": float("nan")}, "eta must be"),
        ({"eta": -0.1}, "eta must be"),
        ({"eta": 0.1, "mean": (0.5,)}, "come together"),
        ({"eta": 0.1, "std": (0.5,)}, "come together"),
        ({"eta": 0.1, "mean": (0.5,), "std": (0.5,)}, "need 3 values"),
        ({"eta": 0.1, "mean": MEAN, "std": (0.1, 0.0, 0.1)}, "std positive"),
    ],
)
def test_unusable_arguments_are_refused(forward: onnx.ModelProto, options: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        two_pass(forward, **options)


@pytest.mark.parametrize("normalization", ["rms", "linf"])
@pytest.mark.parametrize("size", [1e-25, 1e-9, 1e-4, 1.0, 1e18])
def test_a_saliency_of_any_size_is_normalised_to_the_same(
    forward: onnx.ModelProto, normalization: str, size: float
) -> None:
    """Scaling the last layer scales S and leaves n(S), so that x + η·n(S), and its label, stay."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(forward)
    last = scaled.graph.node[-1]
    for tensor in scaled.graph.initializer:
        if tensor.name in last.input[1:]:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64) * size
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), tensor.name))
    pixels = images(4)
    want = run(two_pass(forward, eta=0.3, normalization=normalization), image=pixels)
    got = run(two_pass(scaled, eta=0.3, normalization=normalization), image=pixels)
    np.testing.assert_allclose(got[1] / size, want[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[0] / size, want[0], rtol=1e-4, atol=1e-5)
