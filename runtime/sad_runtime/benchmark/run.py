"""The measuring: decoding, then every combination of backend, precision and batch size by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import pipeline
from ..backends.onnxruntime import OnnxRuntimeBackend, Provider
from ..backends.protocol import LOGITS, PLAIN_LOGITS, Backend
from ..bundle import Bundle
from ..classifier import Classifier
from ..devices import available_cores
from ..errors import BackendError, ImageError, UserError
from ..manifest import MANIFEST_NAME, Preprocessing
from ..preprocess import load
from ..results import Journal
from ..sources import FileItem, Item
from ..version import __version__
from .figures import Benchmark, Decode, EndToEnd, Images, ModelPass, Run
from .machine import describe_machine
from .options import Options
from .photographs import make_photographs
from .plan import Combination, plan
from .timing import ROUNDS, Timing, take_turns

SinglePass = Callable[[Path], bytes]
"""Two-pass ONNX file → its first pass as an ONNX model: ``image`` → ``plain_logits``."""

Progress = Callable[[int, int, str], None]
"""Is told, before each measurement, how many are done, how many there are, and what comes now."""

_SINGLE, _TWO = "single pass", "two passes"
_DECODED = 32
"""Decoded images in memory, of which batches of any size are made."""
_ROUND_OF_DECODING = 4
"""Images a worker, at least, in a round: the last ones keep only some of the workers busy."""
_FEWEST_BATCHES = 2
"""In a round end to end: one is decoded while the other is in the model."""


def benchmark(
    bundle: Bundle | str | os.PathLike[str],
    items: Iterable[Item | str | os.PathLike[str]] | None = None,
    options: Options | None = None,
    *,
    single_pass: SinglePass | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Measure a bundle on this machine, which should have nothing else to do meanwhile.

    Times are the wall's and the CPU's, of all threads of this process. In memory are 32 decoded images, one
    batch of them, and end to end what the pipeline holds.

    Args:
        bundle: An opened bundle or its folder.
        items: Images or paths of image files, of which the first ``options.images`` are used, again and again
            if need be; by default made up.
        options: See :class:`Options`.
        single_pass: Cuts the undefended classifier out of a graph, to be measured beside the two passes;
            :func:`sad_export.first_pass.first_pass` does it.
        progress: Told of each measurement.

    Returns:
        The figures.

    Raises:
        BundleError: The bundle cannot be used, or lacks what was asked for.
        BackendError: A backend that was asked for does not run here, or failed on a batch.
        UserError: No image can be used, or a batch size is too large for an engine.
    """
    options = options or Options()
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    combinations, passed_over = plan(opened, options)
    steps = _Steps(2 + 2 * sum(len(entry.batch_sizes) for entry in combinations), progress)
    preprocessing = opened.manifest.preprocessing
    workers = options.workers or available_cores()
    with tempfile.TemporaryDirectory(prefix="sad-deploy-") as name:
        folder = Path(name)
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            steps.begin("reading the images")
            found = make_photographs(folder, options.images) if items is None else items
            usable = _usable(itertools.islice(found, options.images), preprocessing, pool)
            steps.begin("decode only")
            decode = _decode(usable, preprocessing, pool, workers, options.seconds)
        few = _pixels(usable.items[:_DECODED], preprocessing)
        runs: list[Run] = []
        for combination in combinations:
            with _loaded(opened, combination, single_pass) as subject:
                for batch_size in combination.batch_sizes:
                    what = f"{combination.backend} {combination.precision}, batch {batch_size}"
                    steps.begin(f"{what}: model only")
                    passes = subject.model_only(few, batch_size, options.seconds)
                    steps.begin(f"{what}: end to end")
                    timing, count = subject.end_to_end(
                        usable.items, batch_size, workers, options.seconds, folder
                    )
                    runs.append(_run(combination, batch_size, passes, timing, count, decode))
    return Benchmark(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=describe_machine(),
        bundle={
            "path": os.fspath(opened.root),
            "manifest_sha256": hashlib.sha256((opened.root / MANIFEST_NAME).read_bytes()).hexdigest(),
            "model": opened.manifest.model.name,
            "input_shape": list(preprocessing.shape),
        },
        options=dataclasses.asdict(options),
        images=Images(
            made_up=items is None,
            used=len(usable.items),
            failed=dict(usable.failed.most_common()),
            failed_example=usable.example,
        ),
        decode=decode,
        runs=tuple(runs),
        not_measured=tuple(passed_over),
        created_by=f"sad-deploy {__version__}",
    )


