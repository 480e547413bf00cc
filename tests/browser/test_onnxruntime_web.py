"""Graphs of the exporter in onnxruntime-web, under Node: the same numbers as in onnxruntime."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torchvision.models import get_model

from sad_export import input_gradient, two_pass
from tests.support.models import forward_onnx, randomised

SIDE = 32


@functools.cache
def forward(network: str) -> onnx.ModelProto:
    torch.manual_seed(0)
    return forward_onnx(randomised(get_model(network, num_classes=10)), (3, SIDE, SIDE))


def defended(model: onnx.ModelProto) -> onnx.ModelProto:
    return two_pass(model, eta=0.01, normalization="rms")


def run_in_node(folder: Path, graph: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    node = shutil.which("node")
    if not node:
        pytest.skip("no Node here")
    image.tofile(graph.parent / "image.f32")
    shape = ",".join(map(str, image.shape))
    made = subprocess.run(
        [node, "check.mjs", graph, graph.parent / "image.f32", shape, graph.parent],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    shapes = json.loads(made.stdout)["shapes"]
    return {
        name: np.fromfile(graph.parent / f"{name}.f32", np.float32).reshape(shapes[name]) for name in shapes
    }


@pytest.mark.parametrize("written", [defended, input_gradient], ids=["two-pass", "gradient"])
@pytest.mark.parametrize("network", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_numbers_are_those_of_onnxruntime(
    browser_example: Path,
    tmp_path: Path,
    network: str,
    written: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> None:
    graph = tmp_path / "graph.onnx"
    onnx.save(written(forward(network)), graph)
    images = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    found = run_in_node(browser_example, graph, images)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert sorted(found) == sorted(names)
    for name, expected in zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True):
        axes = tuple(range(1, expected.ndim))
        errors = np.abs(found[name] - expected).max(axis=axes) / np.abs(expected).max(axis=axes)
        # Of the middle image of three: where a ReLU's input is a rounding error, S of that image jumps.
        assert np.median(errors) < 1e-5, (name, errors)
