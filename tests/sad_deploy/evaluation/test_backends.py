"""Another runtime than onnxruntime as the judge: OpenVINO, of a bundle, a bare graph, a classifier."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from sad_deploy.evaluation.oracles import Array, Counts, VictimFile
from sad_deploy.evaluation.subject import judged_file
from sad_runtime.bare_graph import BareOptions, bundle_of_graph
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.plain_graph import bundle_of_classifier
from tests.support.command_line import run_command
from tests.support.models import forward_onnx, small_cnn

from .conftest import Digits

pytest.importorskip("openvino")


def answers(victim: VictimFile, images: Array) -> Array:
    return victim.open(Counts()).in_batches(images)


def test_a_bundle_and_its_bare_graph_are_judged_by_openvino(digits: Digits, tmp_path: Path) -> None:
    shutil.copy(digits.bundle / "model.onnx", tmp_path / "alone.onnx")
    pixels = digits.images.pixels[:5]
    bundle = Bundle.open(digits.bundle)
    want = answers(judged_file(bundle, BackendChoice.CPU, "fp32")[2], pixels)
    for opened in (bundle, bundle_of_graph(tmp_path / "alone.onnx", BareOptions())):
        name, graph, victim = judged_file(opened, BackendChoice.OPENVINO, "fp32")
        assert victim.backend == "openvino" and graph.name == name
        np.testing.assert_allclose(answers(victim, pixels), want, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("space", [{}, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}])
def test_a_classifier_is_judged_with_its_mean_and_std(
    space: dict[str, tuple[float, ...]], tmp_path: Path
) -> None:
    onnx.save(forward_onnx(small_cnn()), str(tmp_path / "f.onnx"))
    bundle = bundle_of_classifier(tmp_path / "f.onnx", BareOptions(**space))
    victim = judged_file(bundle, BackendChoice.OPENVINO, "fp32")[2]
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    x = images
    if space:
        mean, std = (np.reshape(space[name], (1, 3, 1, 1)) for name in ("mean", "std"))
        x = ((images - mean) / std).astype(np.float32)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "f.onnx"), providers=["CPUExecutionProvider"])
    want = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.testing.assert_allclose(answers(victim, images), want, rtol=1e-2, atol=1e-2)


def test_a_judge_can_be_sent_to_another_process(digits: Digits, tmp_path: Path) -> None:
    victim = judged_file(Bundle.open(digits.bundle), BackendChoice.OPENVINO, "fp32")[2]
    pixels = digits.images.pixels[:3]
    (tmp_path / "in").write_bytes(pickle.dumps((victim, pixels)))
    script = (
        "import pickle, sys; from sad_deploy.evaluation.oracles import Counts\n"
        "victim, pixels = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "open(sys.argv[2], 'wb').write(pickle.dumps(victim.open(Counts())(pixels)))\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "in", tmp_path / "out"], check=True)
    found = pickle.loads((tmp_path / "out").read_bytes())
    np.testing.assert_allclose(found, answers(victim, pixels), rtol=1e-4, atol=1e-4)


def test_evaluate_says_what_judged(digits: Digits, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(digits.bundle, copy)
    text = run_command(
        "evaluate", str(copy), "--backend", "openvino", "--epsilon", "0.1", "--images", "12",
        "--budget", "1s", "--processes", "2", "--json",
    )  # fmt: skip
    found = json.loads(text)
    assert list(found["files"]) == ["model.onnx"] and found["backend"] == "openvino"
    (result,) = found["results"]
    assert result["clean"]["count"] >= 11 > result["worst_case"]["count"]