class _Steps:
    """Tells how far it is."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._begun = 0
        self._progress = progress

    def begin(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._begun, self._total, what)
        self._begun += 1


@dataclasses.dataclass
class _Usable:
    """The images that can be decoded.

    Attributes:
        items: They; at least one.
        failed: How many cannot, by error code.
        example: One of those.
        images_per_second: How fast they were read.
    """

    items: list[Item]
    failed: Counter[str]
    example: str | None
    images_per_second: float


def _usable(
    found: Iterable[Item | str | os.PathLike[str]], preprocessing: Preprocessing, pool: ThreadPoolExecutor
) -> _Usable:
    """Decode every image once.

    Raises:
        UserError: There is none, or none can be decoded.
    """
    items = [FileItem(os.fspath(item)) if isinstance(item, (str, os.PathLike)) else item for item in found]
    started = time.perf_counter()
    problems = list(pool.map(partial(_problem, preprocessing=preprocessing), items))
    rate = len(items) / (time.perf_counter() - started)
    good = [item for item, problem in zip(items, problems, strict=True) if problem is None]
    bad = [(item, problem) for item, problem in zip(items, problems, strict=True) if problem is not None]
    example = f"{bad[0][0].name} ({bad[0][1].message})" if bad else None
    if not good:
        raise UserError(
            f"none of the {len(items)} images can be decoded, for example {example}"
            if items
            else "there is no image to measure with"
        )
    return _Usable(good, Counter(problem.code.value for _, problem in bad), example, rate)


def _problem(item: Item, preprocessing: Preprocessing) -> ImageError | None:
    try:
        load(item, preprocessing)
    except ImageError as error:
        return error
    return None


def _pixels(items: Sequence[Item], preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    """(n, C, H, W): the images, decoded."""
    pixels = np.empty((len(items), *preprocessing.shape), np.float32)
    for row, item in zip(pixels, items, strict=True):
        row[:] = load(item, preprocessing).pixels
    return pixels


def _decode(
    usable: _Usable, preprocessing: Preprocessing, pool: ThreadPoolExecutor, workers: int, seconds: float
) -> Decode:
    """Decode in all threads, and drop what comes out."""
    in_time = int(usable.images_per_second * seconds / ROUNDS)
    count = max(_ROUND_OF_DECODING * workers, min(len(usable.items), in_time))
    endless = itertools.cycle(usable.items)
    decode_one = partial(_decode_and_drop, preprocessing=preprocessing)

    def job() -> None:
        for _ in pool.map(decode_one, itertools.islice(endless, count)):
            pass

    timing = take_turns({"decode": job}, seconds)["decode"]
    return Decode(
        images_per_second=count / timing.median_wall,
        cpu_ms_per_image=1000 * timing.median_cpu / count,
        workers=workers,
        images_per_round=count,
        rounds=timing.rounds,
    )


def _decode_and_drop(item: Item, preprocessing: Preprocessing) -> None:
    load(item, preprocessing)


@contextlib.contextmanager
def _loaded(bundle: Bundle, combination: Combination, single_pass: SinglePass | None) -> Iterator[_Subject]:
    """Load a combination, and the undefended classifier if it can be had."""
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(
            Classifier.load(
                bundle, backend=combination.backend, precision=combination.precision, notice=_refuse
            )
        )
        single = None
        is_graph = isinstance(classifier.backend, OnnxRuntimeBackend)
        if single_pass and is_graph and PLAIN_LOGITS in classifier.backend.output_names:
            graph = single_pass(bundle.file(bundle.graph(combination.precision).file))
            single = stack.enter_context(
                OnnxRuntimeBackend(graph, Provider(combination.backend.value), notice=_refuse)
            )
        yield _Subject(classifier, single)


def _refuse(notice: str) -> None:
    """A batch that was split to fit into memory is not the one whose time is asked for."""
    raise BackendError(notice, hint="measure smaller batches with --batch, or end what else runs on the GPU")


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A loaded combination.

    Attributes:
        classifier: The two passes.
        single: The undefended classifier; ``None`` if it cannot be had.
    """

    classifier: Classifier
    single: Backend | None

    def model_only(
        self, few: npt.NDArray[np.float32], batch_size: int, seconds: float
    ) -> dict[str, ModelPass]:
        """Time the single pass, if there is one, and the two passes on one batch, by turns.

        Args:
            few: (n, C, H, W): what the batch is made of.
            batch_size: Images in it.
            seconds: Time for each of them.
        """
        batch = few[np.arange(batch_size) % len(few)]
        # The first pass's logits are asked for as the pipeline does.
        outputs = [name for name in (LOGITS, PLAIN_LOGITS) if name in self.classifier.backend.output_names]
        jobs: dict[str, Callable[[], object]] = {}
        if self.single is not None:
            jobs[_SINGLE] = partial(self.single.run, batch, (PLAIN_LOGITS,))
        jobs[_TWO] = partial(self.classifier.predict_checked, batch, outputs=outputs)
        for job in jobs.values():
            job()  # warms up
        timings = take_turns(jobs, seconds * len(jobs))
        return {name: _model_pass(timing, batch_size) for name, timing in timings.items()}

    def end_to_end(
        self, items: Sequence[Item], batch_size: int, workers: int, seconds: float, folder: Path
    ) -> tuple[Timing, int]:
        """Time whole runs of the pipeline over so many images that several fit in the time.

        Returns:
            The times, and the images of each run.
        """
        options = pipeline.Options(batch_size=batch_size, workers=workers)
        endless = itertools.cycle(items)

        def job(count: int) -> None:
            images = itertools.islice(endless, count)
            with (
                Journal(folder / "rows.jsonl") as journal,
                contextlib.closing(pipeline.classify(self.classifier, images, options)) as batches,
            ):
                for rows in batches:
                    journal.write(rows)

        trial = Timing()  # it warms up, too
        trial.add(partial(job, _FEWEST_BATCHES * batch_size))
        in_time = int(seconds / ROUNDS / (trial.wall[0] / _FEWEST_BATCHES))
        count = max(_FEWEST_BATCHES, in_time) * batch_size
        return take_turns({"all": partial(job, count)}, seconds)["all"], count


