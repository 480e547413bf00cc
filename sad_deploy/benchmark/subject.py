"""What is measured: a bundle on one backend in one precision, by itself and with all around it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sad_runtime import pipeline
from sad_runtime.backends.load import forms
from sad_runtime.backends.onnxruntime import OnnxRuntimeBackend, Provider
from sad_runtime.backends.openvino import OpenVinoBackend
from sad_runtime.backends.protocol import LOGITS, PLAIN_LOGITS, Backend
from sad_runtime.bundle import Bundle
from sad_runtime.choices import BackendChoice
from sad_runtime.classifier import Classifier
from sad_runtime.errors import BackendError
from sad_runtime.results import Journal
from sad_runtime.sources import Item

from .figures import Decode, EndToEnd, ModelPass, Run
from .plan import Combination
from .timing import ROUNDS, Timing, take_turns

SinglePass = Callable[[Path], bytes]
"""Two-pass ONNX file → its first pass as an ONNX model: ``image`` → ``plain_logits``."""

_SINGLE, _TWO = "single pass", "two passes"
_FEWEST_BATCHES = 2
"""In a round end to end: one is decoded while the other is in the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What every subject is given.

    Attributes:
        items: The images.
        few: (n, C, H, W): some of them, decoded, of which batches of any size are made.
        decode: How fast they are decoded when nothing else runs.
        workers: Decoding threads.
        seconds: Time for each measurement.
        folder: Where rows may be written.
    """

    items: Sequence[Item]
    few: npt.NDArray[np.float32]
    decode: Decode
    workers: int
    seconds: float
    folder: Path


@contextlib.contextmanager
def loaded(bundle: Bundle, combination: Combination, single_pass: SinglePass | None) -> Iterator[Subject]:
    """Load a combination, and the undefended classifier if it can be had."""
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(
            Classifier.load(
                bundle, backend=combination.backend, precision=combination.precision, notice=_refuse
            )
        )
        single = None
        is_graph = isinstance(classifier.backend, (OnnxRuntimeBackend, OpenVinoBackend))
        if single_pass and is_graph and PLAIN_LOGITS in classifier.backend.output_names:
            file = bundle.graph(combination.precision, forms(combination.backend, combination.precision)).file
            single = stack.enter_context(_single(single_pass(bundle.file(file)), combination))
        yield Subject(combination, classifier, single)


def _single(graph: bytes, combination: Combination) -> Backend:
    if combination.backend is BackendChoice.OPENVINO:
        return OpenVinoBackend(graph, precision=combination.precision, notice=_refuse)
    return OnnxRuntimeBackend(graph, Provider(combination.backend.value), notice=_refuse)


def _refuse(notice: str) -> None:
    """A batch that was split to fit into memory is not the one whose time is asked for."""
    raise BackendError(notice, hint="measure smaller batches with --batch, or end what else runs on the GPU")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A loaded combination.

    Attributes:
        combination: Which.
        classifier: The two passes.
        single: The undefended classifier; ``None`` if it cannot be had.
    """

    combination: Combination
    classifier: Classifier
    single: Backend | None

    def measure(self, batch_size: int, load: Load, begin: Callable[[str], None]) -> Run:
        """The figures of one batch size; ``begin`` is told of each measurement."""
        backend, precision = self.combination.backend, self.combination.precision
        what = f"{backend} {precision}, batch {batch_size}"
        begin(f"{what}: model only")
        passes = self._model_only(batch_size, load)
        begin(f"{what}: end to end")
        single, two = passes.get(_SINGLE), passes[_TWO]
        return Run(
            backend=backend.value,
            precision=precision,
            batch_size=batch_size,
            single_pass=single,
            two_passes=two,
            latency_ratio=two.latency_ms_median / single.latency_ms_median if single else None,
            cpu_ratio=two.cpu_ms_per_image / single.cpu_ms_per_image if single else None,
            end_to_end=self._end_to_end(
                batch_size, load, load.decode.cpu_ms_per_image + two.cpu_ms_per_image
            ),
        )

    def _model_only(self, batch_size: int, load: Load) -> dict[str, ModelPass]:
        """The single pass, if there is one, and the two passes on one batch, by turns."""
        batch = load.few[np.arange(batch_size) % len(load.few)]
        # The first pass's logits are asked for as the pipeline does.
        outputs = [name for name in (LOGITS, PLAIN_LOGITS) if name in self.classifier.backend.output_names]
        jobs: dict[str, Callable[[], object]] = {}
        if self.single is not None:
            jobs[_SINGLE] = partial(self.single.run, batch, (PLAIN_LOGITS,))
        jobs[_TWO] = partial(self.classifier.predict_checked, batch, outputs=outputs)
        for job in jobs.values():
            job()  # warms up
        timings = take_turns(jobs, load.seconds * len(jobs))
        return {name: _model_pass(timing, batch_size) for name, timing in timings.items()}

    def _end_to_end(self, batch_size: int, load: Load, cpu_ms_of_parts: float) -> EndToEnd:
        """Whole runs of the pipeline over so many images that several fit in the time."""
        options = pipeline.Options(batch_size=batch_size, workers=load.workers)
        endless = itertools.cycle(load.items)

        def job(count: int) -> None:
            images = itertools.islice(endless, count)
            with (
                Journal(load.folder / "rows.jsonl") as journal,
                contextlib.closing(pipeline.classify(self.classifier, images, options)) as batches,
            ):
                for rows in batches:
                    journal.write(rows)

        trial = Timing()  # it warms up, too
        trial.add(partial(job, _FEWEST_BATCHES * batch_size))
        in_time = int(load.seconds / ROUNDS / (trial.wall[0] / _FEWEST_BATCHES))
        count = max(_FEWEST_BATCHES, in_time) * batch_size
        timing = take_turns({"all": partial(job, count)}, load.seconds)["all"]
        cpu_ms = 1000 * timing.median_cpu / count
        return EndToEnd(
            images_per_second=count / timing.median_wall,
            cpu_ms_per_image=cpu_ms,
            cpu_ratio_to_decode_plus_model=cpu_ms / cpu_ms_of_parts,
            images_per_round=count,
            rounds=timing.rounds,
        )


def _model_pass(timing: Timing, batch_size: int) -> ModelPass:
    return ModelPass(
        latency_ms_median=1000 * timing.median_wall,
        latency_ms_p95=1000 * timing.wall_percentile(95),
        images_per_second=batch_size / timing.median_wall,
        cpu_ms_per_image=1000 * timing.median_cpu / batch_size,
        rounds=timing.rounds,
    )
