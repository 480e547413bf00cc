"""Build an engine: parse the ONNX file, set the batch profile, serialise, describe it in a sidecar.

The plan file holds nothing but TensorRT's bytes, whose header a runtime checks first; everything else that
one must know to use or rebuild it is in the JSON file beside it.
"""

from __future__ import annotations

import collections
import math
import time
from pathlib import Path
from typing import Any

import onnx

from sad_runtime.bundle.read import sha256
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import UserError
from sad_runtime.tensorrt import EngineInfo, Flavor, error_log, load_tensorrt
from sad_runtime.version import __version__

from ..precision import PRECISION_KEY
from .flavors import choose_flavor

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


class EngineError(UserError):
    """TensorRT refused the graph or failed to build; no file was written."""


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    flavor: str = "auto",
    batch: tuple[int, int, int] = (1, 8, 64),
) -> EngineInfo:
    """Build a TensorRT engine of a graph with one image input, for a range of batch sizes.

    Precision is what the graph's types say: networks are strongly typed.

    Args:
        onnx_path: The graph, (N, C, H, W) with a dynamic N (or a static one inside the range).
        engine_path: Where the plan goes; ``PLAN`` with suffix ``.json`` is the sidecar.
        flavor: ``rtx`` (needs no GPU), ``tensorrt``, or ``auto``.
        batch: Smallest, best and largest batch size.

    Returns:
        The description that was also written beside the engine.

    Raises:
        MissingExtraError: No TensorRT is installed.
        BackendError: Its libraries do not load, or a GPU is needed and absent.
        EngineError: The graph cannot be parsed or built; the message names the node or gives the reason.
    """
    onnx_path, engine_path = Path(onnx_path), Path(engine_path)
    check_batch(batch)
    chosen = choose_flavor(flavor)
    trt: Any = load_tensorrt(chosen, need="building a TensorRT engine")
    started = time.monotonic()
    log = error_log(trt)
    builder = trt.Builder(log)
    network = _parsed(trt, builder, log, onnx_path)
    image = network.get_input(0)
    _, *chw = image.shape
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((n, *chw) for n in batch))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot build {onnx_path}: {log.reason()}",
            hint="try --dgrad conv, or a smaller largest --batch",
        )
    seconds = time.monotonic() - started
    engine_path.write_bytes(plan)
    info = EngineInfo(
        flavor=chosen.value,
        version=str(trt.__version__),
        precision=_precision(onnx_path),
        targets=_targets(chosen),
        hardware_compatibility="none",
        optimization_level=config.builder_optimization_level,
        tf32=config.get_flag(trt.BuilderFlag.TF32),
        batch=batch,
        input_shape=(chw[0], chw[1], chw[2]),
        outputs=tuple(network.get_output(i).name for i in range(network.num_outputs)),
        bytes=engine_path.stat().st_size,
        seconds=round(seconds, 2),
        onnx_sha256=sha256(onnx_path),
        engine_sha256=sha256(engine_path),
        created_by=f"sad-deploy {__version__}",
    )
    engine_path.with_suffix(".json").write_text(info.as_json(), encoding="utf-8")
    return info


def check_batch(batch: tuple[int, int, int]) -> None:
    """Refuse a profile that is not 1 ≤ smallest ≤ best ≤ largest.

    Raises:
        EngineError: It is not.
    """
    smallest, best, largest = batch
    if not 1 <= smallest <= best <= largest:
        raise EngineError(
            f"a batch profile is smallest:best:largest in ascending order, got {smallest}:{best}:{largest}",
            hint="for example --batch 1:8:64",
        )


def _parsed(trt: Any, builder: Any, log: Any, onnx_path: Path) -> Any:
    # STRONGLY_TYPED is the only mode of newer versions, some of which have dropped the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not onnx_path.is_file():
        raise EngineError(f"there is no ONNX file {onnx_path}")
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(
            f"node {e.node_name() or e.node()!r} ({e.node_operator()}): {e.desc()}" for e in errors
        )
        reason = " ".join((reasons or log.reason()).split())
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot parse {onnx_path}: {reason}")
    if network.num_inputs != 1:
        raise EngineError(f"{onnx_path} has {network.num_inputs} inputs; an engine takes one batch of images")
    return network


def _precision(onnx_path: Path) -> str:
    """What the graph says of itself, else the type that most weight elements have."""
    model = onnx.load(str(onnx_path), load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == PRECISION_KEY:
            return str(entry.value)
    elements: collections.Counter[int] = collections.Counter()
    for tensor in model.graph.initializer:
        elements[tensor.data_type] += math.prod(tensor.dims)
    ((kind, _),) = elements.most_common(1) or [(onnx.TensorProto.FLOAT, 0)]
    return _TYPES.get(kind, "int8")


def _targets(flavor: Flavor) -> tuple[str, ...]:
    """Where the engine runs; a choice of targets is not offered yet."""
    if flavor is Flavor.RTX:
        return ("every RTX GPU that this TensorRT for RTX supports",)
    device = cuda_devices().devices[0]
    return (f"{device.name} (compute capability {'.'.join(map(str, device.compute_capability))})",)
