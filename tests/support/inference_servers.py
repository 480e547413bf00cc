"""Real servers of the Open Inference Protocol beside Triton, on loopback: KServe's and MLServer.

Neither comes with a runtime for ONNX, so each gets the few lines that its users write: a model class that
runs the graph in onnxruntime. They run in an environment of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support.triton_server import Address, free_ports

_VARIABLE = "SAD_DEPLOY_INFERENCE_SERVERS"
_READY_SECONDS = 120

_KSERVE = """
import json, logging, sys
import kserve, onnxruntime

given = json.loads(sys.argv[1])

class GraphModel(kserve.Model):
    def load(self):
        options = {"providers": ["CPUExecutionProvider"]}
        self.session = onnxruntime.InferenceSession(given["graph"], **options)
        self.ready = True

    async def get_input_types(self):
        return given["inputs"]

    async def get_output_types(self):
        return given["outputs"]

    def predict(self, payload, headers=None, response_headers=None):
        images = payload.inputs[0].as_numpy()
        names = [output.name for output in self.session.get_outputs()]
        outputs = []
        for name, values in zip(names, self.session.run(names, {"image": images})):
            output = kserve.InferOutput(name, list(values.shape), "FP32")
            output.set_data_from_numpy(values, binary_data=given["binary"])
            outputs.append(output)
        return kserve.InferResponse(payload.id, self.name, outputs)

model = GraphModel(given["name"])
model.load()
server = kserve.ModelServer(http_port=given["http"], grpc_port=given["grpc"], workers=1)
server.start([model])
"""

_MLSERVER = """
import asyncio
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class GraphModel(MLModel):
    async def load(self):
        await asyncio.sleep(self.settings.parameters.extra["loading"])
        options = {"providers": ["CPUExecutionProvider"]}
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, **options)
        return True

    async def predict(self, payload):
        images = NumpyCodec.decode_input(payload.inputs[0])
        names = [output.name for output in self.session.get_outputs()]
        outputs = zip(names, self.session.run(names, {"image": images}))
        encoded = [NumpyCodec.encode_output(name, values) for name, values in outputs]
        return InferenceResponse(model_name=self.name, outputs=encoded)
"""


class Kind(enum.StrEnum):
    """Whose server."""

    KSERVE = "kserve"
    MLSERVER = "mlserver"


def why_missing() -> str | None:
    """Why they cannot be started here, if so."""
    folder = os.environ.get(_VARIABLE)
    if not folder:
        return f"{_VARIABLE} names no environment with KServe and MLServer"
    return None if (Path(folder) / "bin" / "mlserver").is_file() else f"there is no mlserver in {folder}"


@dataclasses.dataclass(frozen=True)
class Model:
    """A graph as a server serves it.

    Attributes:
        name: There.
        graph: The file.
        shape: (C, H, W), said in the metadata; None says nothing of inputs and outputs.
        binary: Whether KServe's model answers in bytes.
        loading: Seconds that MLServer listens before it has the model.
    """

    name: str
    graph: Path
    shape: Sequence[int] | None
    binary: bool = True
    loading: float = 0

    def metadata(self) -> dict[str, Any]:
        """Its inputs and outputs, of any batch."""
        if self.shape is None:
            return {"inputs": [], "outputs": []}
        images = {"datatype": "FP32", "shape": [-1, *self.shape]}
        logits = {"datatype": "FP32", "shape": [-1, -1]}
        outputs = [{"name": name, **logits} for name in ("logits", "plain_logits")]
        return {
            "inputs": [{"name": "image", **images}],
            "outputs": [*outputs, {"name": "saliency", **images}],
        }


@contextlib.contextmanager
def serving(kind: Kind, model: Model, work: Path, *, ports: Sequence[int] = ()) -> Iterator[Address]:
    """A server of one model, ready for requests; on free ports unless HTTP's and gRPC's are given."""
    work.mkdir(exist_ok=True)
    http, grpc = ports or free_ports(2)
    command = (_kserve if kind is Kind.KSERVE else _mlserver)(model, work, http, grpc)
    with (work / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=work, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(process, f"http://127.0.0.1:{http}/v2/models/{model.name}/ready", work / "server.log")
        yield Address(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _python() -> str:
    return str(Path(os.environ[_VARIABLE]) / "bin" / "python")


def _kserve(model: Model, work: Path, http: int, grpc: int) -> list[str]:
    (work / "serve.py").write_text(_KSERVE, encoding="utf-8")
    given = {"name": model.name, "graph": str(model.graph), "binary": model.binary, **model.metadata()}
    return [_python(), "serve.py", json.dumps({**given, "http": http, "grpc": grpc})]


def _mlserver(model: Model, work: Path, http: int, grpc: int) -> list[str]:
    settings = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
    }
    folder = work / "served"
    folder.mkdir(exist_ok=True)
    of_model = {"name": model.name, "implementation": "graph_model.GraphModel", **model.metadata()}
    of_model["parameters"] = {"uri": str(model.graph), "extra": {"loading": model.loading}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model-settings.json").write_text(json.dumps(of_model), encoding="utf-8")
    (folder / "graph_model.py").write_text(_MLSERVER, encoding="utf-8")
    return [str(Path(_python()).parent / "mlserver"), "start", "served"]


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready: {log.read_text(errors='replace')[-3000:]}")
