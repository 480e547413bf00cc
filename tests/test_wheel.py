"""What a serving host installs: the wheel alone, in a clean environment without torch and onnx."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from sad_export import two_pass
from sad_runtime.bundle import write_bundle
from sad_runtime.manifest import (
    Color,
    Defence,
    Graph,
    InputSpace,
    Manifest,
    ModelSource,
    Preprocessing,
)
from tests.support.models import forward_onnx, small_cnn

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path | None = None, code: int = 0) -> str:
    """stdout of a command that must end with ``code``."""
    finished = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert finished.returncode == code, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that holds the wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    return folder / "bin"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and three images, one of them broken."""
    folder = tmp_path_factory.mktemp("job")
    with write_bundle(folder / "sad-model") as draft:
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        onnx.save(
            two_pass(forward_onnx(small_cnn()), eta=0.3, mean=mean, std=std), str(draft.path("model.onnx"))
        )
        draft.manifest = Manifest(
            model=ModelSource("small", 5),
            classes=("a", "b", "c", "d", "e"),
            preprocessing=Preprocessing(Color.RGB, resize=16, crop=(16, 16)),
            input_space=InputSpace(mean, std),
            defence=Defence(0.3),
            calibration={},
            graphs=(Graph("model.onnx", "fp32", "auto", "portable", {}),),
        )
    (folder / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    return folder


def test_the_wheel_holds_three_typed_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"sad_deploy", "sad_export", "sad_runtime"}
    assert {f"{top}/py.typed" for top in tops} <= set(names)
    assert "sad_deploy/models/digits.safetensors" in names


def test_infer_runs_without_torch_and_onnx(clean: Path, job: Path) -> None:
    installed = {
        entry["name"].lower() for entry in json.loads(run(clean / "pip", "list", "--format", "json"))
    }
    assert not installed & {"torch", "onnx", "onnx-ir", "torchvision", "scikit-learn"}
    pictures = ("--saliency", "overlays", "--report", "report.html")
    run(clean / "sad-deploy", "infer", "images/", *pictures, cwd=job, code=3)
    rows = [json.loads(line) for line in (job / "predictions.jsonl").read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["0.png", "1.png", "broken.jpg"]
    assert rows[0]["class"] in "abcde"
    assert "error" in rows[2]
    assert len(list((job / "overlays").rglob("*.png"))) == 2
    assert "broken.jpg" in (job / "report.html").read_text()


def test_benchmark_runs_without_onnx_and_leaves_the_single_pass_out(clean: Path, job: Path) -> None:
    run(clean / "sad-deploy", "benchmark", "--batch", "2", "--seconds", "0", cwd=job)
    (measured,) = json.loads((job / "benchmark.json").read_text())["runs"]
    assert measured["single_pass"] is None
    assert measured["two_passes"]["images_per_second"] > 0


def test_inspect_and_doctor_run_without_torch(clean: Path, job: Path) -> None:
    assert "small" in run(clean / "sad-deploy", "inspect", cwd=job)
    found = {entry["what"]: entry for entry in json.loads(run(clean / "sad-deploy", "doctor", "--json"))}
    assert found["onnxruntime on cpu"]["works"]
    assert found["torch"]["remedy"] == 'pip install "sad-deploy[calibrate]"'


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["calibrate"], "calibrate"),
        (["export", "sad-model"], "calibrate"),
        (["defend", "f.onnx", "--eta", "1"], "export"),
        (["benchmark", "--plot", "p.png"], "benchmark"),
        (["infer", "images", "--out", "p.parquet"], "parquet"),
    ],
)
def test_a_missing_extra_is_one_line(clean: Path, job: Path, command: list[str], extra: str) -> None:
    finished = subprocess.run([clean / "sad-deploy", *command], cwd=job, capture_output=True, text=True)
    assert finished.returncode == 2
    error, hint = finished.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint == f'hint: pip install "sad-deploy[{extra}]"'
