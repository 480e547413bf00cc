"""What ``gradient --way`` writes is checked against the file, each way by what is right for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from torch import nn

from sad_export import VerificationError, attack_graph, two_pass, write_attack
from sad_export.graph.write import to_proto
from sad_export.job import GraphOptions
from sad_export.precision import write_verified
from sad_export.verify import run_graph
from sad_runtime.choices import Way
from tests.support.differentiate import run
from tests.support.models import forward_onnx, small_cnn, two_pass_graph

from .test_attack_graph import ETA, IMAGES, LABELS, smooth_cnn

module = sys.modules["sad_export.write_attack"]


def file_of(folder: Path, network: Callable[[], nn.Module], **options: Any) -> Path:
    path = folder / "file.onnx"
    onnx.save(two_pass(forward_onnx(network()), eta=ETA, normalization="rms", **options), str(path))
    return path


@pytest.mark.parametrize("of", ["loss", "cotangent"])
@pytest.mark.parametrize("network", [small_cnn, smooth_cnn])
@pytest.mark.parametrize("way", Way)
def test_each_way_is_written_and_is_the_attack_graph(
    way: Way, network: Callable[[], nn.Module], of: str, tmp_path: Path
) -> None:
    file, said = file_of(tmp_path, network), []
    made = write_attack(file, tmp_path / "out.onnx", way=way, of=of, notice=said.append)
    assert not said, "nothing is left unchecked"
    feeds = {"label": LABELS} if of == "loss" else {"cotangent": np.eye(5, dtype=np.float32)[LABELS]}
    got = run(onnx.load(str(made.graph)), image=IMAGES, **feeds)
    for one, other in zip(got, run(attack_graph(file, way=way, of=of), image=IMAGES, **feeds), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def scaled(graph: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same graph with its gradient times a factor."""
    for node in graph.graph.node:
        node.output[:] = ["unscaled" if name == "gradient" else name for name in node.output]
    graph.graph.initializer.append(helper.make_tensor("factor", onnx.TensorProto.FLOAT, [], [factor]))
    graph.graph.node.append(helper.make_node("Mul", ["unscaled", "factor"], ["gradient"]))
    return graph


@pytest.mark.parametrize("network", [small_cnn, smooth_cnn])
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("factor", [-1.0, 1.2])
def test_a_wrong_gradient_is_refused(
    way: Way, network: Callable[[], nn.Module], factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path, network)

    def wrong(file: Path, **options: Any) -> onnx.ModelProto:
        found = attack_graph(file, **options)
        # Of the exact way, the constant gradient that it may be compared with is right.
        return scaled(found, factor) if options["way"] == way else found

    monkeypatch.setattr(module, "attack_graph", wrong)
    with pytest.raises(VerificationError, match="slope along the gradient"):
        write_attack(file, tmp_path / "out.onnx", way=way)
    assert not (tmp_path / "out.onnx").exists()


def test_the_constant_gradient_is_not_taken_for_the_exact_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = file_of(tmp_path, smooth_cnn), []

    def first_wrong(file: Path, **options: Any) -> onnx.ModelProto:
        asked.append(options["way"])
        if len(asked) == 1:
            return attack_graph(file, **{**options, "way": "constant"})
        return attack_graph(file, **{**options, "way": "plain"})

    monkeypatch.setattr(module, "attack_graph", first_wrong)
    with pytest.raises(VerificationError, match="slope along the gradient"):
        write_attack(file, tmp_path / "out.onnx", way="exact")


def test_other_logits_than_the_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(tmp_path, smooth_cnn)
    monkeypatch.setattr(module, "attack_graph", lambda file, **o: attack_graph(file, **{**o, "way": "plain"}))
    with pytest.raises(VerificationError, match="error of the logits"):
        write_attack(file, tmp_path / "out.onnx", way="constant")


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize(("variant", "target"), [("fp16", "portable"), ("int8", "portable"), ("int8", "cpu")])
def test_lower_precision_is_checked_as_far_as_it_has_slopes(
    variant: str, target: str, way: Way, tmp_path: Path
) -> None:
    options = GraphOptions(precision=variant, target=target)
    whole = two_pass_graph(forward_onnx(small_cnn()), options, eta=ETA)
    onnx.save(to_proto(whole.clone()), str(tmp_path / "f.onnx"))
    reference = run_graph(tmp_path / "f.onnx", IMAGES)
    low = tmp_path / "low.onnx"
    write_verified(
        whole, low, options.variant, IMAGES, reference, target=options.target, allow_inaccurate=True
    )
    made = write_attack(low, tmp_path / "out.onnx", way=way, notice=lambda message: None)
    _, gradient = run(onnx.load(str(made.graph)), image=IMAGES, label=LABELS)
    assert gradient.any()


def test_a_classifier_has_the_plain_way(tmp_path: Path) -> None:
    onnx.save(forward_onnx(small_cnn()), str(tmp_path / "forward.onnx"))
    made = write_attack(tmp_path / "forward.onnx", tmp_path / "out.onnx", way="plain")
    assert made.outputs[0].startswith("logits") and made.outputs[1].startswith("gradient")
