"""The ``openvino`` backend: an ONNX graph through OpenVINO, on a CPU or what else it knows by name.

OpenVINO computes a graph of a fixed batch up to a fifth faster than one of any batch, and small batches on
several streams faster than a large one on all cores. So a batch is cut into pieces of one size, which the
streams take in turns, and the last piece is filled up; fewer images than a piece run one by one. Its cache of
compiled graphs is not used: it is larger than the graph and saves half a second at best
(benchmarks/openvino_pieces.py).
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..choices import Precision
from ..devices import available_cores
from ..errors import BackendError, BundleError, OutOfDeviceMemoryError
from ..extras import installed_version, require
from .batch_limit import BatchLimit, Notice, ignore
from .protocol import INPUT

PIECE = 4
"""Images to a request. From 1 to 4 they take about the same time each, and more take longer."""
_MOST_STREAMS = 8
"""As many as a batch of 32 has pieces."""
_NEED = "the openvino backend"
_CAPABILITY = {Precision.FP16: "FP16", Precision.BF16: "BF16"}
_HINTS = {Precision.FP32: "f32", Precision.FP16: "f16", Precision.BF16: "bf16", Precision.INT8: "f32"}


def version() -> str:
    """OpenVINO's, without importing it."""
    return f"OpenVINO {installed_version('openvino')}"


def streams() -> int:
    """How many pieces the CPU computes at once."""
    return min(available_cores(), _MOST_STREAMS)


class OpenVinoBackend:
    """An ONNX graph in OpenVINO; see :class:`~sad_runtime.backends.protocol.Backend`.

    Args:
        model: Path of the graph, or its bytes.
        precision: Label of the graph's precision. OpenVINO would round float32 graphs to bf16 by itself where
            the processor has it; it computes in what the graph says.
        device: OpenVINO's name of it: ``CPU``, ``GPU``, ``NPU``.
        notice: Told once if memory is short and batches become smaller.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: It has no such device, or the device has no instructions for the precision; or it
            cannot read the graph.
        BundleError: The graph's input is not a batch of images of one size.
    """

    name = "openvino"

    def __init__(
        self,
        model: Path | bytes,
        *,
        precision: str = "fp32",
        device: str = "CPU",
        image: str = INPUT,
        notice: Notice = ignore,
    ) -> None:
        openvino: Any = require("openvino", extra="openvino", need=_NEED)
        core = openvino.Core()
        self._device = _known(core, device)
        self._settings = _settings(core, self._device, precision)
        self._core = core
        shown = model.name if isinstance(model, Path) else "the graph"
        with _errors_named(f"{version()} cannot read {shown}"):
            self._model = core.read_model(model if isinstance(model, bytes) else os.fspath(model))
        self.runs_on = f"{version()} on {_described(core, self._device)}"
        self.output_names = tuple(_places(self._model))
        self.input_shape = _image_shape(self._model, shown, image)
        self.metadata: dict[str, str] = _metadata(self._model)
        self._limit = BatchLimit(PIECE, notice=notice, memory="memory")
        self._compiled: dict[int, _Requests] | None = {}
        self._requests(PIECE)  # what cannot be compiled is found now

    @property
    def max_batch(self) -> int | None:
        """Any number: pieces are its own business."""
        return None

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch; see the protocol."""
        if self._compiled is None:
            raise RuntimeError("the backend is closed")
        return self._limit.fit(len(images), lambda size: self._run(images, outputs, size))

    def _run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str], size: int
    ) -> dict[str, npt.NDArray[np.float32]]:
        size = size if len(images) >= size else 1
        with _errors_named(f"the openvino backend failed on a batch of {len(images)}"):
            return self._requests(size).run(images, outputs)

    def _requests(self, size: int) -> _Requests:
        """The graph for batches of one size, compiled when it is first needed."""
        assert self._compiled is not None
        if size not in self._compiled:
            fixed = self._model.clone()
            fixed.reshape([size, *self.input_shape])
            with _errors_named(f"OpenVINO cannot compile the graph for {self._device}"):
                compiled = self._core.compile_model(fixed, self._device, self._settings)
            self._compiled[size] = _Requests(compiled, size)
        return self._compiled[size]

    def close(self) -> None:
        """Drop the compiled graphs."""
        self._compiled = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Requests:
    """A compiled graph of one batch size, with a request for each stream.

    No Python runs in OpenVINO's threads: with a callback, dropping the graph now and then waits for ever.

    Args:
        compiled: OpenVINO's.
        size: Its batch.
    """

    def __init__(self, compiled: Any, size: int) -> None:
        self._size = size
        self._places = _places(compiled)
        self._shapes = [tuple(output.shape)[1:] for output in compiled.outputs]
        streams = compiled.get_property("NUM_STREAMS")
        self._requests = [compiled.create_infer_request() for _ in range(streams)]

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch in pieces, the last one filled up with its last image."""
        count, size = len(images), self._size
        places = {name: self._places[name] for name in outputs}
        got = {name: np.empty((count, *self._shapes[at]), np.float32) for name, at in places.items()}
        running: collections.deque[tuple[Any, int]] = collections.deque()

        def finish() -> None:
            request, start = running.popleft()
            request.wait()
            for name, values in got.items():
                rows = values[start : start + size]
                rows[:] = request.get_output_tensor(places[name]).data[: len(rows)]

        try:
            for number, start in enumerate(range(0, count, size)):
                if len(running) == len(self._requests):
                    finish()
                request = self._requests[number % len(self._requests)]
                request.start_async({0: _filled_up(images[start : start + size], size)})
                running.append((request, start))
            while running:
                finish()
        finally:
            for request, _ in running:  # after an error: nothing may run on
                with contextlib.suppress(Exception):
                    request.wait()
        return got


