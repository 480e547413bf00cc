"""What a benchmark found. Names say the unit; a median is over the rounds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

_SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """What was decoded.

    Attributes:
        made_up: Whether they were made for the purpose: smooth noise, not photographs.
        used: Different images.
        failed: How many could not be used, by error code.
        failed_example: One of them; ``None`` if there is none.
    """

    made_up: bool
    used: int
    failed: Mapping[str, int]
    failed_example: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
    """File to (C, H, W) float32, nothing else running.

    Attributes:
        images_per_second: With all workers; median.
        cpu_ms_per_image: CPU time of the process; median.
        workers: Decoding threads.
        images_per_round: Images in a round.
        rounds: Rounds measured.
    """

    images_per_second: float
    cpu_ms_per_image: float
    workers: int
    images_per_round: int
    rounds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPass:
    """The model by itself on one batch that is in memory; a round is a batch.

    Attributes:
        latency_ms_median: Wall time of a batch.
        latency_ms_p95: Wall time that 95 % of the batches do not exceed; of few rounds, the longest.
        images_per_second: Batch size by the median latency.
        cpu_ms_per_image: CPU time of the process; median.
        rounds: Rounds measured.
    """

    latency_ms_median: float
    latency_ms_p95: float
    images_per_second: float
    cpu_ms_per_image: float
    rounds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """What ``infer`` does: files in, rows in a journal out. A round is a run with its beginning and end.

    Attributes:
        images_per_second: Median.
        cpu_ms_per_image: CPU time of the process; median.
        cpu_ratio_to_decode_plus_model: CPU time against that of decoding and of the two passes.
        images_per_round: Images in a round.
        rounds: Rounds measured.
    """

    images_per_second: float
    cpu_ms_per_image: float
    cpu_ratio_to_decode_plus_model: float
    images_per_round: int
    rounds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One backend, precision and batch size.

    Attributes:
        backend: ``cpu``, ``cuda``, ``tensorrt`` or ``rtx``.
        precision: The graph's or engine's.
        batch_size: Images a batch.
        single_pass: The undefended classifier, measured by turns with the two passes; ``None`` for an engine,
            or where its graph was not handed in.
        two_passes: The defended one.
        latency_ratio: Median latency of the two passes against the single pass.
        cpu_ratio: CPU time, likewise.
        end_to_end: With decoding and writing.
    """

    backend: str
    precision: str
    batch_size: int
    single_pass: ModelPass | None
    two_passes: ModelPass
    latency_ratio: float | None
    cpu_ratio: float | None
    end_to_end: EndToEnd


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotMeasured:
    """A backend that was passed over.

    Attributes:
        backend: Its name.
        precision: Which precision of it.
        reason: Why, in a sentence.
    """

    backend: str
    precision: str
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All figures of a bundle on a machine.

    Attributes:
        date: When, ISO 8601 with the time zone.
        machine: Processor, cores, GPUs, versions.
        bundle: Its path, the SHA-256 of its manifest, the model's name and the input's (C, H, W).
        options: What was asked for.
        images: What was decoded.
        decode: Decoding only.
        runs: The measured combinations.
        not_measured: Backends passed over, with the reason.
        created_by: Program and version.
        schema: Version of the JSON.
    """

    date: str
    machine: Mapping[str, Any]
    bundle: Mapping[str, Any]
    options: Mapping[str, Any]
    images: Images
    decode: Decode
    runs: tuple[Run, ...]
    not_measured: tuple[NotMeasured, ...]
    created_by: str
    schema: int = _SCHEMA

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False) + "\n"


def three_digits(value: float) -> str:
    """A figure with three digits, and all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