def _model_pass(timing: Timing, batch_size: int) -> ModelPass:
    return ModelPass(
        latency_ms_median=1000 * timing.median_wall,
        latency_ms_p95=1000 * timing.wall_percentile(95),
        images_per_second=batch_size / timing.median_wall,
        cpu_ms_per_image=1000 * timing.median_cpu / batch_size,
        rounds=timing.rounds,
    )


def _run(
    combination: Combination,
    batch_size: int,
    passes: dict[str, ModelPass],
    timing: Timing,
    count: int,
    decode: Decode,
) -> Run:
    single, two = passes.get(_SINGLE), passes[_TWO]
    cpu = 1000 * timing.median_cpu / count
    return Run(
        backend=combination.backend.value,
        precision=combination.precision,
        batch_size=batch_size,
        single_pass=single,
        two_passes=two,
        latency_ratio=two.latency_ms_median / single.latency_ms_median if single else None,
        cpu_ratio=two.cpu_ms_per_image / single.cpu_ms_per_image if single else None,
        end_to_end=EndToEnd(
            images_per_second=count / timing.median_wall,
            cpu_ms_per_image=cpu,
            cpu_ratio_to_decode_plus_model=cpu / (decode.cpu_ms_per_image + two.cpu_ms_per_image),
            images_per_round=count,
            rounds=timing.rounds,
        ),
    )
