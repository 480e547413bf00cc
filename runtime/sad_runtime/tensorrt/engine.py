"""Load an engine: everything that can be wrong with one is found, and told apart, before it runs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from ..devices import cuda_devices
from ..errors import BackendError, BundleError
from .flavors import Flavor
from .sidecar import EngineInfo, read_sidecar


@dataclasses.dataclass
class LoadedEngine:
    """An engine on the GPU.

    Attributes:
        runtime: TensorRT's, which must live as long as the engine.
        engine: TensorRT's.
        info: What its sidecar says.
        input: Name of its input.
        input_shape: (C, H, W).
        outputs: Shape of one image's part of each output, by name.
        smallest: Images in the smallest batch that it takes.
        largest: In the largest.
    """

    runtime: Any
    engine: Any
    info: EngineInfo
    input: str
    input_shape: tuple[int, int, int]
    outputs: dict[str, tuple[int, ...]]
    smallest: int
    largest: int

    def close(self) -> None:
        """Take it off the GPU; contexts must be gone. In this order: an engine needs its runtime."""
        self.engine = None
        self.runtime = None


def load_engine(tensorrt: Any, log: Any, plan: Path, flavor: Flavor, *, tf32: bool = False) -> LoadedEngine:
    """Check an engine against its sidecar, then load it.

    Args:
        tensorrt: The flavor's module.
        log: Of :func:`~sad_runtime.tensorrt.error_log`.
        plan: The engine's file; ``PLAN`` with suffix ``.json`` is its sidecar.
        flavor: Which TensorRT is to run it.
        tf32: Whether products of float32 may be rounded to TF32, which was decided when it was built.

    Raises:
        BundleError: A file is missing, damaged, or changed since the engine was built; the engine is another
            flavor's, or not one of images to float32 outputs.
        BackendError: Another version built it; it differs in TF32 from what is asked for; TensorRT refuses
            it, with the reason.
    """
    sidecar = plan.with_suffix(".json")
    info = read_sidecar(sidecar)
    _check_info(tensorrt, info, plan, flavor, tf32=tf32)
    try:
        content = plan.read_bytes()
    except OSError as error:
        raise BundleError(f"{plan} cannot be read: {error.strerror}", hint=_again(flavor)) from error
    # An engine is a program: what was damaged is not even shown to TensorRT.
    if hashlib.sha256(content).hexdigest() != info.engine_sha256:
        raise BundleError(
            f"{plan} is not the engine that {sidecar.name} describes: its SHA-256 is another",
            hint=_again(flavor),
        )
    log.errors.clear()
    runtime = tensorrt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        device = cuda_devices().devices[0]
        capability = ".".join(map(str, device.compute_capability))
        raise BackendError(
            f"{tensorrt.__name__} {tensorrt.__version__} cannot load {plan}, built for "
            f"{', '.join(info.targets)}, on {device.name} (compute capability {capability}): {log.reason()}",
            hint=_again(flavor),
        )
    return _described(tensorrt, runtime, engine, info, plan)


def _check_info(tensorrt: Any, info: EngineInfo, plan: Path, flavor: Flavor, *, tf32: bool) -> None:
    if info.flavor != flavor.value:
        raise BundleError(
            f"{plan} is an engine of {info.flavor}, not of {flavor}",
            hint=f"run it with --backend {info.flavor}",
        )
    if info.version != str(tensorrt.__version__):
        raise BackendError(
            f"{plan} is stale: {tensorrt.__name__} {info.version} built it, {tensorrt.__version__} is "
            "installed, and an engine runs on the version that built it",
            hint=_again(flavor),
        )
    if tf32 and not info.tf32:
        raise BackendError(
            f"{plan} was built without TF32, which is decided when an engine is built",
            hint=f"{_again(flavor)} --tf32; or run it without --tf32",
        )
    if info.tf32 and not tf32:
        raise BackendError(
            f"{plan} was built with TF32, which rounds products of float32 and was not asked for",
            hint=f"run it with --tf32; or {_again(flavor)}",
        )


def _described(tensorrt: Any, runtime: Any, engine: Any, info: EngineInfo, plan: Path) -> LoadedEngine:
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    problems = []
    if len(inputs) != 1:
        raise BundleError(f"{plan} must have one input of images, it has {', '.join(inputs) or 'none'}")
    smallest, _, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(inputs[0], 0))
    if len(largest) != 4:
        raise BundleError(f"{plan}: {inputs[0]!r} must be (N, C, H, W), it is {largest}")
    outputs = {}
    for name in names:
        if engine.get_tensor_dtype(name) != tensorrt.DataType.FLOAT:
            problems.append(f"{name!r} is not float32")
        elif name not in inputs:
            row = tuple(engine.get_tensor_shape(name))[1:]
            if any(side < 0 for side in row):
                problems.append(f"the shape of one image's {name!r} is not fixed: {row}")
            outputs[name] = row
    if problems:
        raise BundleError(f"{plan}: {'; '.join(problems)}")
    return LoadedEngine(
        runtime,
        engine,
        info,
        inputs[0],
        (largest[1], largest[2], largest[3]),
        outputs,
        smallest[0],
        largest[0],
    )


def _again(flavor: Flavor) -> str:
    return f"build it again with: sad-deploy export --trt --flavor {flavor}"
