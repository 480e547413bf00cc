"""Build an engine: parse the ONNX file, set the batch profile, serialise, describe it in a sidecar.

The plan file holds nothing but TensorRT's bytes, whose header a runtime checks first; everything else that
one must know to use or rebuild it is in the JSON file beside it.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sad_runtime.bundle.read import sha256
from sad_runtime.files import written_whole
from sad_runtime.tensorrt import EngineInfo, Flavor, error_log, load_tensorrt
from sad_runtime.version import __version__

from .cache import EngineCache, cache_key
from .errors import EngineError, UnbuildableError
from .flavors import choose_flavor
from .graph import GraphFacts, failing_node
from .options import TURING, BuildOptions, check_options, configure, resolved_targets

NEED = "building a TensorRT engine"
"""What needs TensorRT, the subject of an error's sentence."""


def build_engine(
    onnx_path: str | Path,
    engine_path: str | Path,
    *,
    flavor: str = "auto",
    batch: tuple[int, int, int] = (1, 8, 64),
    options: BuildOptions | None = None,
    cache: EngineCache | None = None,
    log: Callable[[str], None] | None = None,
) -> EngineInfo:
    """Build a TensorRT engine of a graph with one image input, for a range of batch sizes.

    Precision is what the graph's types say: networks are strongly typed.

    Args:
        onnx_path: The graph, (N, C, H, W) with a dynamic N (or a static one inside the range).
        engine_path: Where the plan goes; ``PLAN`` with suffix ``.json`` is the sidecar.
        flavor: ``rtx`` (needs no GPU), ``tensorrt``, or ``auto``.
        batch: Smallest, best and largest batch size.
        options: How it is built.
        cache: Where the same engine may have been kept, and where this one is; None for neither.
        log: Called with every line of TensorRT's own log, from "info" on.

    Returns:
        The description that was also written beside the engine.

    Raises:
        MissingExtraError: No TensorRT is installed.
        BackendError: Its libraries do not load, or a GPU is needed and absent.
        UnbuildableError: The graph cannot be parsed or built; the message names the node if TensorRT does.
        EngineError: There is no such graph, it takes no batch of images, or the options do not fit.
    """
    onnx_path, engine_path, options = Path(onnx_path), Path(engine_path), options or BuildOptions()
    check_batch(batch)
    chosen = choose_flavor(flavor)
    trt: Any = load_tensorrt(chosen, need=NEED)
    check_options(options, chosen, trt)
    if not onnx_path.is_file():
        raise EngineError(f"there is no ONNX file {onnx_path}")
    facts = GraphFacts.of(onnx_path)
    # Its hash does not cover weights in files of their own.
    cache = None if facts.external else cache
    targets = resolved_targets(options, chosen)
    onnx_sha256 = sha256(onnx_path)
    request = _Request(trt, chosen, onnx_path, batch, options, Timing(cache, trt, targets))
    key = _key(request, onnx_sha256)
    info = cache.take(key, engine_path) if cache is not None else None
    if info is None:
        started = time.monotonic()
        built = _built(request, log)
        seconds = round(time.monotonic() - started, 2)
        with written_whole(engine_path) as draft:
            draft.write_bytes(built.plan)
        info = _described(request, built, facts.precision, seconds, (onnx_sha256, sha256(engine_path)))
        if cache is not None:
            cache.put(key, engine_path, info)
    with written_whole(engine_path.with_suffix(".json")) as draft:
        draft.write_text(info.as_json(), encoding="utf-8")
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


@dataclasses.dataclass(frozen=True)
class _Built:
    """A plan, and what TensorRT says of it."""

    plan: bytes
    input_shape: tuple[int, int, int]
    outputs: tuple[str, ...]
    optimization_level: int
    tf32: bool


