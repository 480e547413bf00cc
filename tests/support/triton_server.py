"""The real Triton Inference Server on loopback, out of a wheel with its core and the Python backend alone.

What the wheel has no backend for is swapped before it starts: a model of the onnxruntime backend runs its
``model.onnx`` in onnxruntime under the Python backend. All else of a repository is read as it is. The wheel's
Python knows no packages: every ``model.py`` is told where they are, beside the wheel, then the tests'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

_VARIABLE = "SAD_DEPLOY_TRITON"
_READY_SECONDS = 120

STAND_IN = """
import numpy as np
import onnxruntime
import pathlib
import triton_python_backend_utils as triton

class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()  # as sad_runtime's: waiting threads leave the cores to others
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.log = folder.parent / "batches.log"

    def execute(self, requests):
        images = [triton.get_input_tensor_by_name(each, "image").as_numpy() for each in requests]
        wanted = {name for request in requests for name in request.requested_output_names()}
        names = [output.name for output in self.session.get_outputs() if output.name in wanted]
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        outputs = self.session.run(names, {"image": batch})
        with self.log.open("a") as log:
            log.write(f"{len(requests)} {sum(map(len, images))}\\n")
        ends = np.cumsum([len(each) for each in images])[:-1]
        split = [np.split(output, ends) for output in outputs]
        return [
            triton.InferenceResponse(
                [triton.Tensor(name, parts[i]) for name, parts in zip(names, split)
                 if name in request.requested_output_names()]
            )
            for i, request in enumerate(requests)
        ]
"""


def why_missing() -> str | None:
    """Why the server cannot be started here, if so."""
    folder = os.environ.get(_VARIABLE)
    if not folder:
        return f"{_VARIABLE} names no folder with Triton's wheel"
    return None if _binary(Path(folder)).is_file() else f"there is no tritonserver in {folder}"


def _binary(folder: Path) -> Path:
    return folder / "pytriton" / "tritonserver" / "bin" / "tritonserver"


def swapped(repository: Path, copy: Path) -> Path:
    """A repository whose onnxruntime models run under the Python backend."""
    shutil.copytree(repository, copy)
    for configuration in copy.glob("*/config.pbtxt"):
        text = configuration.read_text(encoding="utf-8")
        if 'backend: "onnxruntime"' in text:
            text = text.replace('backend: "onnxruntime"', 'backend: "python"')
            configuration.write_text(
                text.replace('default_model_filename: "model.onnx"\n', ""), encoding="utf-8"
            )
            for version in configuration.parent.glob("[0-9]*"):
                (version / "model.py").write_text(STAND_IN, encoding="utf-8")
    packages = [os.environ[_VARIABLE], *(each for each in sys.path if each)]
    for model in copy.glob("*/*/model.py"):
        text = model.read_text(encoding="utf-8")
        model.write_text(f"import sys\nsys.path[:0] = {packages!r}\n{text}", encoding="utf-8")
    return copy


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens, and its process."""

    http: str
    grpc: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it; its clients find nobody."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(repository: Path, work: Path, *, ports: Sequence[int] = ()) -> Iterator[Address]:
    """A server of a repository, ready for requests; on free ports unless HTTP's and gRPC's are given."""
    wheel = Path(os.environ[_VARIABLE])
    backends = work / "backends"
    if not backends.exists():
        root = _binary(wheel).parents[1]
        shutil.copytree(root / "backends" / "python", backends / "python")
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, backends / "python" / stub.name)
    http, grpc = ports or free_ports(2)
    process = subprocess.Popen(
        [
            str(_binary(wheel)),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--allow-metrics=false",
            "--exit-timeout-secs=2",
        ],
        env={**os.environ, "LD_LIBRARY_PATH": str(wheel / "nvidia_pytriton.libs")},
        stdout=(log := (work / "triton.log").open("wb")),
        stderr=subprocess.STDOUT,
    )
    try:
        _wait(process, http, work / "triton.log")
        yield Address(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"tritonserver ended: {log.read_text(errors='replace')[-3000:]}")
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"tritonserver is not ready: {log.read_text(errors='replace')[-3000:]}")


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(each.getsockname()[1] for each in held)
    for each in held:
        each.close()
    return ports
