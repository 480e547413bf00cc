"""The ``cpu`` and ``cuda`` backends: an ONNX graph through onnxruntime.

onnxruntime lists the CUDA provider as available wherever it is compiled in and silently runs on the CPU when
the provider does not load, so what a session really got is checked, and the reason is taken from the only
place where onnxruntime says it: its log.
"""

from __future__ import annotations

import contextlib
import enum
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..devices import available_cores, cuda_devices, device_name
from ..errors import BackendError, BundleError, OutOfDeviceMemoryError
from ..extras import installed_version
from .batch_limit import BatchLimit, Notice, ignore
from .binding import Bindings
from .protocol import INPUT


class Provider(enum.StrEnum):
    """Where onnxruntime runs the graph; the values are the backends' names."""

    CPU = "cpu"
    CUDA = "cuda"

    @property
    def onnxruntime_name(self) -> str:
        """Name of the execution provider."""
        return {Provider.CPU: "CPUExecutionProvider", Provider.CUDA: "CUDAExecutionProvider"}[self]


def version() -> str:
    """onnxruntime's, without importing it."""
    return f"onnxruntime {installed_version('onnxruntime-gpu', 'onnxruntime')}"


class OnnxRuntimeBackend:
    """An ONNX graph in onnxruntime; see :class:`~sad_runtime.backends.protocol.Backend`.

    Args:
        model: Path of the graph, or its bytes.
        provider: Where to run it.
        tf32: Whether CUDA may round products of float32 to TF32.
        cuda_graphs: Whether CUDA launches all kernels of a batch at once. Off by default: onnxruntime records
            only graphs that lie on the GPU whole, and keeps what it recorded until the end.
        image: Name of the graph's input.
        notice: Told once if GPU memory is short and batches become smaller.

    Raises:
        BackendError: The provider does not load here, with the reason; or onnxruntime cannot read the graph.
        BundleError: The graph's input is not a batch of images of one size.
    """

    def __init__(
        self,
        model: Path | bytes,
        provider: Provider,
        *,
        tf32: bool = False,
        cuda_graphs: bool = False,
        image: str = INPUT,
        notice: Notice = ignore,
    ) -> None:
        self.name = str(provider)
        self._image = image
        self.runs_on = f"{version()} on {device_name(gpu=provider is Provider.CUDA)}"
        self._session: Any = _open_session(model, provider, tf32=tf32, cuda_graphs=cuda_graphs)
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.output_names = tuple(output.name for output in self._session.get_outputs())
        inputs = {item.name: item for item in self._session.get_inputs()}
        shape = inputs[image].shape if image in inputs else []
        if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise BundleError(f"the graph must have an input {image!r} of shape (N, C, H, W), C, H, W static")
        if isinstance(shape[0], int):
            raise BundleError(f"the graph's batch size is fixed to {shape[0]}; it must be symbolic")
        self.input_shape: tuple[int, int, int] = (shape[1], shape[2], shape[3])
        self._limit = BatchLimit(None, notice=notice)
        self._bindings: Bindings | None = None
        if provider is Provider.CUDA:
            self._bindings = Bindings(self._session, provider.value, cuda_graphs=cuda_graphs, image=image)

    @property
    def max_batch(self) -> int | None:
        """``None``, until GPU memory turns out to be short."""
        return self._limit.size

    def run(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Run a batch; see the protocol."""
        if self._session is None:
            raise RuntimeError("the backend is closed")
        if self._bindings is None:
            return self._run_piece(images, outputs)

        def in_pieces(size: int) -> dict[str, npt.NDArray[np.float32]]:
            starts = range(0, len(images), size)
            parts = [self._run_piece(images[start : start + size], outputs) for start in starts]
            if len(parts) == 1:
                return parts[0]
            return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

        return self._limit.fit(len(images), in_pieces)

    def _run_piece(
        self, images: npt.NDArray[np.float32], outputs: Sequence[str]
    ) -> dict[str, npt.NDArray[np.float32]]:
        try:
            if self._bindings is not None:
                return self._bindings.run(images, outputs)
            values = self._session.run(list(outputs), {self._image: images})
        except Exception as error:
            if not _is_onnxruntimes(error):
                raise
            message = f"the {self.name} backend failed on a batch of {len(images)}: {_one_line(str(error))}"
            if self._bindings is not None and memory_is_short(str(error)):
                self._bindings.forget()
                raise OutOfDeviceMemoryError(message) from error
            raise BackendError(message, hint="if memory ran out, a smaller --batch-size helps") from error
        return dict(zip(outputs, values, strict=True))

    def compute(self, count: int, outputs: Sequence[str]) -> None:
        """Run the kernels of a batch on CUDA without its copies, on whatever is there; for measuring.

        Args:
            count: Images.
            outputs: As for :meth:`run`.

        Raises:
            Exception: onnxruntime's own; the batch is not made smaller.
        """
        assert self._bindings is not None
        self._bindings.compute(count, outputs)

    def close(self) -> None:
        """Drop the session."""
        self._bindings = None
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def provider_problem(provider: Provider) -> str | None:
    """Why a provider does not load here, found by really creating a session with it; ``None`` if it loads."""
    try:
        with OnnxRuntimeBackend(_PROBE, provider):
            return None
    except BackendError as error:
        return error.message


def memory_is_short(text: str) -> bool:
    """Whether an error of onnxruntime's is about GPU memory, which only its text says.

    Its arena, CUDA itself, and the two libraries that allocate for themselves each have their own words.
    """
    return bool(
        re.search(r"Failed to allocate memory|is smaller than requested bytes|CUDA failure 2:", text)
    ) or (bool(re.search(r"\b(CUDNN|CUBLAS)_STATUS_ALLOC_FAILED\b", text)))


def _open_session(model: Path | bytes, provider: Provider, *, tf32: bool, cuda_graphs: bool) -> Any:
    source = model if isinstance(model, bytes) else os.fspath(model)
    if provider is Provider.CUDA:
        if problem := cuda_devices().problem:
            raise BackendError(f"the cuda backend needs an NVIDIA GPU: {problem}", hint="use --backend cpu")
        return open_cuda_session(source, tf32=tf32, cuda_graphs=cuda_graphs)
    import onnxruntime

    options = _options()
    # From an arena a two-pass graph takes up to 30 % less time, as its many buffers are not mapped again for
    # every batch. Without a plan for all of them at once it needs no more memory (benchmarks/arena.py).
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    try:
        return onnxruntime.InferenceSession(source, options, providers=[provider.onnxruntime_name])
    except Exception as error:
        if not _is_onnxruntimes(error):
            raise
        raise BackendError(f"onnxruntime cannot open the graph: {_one_line(str(error))}") from error


def open_cuda_session(source: str | bytes, *, tf32: bool = False, cuda_graphs: bool = False) -> Any:
    """A session on the GPU.

    Raises:
        BackendError: onnxruntime would run on the CPU instead; the message has its reason.
    """
    import onnxruntime

    name = Provider.CUDA.onnxruntime_name
    if name not in onnxruntime.get_available_providers():
        raise BackendError(
            f"this onnxruntime {onnxruntime.__version__} was built without CUDA",
            hint="pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        )
    log = _Log()
    hint = 'pip install "sad-deploy[cuda]", or use --backend cpu'
    try:
        with _captured(log):
            if hasattr(onnxruntime, "preload_dlls"):  # finds CUDA and cuDNN installed as Python packages
                onnxruntime.preload_dlls()
            settings = {
                # TF32 keeps 10 bits of a product's mantissa: labels near a boundary differ from the CPU's.
                "use_tf32": str(int(tf32)),
                # An exhaustive search for convolutions would be repeated for every batch size.
                "cudnn_conv_algo_search": "HEURISTIC",
                "enable_cuda_graph": str(int(cuda_graphs)),
            }
            provider = (name, settings)
            session = onnxruntime.InferenceSession(
                source, _options(), providers=[provider], enable_fallback=0
            )
    except Exception as error:
        if not _is_onnxruntimes(error):
            raise
        raise BackendError(f"the cuda backend did not load: {_one_line(str(error))}", hint=hint) from error
    if session.get_providers()[0] != name:
        raise BackendError(f"the cuda backend did not load: {log.reason()}", hint=hint)
    return session


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = available_cores()
    # The decode threads need the cores that onnxruntime's would spend on waiting.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3  # errors only
    return options


def _is_onnxruntimes(error: Exception) -> bool:
    # Its exceptions share no base class; a few arrive as plain RuntimeError.
    return type(error).__module__.startswith("onnxruntime") or type(error) is RuntimeError


class _Log:
    """What onnxruntime wrote while a provider was loaded."""

    text = ""

    def reason(self) -> str:
        """The cause in one line: the missing library if one is named."""
        if match := re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file", self.text):
            return f"{match[1]} was not found"
        errors = re.findall(r"\[[EW]:onnxruntime[^\]]*\] (.+)", self.text)
        return _one_line(errors[0] if errors else self.text) or "onnxruntime gave no reason"


@contextlib.contextmanager
def _captured(log: _Log) -> Iterator[None]:
    """Catch what native code writes to file descriptor 2, and Python's prints, which belong to no result."""
    printed = io.StringIO()
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # a process without standard error
        with contextlib.redirect_stdout(printed):
            yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stdout(printed):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            log.text = file.read().decode(errors="replace") + printed.getvalue()


def _one_line(text: str) -> str:
    line = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return line if len(line) <= 300 else line[:297] + "..."


# The smallest graph with our input, as ONNX serialises it: Identity, image (N, 1, 1, 1) → logits, opset 17.
_PROBE = (
    b"\x08\x08:c"
    b'\n\x19\n\x05image\x12\x06logits"\x08Identity\x12\x01p'
    b"Z \n\x05image\x12\x17\n\x15\x08\x01\x12\x11\n\x03\x12\x01N\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01"
    b"b!\n\x06logits\x12\x17\n\x15\x08\x01\x12\x11\n\x03\x12\x01N\n\x02\x08\x01\n\x02\x08\x01\n\x02\x08\x01"
    b"B\x04\n\x00\x10\x11"
)
