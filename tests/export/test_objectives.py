"""The gradient of any logit, of all of them times a cotangent, and of the cross-entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sad_export import GraphError, input_gradient, write_gradient
from sad_runtime.errors import UserError
from tests.support.differentiate import Array, run
from tests.support.models import forward_onnx, randomised, small_cnn

IMAGES = np.random.default_rng(0).random((4, 3, 16, 16), dtype=np.float32)
LABELS = np.array([0, 3, 1, 3])
COTANGENTS = np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32)
INPUTS: dict[str, dict[str, Array]] = {
    "label": {"label": LABELS},
    "loss": {"label": LABELS},
    "cotangent": {"cotangent": COTANGENTS},
}


def convolutional() -> nn.Module:
    """The logits come from no linear layer."""
    torch.manual_seed(0)
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
    )  # fmt: skip


def by_autograd(model: nn.Module, of: str) -> Array:
    x = torch.from_numpy(IMAGES).double().requires_grad_()
    logits, labels = model.double()(x), torch.from_numpy(LABELS)
    objectives = {
        "largest": lambda: logits.max(1).values,
        "2": lambda: logits[:, 2],
        "label": lambda: logits.gather(1, labels[:, None]),
        "cotangent": lambda: logits * torch.from_numpy(COTANGENTS).double(),
        "loss": lambda: nn.functional.cross_entropy(logits, labels, reduction="sum"),
    }
    (gradient,) = torch.autograd.grad(objectives[of]().sum(), x)
    model.float()
    return np.asarray(gradient)


@pytest.mark.parametrize("target", ["portable", "cpu"])
@pytest.mark.parametrize("network", [small_cnn, convolutional])
@pytest.mark.parametrize("of", ["largest", "2", "label", "cotangent", "loss"])
def test_the_gradient_is_autograds(of: str, network: object, target: str) -> None:
    model = network()  # type: ignore[operator]
    graph = input_gradient(forward_onnx(model), of=of, target=target)
    image = graph.graph.input[0].name
    _, gradient = run(graph, **{image: IMAGES}, **INPUTS.get(of, {}))
    want = by_autograd(model, of)
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def test_a_number_is_a_class() -> None:
    forward = forward_onnx(small_cnn())
    (a, b) = (input_gradient(forward, of=word).SerializeToString() for word in (2, "2"))
    assert a == b


@pytest.mark.parametrize("of", ["1", "label", "cotangent", "loss"])
def test_it_is_compared_with_the_file(of: str, tmp_path: Path) -> None:
    onnx.save(forward_onnx(small_cnn()), str(tmp_path / "f.onnx"))
    made = write_gradient(tmp_path / "f.onnx", tmp_path / "g.onnx", of=of)
    names = [value.name for value in onnx.load(str(made.graph)).graph.input]
    assert names[1:] == list(INPUTS.get(of, {}))


def test_a_wrong_gradient_of_the_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the label's logit in its place."""
    onnx.save(forward_onnx(small_cnn()), str(tmp_path / "f.onnx"))
    from sad_export.gradient import Seed
    from sad_runtime.choices import Objective

    original = Seed.write
    monkeypatch.setattr(Seed, "write", lambda self, *rest: original(Seed(Objective.LABEL), *rest))
    with pytest.raises(UserError, match="slope along the gradient"):
        write_gradient(tmp_path / "f.onnx", tmp_path / "g.onnx", of="loss")
    assert not (tmp_path / "g.onnx").exists()


def test_an_input_of_that_name_makes_way() -> None:
    forward = forward_onnx(small_cnn())
    for node in forward.graph.node:
        node.input[:] = ["label" if name == "x" else name for name in node.input]
    forward.graph.input[0].name = "label"
    names = [value.name for value in input_gradient(forward, of="label").graph.input]
    assert names == ["forward/label", "label"]


@pytest.mark.parametrize(
    ("of", "message"),
    [("5", "no class 5 among 5"), ("smallest", "no objective 'smallest'"), ("class", "a number")],
)
def test_what_there_is_not_is_refused(of: str, message: str) -> None:
    with pytest.raises((GraphError, UserError), match=message):
        input_gradient(forward_onnx(small_cnn()), of=of)
