"""What runs on a real GPU: `python -m pytest tests/gpu`. Elsewhere every test is skipped with the reason.

Needs an NVIDIA GPU, torch, onnxruntime and this package's extras, and nothing from a network. An engine is
built by each flavor of TensorRT that is installed and runs on this GPU.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from sad_export import two_pass
from sad_export.tensorrt import build_engine
from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend, Provider
from sad_runtime.backends.tensorrt import TensorRTBackend
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import UserError
from sad_runtime.tensorrt import EngineInfo, Flavor, load_tensorrt
from tests.support.models import forward_onnx, small_cnn

Array = npt.NDArray[np.float32]

OUTPUTS = ("logits", "saliency", "plain_logits")
PROFILE = (2, 4, 8)
_DATA_CENTRE = ((9, 0), (10, 0), (10, 3))
"""Compute capabilities that are no target of TensorRT for RTX; whether its engines load there is not said."""


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    if problem := cuda_devices().problem:
        pytest.skip(f"needs an NVIDIA GPU: {problem}")


@pytest.fixture(scope="session")
def graph_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network's two passes, (3, 16, 16)."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(two_pass(forward_onnx(small_cnn()), eta=0.3, mean=(0.5,) * 3, std=(0.25,) * 3), str(path))
    return path


@dataclasses.dataclass(frozen=True)
class Built:
    """An engine.

    Attributes:
        plan: Its file.
        info: Its sidecar.
    """

    plan: Path
    info: EngineInfo

    @property
    def flavor(self) -> Flavor:
        return Flavor(self.info.flavor)

    @property
    def tolerance(self) -> float:
        """Of logits, against float32 on the CPU."""
        return 1e-2 if self.info.tf32 else 1e-4


@pytest.fixture(scope="session", params=list(Flavor))
def built(
    request: pytest.FixtureRequest, graph_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    flavor: Flavor = request.param
    try:
        load_tensorrt(flavor, need="this test")
    except UserError as error:
        pytest.skip(error.message)
    plan = tmp_path_factory.mktemp(flavor.value) / "model.plan"
    info = build_engine(graph_path, plan, flavor=flavor.value, batch=PROFILE)
    if flavor is Flavor.RTX and cuda_devices().devices[0].compute_capability in _DATA_CENTRE:
        try:
            TensorRTBackend(plan, flavor, tf32=info.tf32).close()
        except UserError as error:
            pytest.skip(error.message)
    return Built(plan, info)


@pytest.fixture
def engine(built: Built, tmp_path: Path) -> Built:
    """The same engine in a folder of its own, without compiled kernels."""
    for file in (built.plan, built.plan.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    return dataclasses.replace(built, plan=tmp_path / built.plan.name)


@pytest.fixture(scope="session")
def cpu(graph_path: Path) -> Iterator[OnnxRuntimeBackend]:
    with OnnxRuntimeBackend(graph_path, Provider.CPU) as backend:
        yield backend


def images(count: int, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((count, 3, 16, 16), dtype=np.float32)


def assert_close(got: dict[str, Array], wanted: dict[str, Array], tolerance: float) -> None:
    """Logits by value; the saliency by its direction, for a ReLU near zero may flip."""
    for name in got:
        assert got[name].shape == wanted[name].shape
        assert got[name].dtype == np.float32
        if name != "saliency":
            np.testing.assert_allclose(got[name], wanted[name], rtol=tolerance, atol=tolerance)
    if "saliency" in got:
        a, b = (values["saliency"].reshape(len(got["saliency"]), -1) for values in (got, wanted))
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        assert np.median(cosines) >= 1 - tolerance
