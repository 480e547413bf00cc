"""The JSON beside an engine: all that one must know to use it or to build it again.

The plan holds nothing but TensorRT's bytes, whose header a runtime checks first.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from .. import strict_json
from ..errors import BundleError

SIDECAR_SCHEMA = 2


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """What is known of an engine.

    Attributes:
        flavor: ``rtx`` or ``tensorrt``.
        version: Of the TensorRT package; an engine runs on the version that built it.
        precision: As the graph names it (``fp16``, ``fp32-fp16``), else the weights' element type.
        targets: The GPUs that it is for: compute capabilities (``sm_89``, ``sm_80 and newer``), or the one
            GPU it was built on, by name.
        hardware_compatibility: How far beyond that GPU it reaches; ``none`` for not at all.
        optimization_level: Of the builder.
        tf32: Whether products of float32 may be rounded to TF32.
        batch: Smallest, best and largest batch.
        input_shape: (C, H, W).
        outputs: Names of the outputs.
        bytes: Size of the plan.
        seconds: Wall time of the build.
        onnx_sha256: Hash of the graph it was built from.
        engine_sha256: Hash of the plan.
        created_by: Program and version.
        from_cache: Whether it was taken from the engine cache; ``seconds`` are those of its build.
        schema: Version of this description.
    """

    flavor: str
    version: str
    precision: str
    targets: tuple[str, ...]
    hardware_compatibility: str
    optimization_level: int
    tf32: bool
    batch: tuple[int, int, int]
    input_shape: tuple[int, int, int]
    outputs: tuple[str, ...]
    bytes: int
    seconds: float
    onnx_sha256: str
    engine_sha256: str
    created_by: str
    from_cache: bool = False
    schema: int = SIDECAR_SCHEMA

    def as_json(self) -> str:
        """The sidecar's text."""
        problems: list[str] = []
        plain = strict_json.to_plain(self, "", problems)
        assert not problems, problems
        return json.dumps(plain, indent=2) + "\n"


def read_sidecar(path: Path) -> EngineInfo:
    """Read the file beside an engine.

    Raises:
        BundleError: It is missing, not JSON, of another schema, or a field is missing, unknown or wrong.
    """
    hint = "build the engine again with: sad-deploy export --trt"
    try:
        plain: Any = strict_json.parse(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}", hint=hint) from error
    except ValueError as error:
        raise BundleError(f"{path} is not valid JSON: {error}", hint=hint) from None
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != SIDECAR_SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this release reads {SIDECAR_SCHEMA}", hint=hint)
    problems: list[str] = []
    info = strict_json.from_plain(EngineInfo, plain, "", problems)
    if problems:
        raise BundleError(f"{path}: {'; '.join(problems)}", hint=hint)
    assert isinstance(info, EngineInfo)
    return info