@dataclasses.dataclass(frozen=True)
class Timing:
    """Where kernels that were measured once are kept, for the TensorRT that measures."""

    cache: EngineCache | None
    trt: Any
    targets: tuple[str, ...]

    @property
    def name(self) -> str:
        return cache_key({"version": str(self.trt.__version__), "targets": self.targets})

    def load(self, config: Any) -> None:
        if self.cache is not None:
            timing = config.create_timing_cache(self.cache.read_timing(self.name))
            # What is damaged, or of another version or GPU, is not taken.
            if timing is None or not config.set_timing_cache(timing, ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def keep(self, config: Any) -> None:
        if self.cache is not None:
            self.cache.write_timing(self.name, bytes(config.get_timing_cache().serialize()))


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is to be built, of what, and with what."""

    trt: Any
    flavor: Flavor
    onnx_path: Path
    batch: tuple[int, int, int]
    options: BuildOptions
    timing: Timing


def _key(request: _Request, onnx_sha256: str) -> str:
    """Of everything that an engine is built from."""
    return cache_key(
        {
            "onnx": onnx_sha256,
            "flavor": request.flavor.value,
            "version": str(request.trt.__version__),
            "batch": request.batch,
            "targets": request.timing.targets,
            "options": dataclasses.asdict(request.options),
            "platform": [platform.system(), platform.machine()],
            "created_by": __version__,
        }
    )


def _built(request: _Request, echo: Callable[[str], None] | None) -> _Built:
    trt, onnx_path, options = request.trt, request.onnx_path, request.options
    has_timing = request.flavor.differences.timing_cache
    log = error_log(trt, echo=echo)
    builder = trt.Builder(log)
    network = _parsed(trt, builder, log, onnx_path)
    image = network.get_input(0)
    _, *chw = image.shape
    config = builder.create_builder_config()
    configure(trt, config, options, request.flavor)
    profile = builder.create_optimization_profile()
    profile.set_shape(image.name, *((n, *chw) for n in request.batch))
    config.add_optimization_profile(profile)
    if has_timing:
        request.timing.load(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        node = failing_node(onnx_path, log.errors)
        where = f" at node {node.name!r} ({node.op_type})" if node else ""
        hint = "try --conv-gradient conv, or a smaller largest --batch; --verbose shows TensorRT's log"
        if TURING in options.targets:
            hint = f"Turing ({TURING}) multiplies matrices in fp16 only: --precision fp16"
        raise UnbuildableError(
            f"{trt.__name__} {trt.__version__} cannot build {onnx_path.name}{where}: {log.reason()}",
            hint=hint,
            operator=node.op_type if node else None,
        )
    if has_timing:
        request.timing.keep(config)
    return _Built(
        bytes(plan),
        (chw[0], chw[1], chw[2]),
        tuple(network.get_output(i).name for i in range(network.num_outputs)),
        config.builder_optimization_level,
        config.get_flag(trt.BuilderFlag.TF32),
    )


def _described(
    request: _Request, built: _Built, precision: str, seconds: float, hashes: tuple[str, str]
) -> EngineInfo:
    """The sidecar of an engine; ``hashes`` are those of the graph and of the plan."""
    options = request.options
    return EngineInfo(
        flavor=request.flavor.value,
        version=str(request.trt.__version__),
        precision=precision,
        targets=request.timing.targets,
        hardware_compatibility=options.hardware_compatibility.value,
        optimization_level=built.optimization_level,
        tf32=built.tf32,
        batch=request.batch,
        input_shape=built.input_shape,
        outputs=built.outputs,
        bytes=len(built.plan),
        seconds=seconds,
        onnx_sha256=hashes[0],
        engine_sha256=hashes[1],
        created_by=f"sad-deploy {__version__}",
    )


def _parsed(trt: Any, builder: Any, log: Any, onnx_path: Path) -> Any:
    # STRONGLY_TYPED is the only mode of newer versions, some of which have dropped the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(
            f"node {e.node_name() or e.node()!r} ({e.node_operator()}): {e.desc()}" for e in errors
        )
        reason = " ".join((reasons or log.reason()).split())
        raise UnbuildableError(
            f"{trt.__name__} {trt.__version__} cannot parse {onnx_path.name}: {reason}",
            operator=errors[0].node_operator() if errors else None,
        )
    if network.num_inputs != 1:
        raise EngineError(f"{onnx_path} has {network.num_inputs} inputs; an engine takes one batch of images")
    return network