def _filled_up(piece: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    missing = size - len(piece)
    return np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece


def _places(model: Any) -> dict[str, int]:
    """Which output a name stands for. A value that an Identity names anew has both names."""
    return {name: i for i, output in enumerate(model.outputs) for name in sorted(output.get_names())}


def _known(core: Any, device: str) -> str:
    """The device's name, if OpenVINO finds it here.

    Raises:
        BackendError: It does not.
    """
    found = core.available_devices
    if device.partition(".")[0] not in {name.partition(".")[0] for name in found}:
        raise BackendError(
            f"OpenVINO finds no device {device!r} here, only {', '.join(found)}", hint=f"--device {found[0]}"
        )
    return device


def _settings(core: Any, device: str, precision: str) -> dict[str, Any]:
    """How to compile for a precision.

    Raises:
        BackendError: The device cannot compute in it.
    """
    parts = {Precision(part) for part in precision.split("-")}
    lowest = Precision.lowest_of(precision)
    needed = _CAPABILITY.get(lowest)
    if needed and needed not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        raise BackendError(
            f"{_described(core, device)} has no {lowest} instructions, so OpenVINO would compute in float32",
            hint="use --precision fp32",
        )
    if needed and len(parts) > 1:
        raise BackendError(
            f"OpenVINO rounds a whole graph to {lowest}, so it does not run {precision}",
            hint=f"use --precision {lowest}, or --backend cpu",
        )
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _HINTS[lowest]}
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": available_cores(), "NUM_STREAMS": streams()}
    return settings


def _described(core: Any, device: str) -> str:
    return f"{device} ({str(core.get_property(device, 'FULL_DEVICE_NAME')).strip()})"


def _image_shape(model: Any, shown: str, image: str) -> tuple[int, int, int]:
    """(C, H, W) of the one input.

    Raises:
        BundleError: It is something else.
    """
    inputs = {value.get_any_name(): value.partial_shape for value in model.inputs}
    shape = inputs.get(image)
    if len(inputs) != 1 or shape is None or shape.rank.get_length() != 4:
        raise BundleError(f"{shown} must have the one input {image!r} (N, C, H, W), it has {inputs}")
    if any(shape[i].is_dynamic for i in (1, 2, 3)):
        raise BundleError(f"{shown} must take images of one size, it takes {shape}")
    channels, height, width = (shape[i].get_length() for i in (1, 2, 3))
    return channels, height, width


def _metadata(model: Any) -> dict[str, str]:
    """The ``metadata_props`` of the ONNX file."""
    if not model.has_rt_info("framework"):
        return {}
    return {str(key): str(value.value) for key, value in model.get_rt_info()["framework"].items()}


@contextlib.contextmanager
def _errors_named(what: str) -> Iterator[None]:
    """OpenVINO's exceptions, which are RuntimeErrors of several lines, as one line."""
    try:
        yield
    except MemoryError as error:
        raise OutOfDeviceMemoryError(f"{what}: memory is short") from error
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if "bad_alloc" in text or "bad allocation" in text:
            raise OutOfDeviceMemoryError(f"{what}: memory is short") from error
        raise BackendError(f"{what}: {text[-300:]}") from error
