"""Attacks on pieces of the images, in processes of one thread, each result kept as soon as it is there.

A piece is always the same images with the same random numbers, so a run that was cut off and taken up again
gives what an uninterrupted one gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from .attacks import Apgd, CarliniWagner, OnePixel, Pgd, Problem, RayS, Search, Square, Zoo
from .losses import Loss
from .oracles import Array, Counts, FileVictim, GradientSource
from .subject import Subject
from .threat import Threat

PIECE = 32
"""Images attacked at once."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack, in words that can be sent to another process.

    Attributes:
        kind: ``apgd``, ``pgd``, ``cw``, ``rays``, ``square``, ``onepixel`` or ``zoo``.
        source: Which of the subject's sources gives gradients; empty for attacks without.
        loss: Name of the loss that is raised.
        rank: Of the target class.
        steps: Of attacks with gradients; generations of ``onepixel``.
        queries: Of attacks without.
        step_size: Of ``pgd``, in pixels; 0: its own choice.
        samples: Gradients averaged a step of ``pgd``; population of ``onepixel``.
        constant: c of ``cw``.
    """

    kind: str
    source: str = ""
    loss: str = "cross_entropy"
    rank: int = 0
    steps: int = 100
    queries: int = 0
    step_size: float = 0.0
    samples: int = 1
    constant: float = 0.0

    @property
    def key(self) -> str:
        """Names its results, and its random numbers."""
        parts = [self.kind, self.source, self.loss if self.source else "", str(self.rank or "")]
        parts += [
            f"a{self.step_size:.6g}" if self.step_size else "",
            f"c{self.constant:.6g}" if self.constant else "",
        ]
        parts.append(f"s{self.samples}" if self.samples > 1 else "")
        return "-".join([part for part in parts if part] + [str(self.queries or self.steps)])

    def run(self, problem: Problem, source: GradientSource | None, *, direct: bool) -> Search:
        """Attack."""
        if self.kind == "rays":
            return RayS(self.queries).run(problem)
        if self.kind == "square":
            return Square(self.queries).run(problem)
        if self.kind == "zoo":
            return Zoo(self.queries).run(problem)
        if self.kind == "onepixel":
            return OnePixel(self.samples, self.steps).run(problem)
        assert source is not None
        if self.kind == "pgd":
            return Pgd(source, self.steps, self.step_size or None, self.samples).run(problem)
        if self.kind == "cw":
            return CarliniWagner(source, self.constant, self.steps, direct=direct).run(problem)
        return Apgd(source, Loss(self.loss, self.rank), self.steps, direct).run(problem)


@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack gave on some images.

    Attributes:
        index: (n,) which of the images.
        broken: (n,) whether each was misclassified.
        adversarial: (m, C, H, W) float32, those of the m broken ones.
        counts: Passes.
        seconds: Of CPU.
    """

    index: Array
    broken: Array
    adversarial: Array
    counts: Counts
    seconds: float

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        draft = path.with_suffix(".draft")
        facts = json.dumps({**dataclasses.asdict(self.counts), "seconds": self.seconds})
        with draft.open("wb") as file:
            np.savez_compressed(
                file,
                index=self.index,
                broken=self.broken,
                adversarial=self.adversarial,
                facts=np.array(facts),
            )
        draft.rename(path)

    @classmethod
    def load(cls, path: Path) -> Result:
        """What :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            facts = json.loads(str(stored["facts"]))
            seconds = facts.pop("seconds")
            return cls(stored["index"], stored["broken"], stored["adversarial"], Counts(**facts), seconds)


@dataclasses.dataclass(frozen=True)
class Images:
    """What is attacked.

    Attributes:
        pixels: (N, C, H, W) float32 in [0, 1].
        labels: (N,) int64.
    """

    pixels: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Task:
    """One attack on one piece."""

    subject: str
    attack: Attack
    threat: Threat
    index: tuple[int, ...]

    @property
    def file(self) -> str:
        """Name of its result: the piece is named by a hash, as survivors are any images."""
        which = hashlib.sha256(repr(self.index).encode()).hexdigest()[:12]
        return f"{self.subject}-{self.threat.norm}-{self.threat.epsilon:.6g}-{self.attack.key}-{which}.npz"


class Bench:
    """Where tasks are run: one a process, with what it needs loaded once.

    Args:
        subjects: By name.
        images: All of them.
        seed: Of all random numbers.
    """

    def __init__(self, subjects: Mapping[str, Subject], images: Images, seed: int) -> None:
        self.subjects, self.images, self.seed = subjects, images, seed
        self._sources: dict[tuple[str, str], GradientSource] = {}
        self._victims: dict[str, FileVictim] = {}

    def __getstate__(self) -> tuple[Any, ...]:
        return self.subjects, self.images, self.seed  # another process loads for itself

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        Bench.__init__(self, *state)

    def run(self, task: Task) -> Result:
        """Attack a piece."""
        subject, index = self.subjects[task.subject], np.array(task.index)
        counts, started = Counts(), time.process_time()
        victim = self.victim(task.subject)
        victim.counts = counts
        source = self._source(task.subject, task.attack.source)
        if source is not None:
            source.counts = counts
        name = np.frombuffer(task.attack.key.encode().ljust(4, b"-"), np.uint8)
        rngs = [np.random.default_rng([self.seed, int(i), *name.tolist()]) for i in index]
        problem = Problem(self.images.pixels[index], self.images.labels[index], task.threat, victim, rngs)
        direct = bool(task.attack.source) and subject.sources[task.attack.source].direct
        found = task.attack.run(problem, source, direct=direct)
        assert task.threat.allows(found.adversarial, problem.images).all()
        return Result(
            index, found.broken, found.adversarial[found.broken], counts, time.process_time() - started
        )

    def victim(self, name: str) -> FileVictim:
        """The judge of a subject, loaded."""
        if name not in self._victims:
            self._victims[name] = self.subjects[name].victim.open(Counts())
        return self._victims[name]

    def _source(self, subject: str, key: str) -> GradientSource | None:
        if not key:
            return None
        if (subject, key) not in self._sources:
            self._sources[subject, key] = self.subjects[subject].sources[key].open(Counts())
        return self._sources[subject, key]


_bench: Bench | None = None


def _set_bench(bench: Bench, cores: Any) -> None:
    """In a new process: one core, so that whatever runs there takes one thread."""
    global _bench
    _bench = bench
    with contextlib.suppress(AttributeError, OSError):  # no such call, or no such core
        os.sched_setaffinity(0, {cores.get()})


def _run_here(task: Task) -> Result:
    assert _bench is not None
    return _bench.run(task)


class Workers:
    """Runs tasks, and keeps their results in a folder.

    Args:
        bench: What tasks need.
        folder: Where results lie; those of an earlier run are taken over.
        processes: How many; 1: this one.
    """

    def __init__(self, bench: Bench, folder: Path, processes: int) -> None:
        self.bench, self.folder, self.processes = bench, folder, processes
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: list[Task], done: Callable[[Task], None]) -> list[Result]:
        """All results, in the order of the tasks.

        Args:
            tasks: What to do.
            done: Told of each one, also of those that an earlier run did.
        """
        results: dict[int, Result] = {}
        missing = []
        for i, task in enumerate(tasks):
            path = self.folder / task.file
            if path.exists():
                results[i] = Result.load(path)
                done(task)
            else:
                missing.append(i)
        for i, result in self._each(tasks, missing):
            result.save(self.folder / tasks[i].file)
            results[i] = result
            done(tasks[i])
        return [results[i] for i in range(len(tasks))]

    def _each(self, tasks: list[Task], wanted: list[int]) -> Iterator[tuple[int, Result]]:
        if self.processes == 1 or len(wanted) < 2:
            for i in wanted:
                yield i, self.bench.run(tasks[i])
            return
        futures = {self._started().submit(_run_here, tasks[i]): i for i in wanted}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            cores = context.SimpleQueue()
            here = (
                sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(self.processes)
            )
            for i in range(self.processes):
                cores.put(list(here)[i % len(here)])
            self._pool = ProcessPoolExecutor(
                self.processes, mp_context=context, initializer=_set_bench, initargs=(self.bench, cores)
            )
        return self._pool

    def close(self) -> None:
        """End the processes, without waiting for what they are doing."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def pieces(index: Array, size: int = PIECE) -> list[tuple[int, ...]]:
    """Some images in pieces, in order."""
    return [tuple(int(i) for i in index[start : start + size]) for start in range(0, len(index), size)]
