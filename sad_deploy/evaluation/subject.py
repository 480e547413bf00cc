"""What is evaluated: the file that is judged, and the attack graphs of every way to it.

A subject holds paths and words only, so that it can be sent to other processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from sad_export import two_pass
from sad_export.attack_graph import attack_graph, features_of, logits_graph
from sad_runtime.backends.load import GRAPH_BACKENDS, file_of
from sad_runtime.bundle import Bundle
from sad_runtime.bundle.read import sha256
from sad_runtime.choices import BackendChoice, Objective, Target, Way
from sad_runtime.plain import PlainGraph

from .oracles import Array, Counts, GradientSource, VictimFile

SAME = 0.9999
"""Cosine from which on two gradients are one."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Attack graphs of one way.

    Attributes:
        label: File of the one with the cross-entropy's gradient.
        cotangent: File of the one with any other.
        direct: Whether its logits are the judged file's.
        words: What the way is called.
    """

    label: Path
    cotangent: Path
    direct: bool
    words: str

    def open(self, counts: Counts) -> GradientSource:
        """Ready to be asked."""
        return GradientSource(self.label, self.cotangent, counts)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One file under attack.

    Attributes:
        name: What to call it.
        victim: What is judged.
        sources: By a short word: ``plain``, ``base``, ``constant``, ``exact``, ``transfer``.
        notes: What is not attacked, and why.
        features: Attack graph, S constant, of the features before the last layer; None where there are none.
    """

    name: str
    victim: VictimFile
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()
    features: Path | None = None


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Writes the graphs that attacks need.

    Attributes:
        folder: Where they go.
        notice: Told what is taken otherwise than a file has it.
    """

    folder: Path
    notice: Callable[[str], None]

    def _path(self, key: str, file: Path, what: str) -> Path:
        """Of a graph that is made of a file: another file has another one."""
        return self.folder / f"{key}.{what}.{sha256(file)[:12]}.onnx"

    def source(
        self, key: str, file: Path, way: Way, words: str, *, direct: bool, **reading: object
    ) -> Source:
        """Both attack graphs of one way; written once."""
        paths = []
        for of in (Objective.LOSS, Objective.COTANGENT):
            path = self._path(key, file, str(of))
            if not path.exists():
                graph = attack_graph(
                    file,
                    way=way,
                    of=of,
                    target=Target.CPU,
                    notice=self.notice,
                    **reading,  # type: ignore[arg-type]
                )
                _save(graph, path)
            paths.append(path)
        return Source(paths[0], paths[1], direct, words)

    def logits(self, key: str, file: Path, **reading: object) -> Path:
        """A graph of the logits alone."""
        path = self._path(key, file, "logits")
        if not path.exists():
            _save(logits_graph(file, notice=self.notice, **reading), path)  # type: ignore[arg-type]
        return path

    def on_pixels(self, file: Path, plain: PlainGraph) -> tuple[Path, str]:
        """A classifier that takes pixels in [0, 1], and the name of its logits.

        Args:
            file: Of a classifier, which may take (image − mean) / std.
            plain: How it is run.
        """
        if plain.takes_pixels:
            return file, plain.logits
        space = hashlib.sha256(repr((plain.mean, plain.std)).encode()).hexdigest()[:8]
        path = self._path("pixels", file, space)
        if not path.exists():
            without = two_pass(
                file, eta=0.0, mean=plain.mean, std=plain.std, logits=plain.logits, notice=self.notice
            )
            _save(without, path)
        return path, "plain_logits"

    def defended(self, name: str, file: Path, victim: VictimFile, base: Path | None, key: str) -> Subject:
        """A two-pass file.

        Args:
            name: What to call it.
            file: The graph that gradients are taken of: the judged one, or for an engine its graph.
            victim: What is judged.
            base: Two-pass graph of the network before calibration, if there is one.
            key: Begins the names of what is written.
        """
        sources = {
            "plain": self.source(f"{key}.plain", file, Way.PLAIN, "first pass, transferred", direct=False)
        }
        notes = []
        if base is not None:
            sources["base"] = self.source(
                "base", base, Way.PLAIN, "network before calibration, transferred", direct=False
            )
        else:
            notes.append("transfer from the network before calibration: the bundle cannot give it")
        for way, words in ((Way.CONSTANT, "both passes, S constant"), (Way.EXACT, "both passes, exact")):
            sources[way.value] = self.source(f"{key}.{way}", file, way, words, direct=True)
        return Subject(name, victim, sources, tuple(notes), self._features(key, file))

    def _features(self, key: str, file: Path) -> Path | None:
        path, name = self._path(key, file, "features"), features_of(file)
        if name is None or path.exists():
            return None if name is None else path
        graph = attack_graph(
            file, way=Way.CONSTANT, of=Objective.COTANGENT, logits=name, target=Target.CPU, notice=self.notice
        )
        _save(graph, path)
        return path

    def undefended(
        self,
        name: str,
        file: Path,
        others: Mapping[str, Source],
        victim: VictimFile | None = None,
        **reading: object,
    ) -> Subject:
        """A classifier, or the first pass of a two-pass file with ``logits="plain_logits"``.

        It is judged by another runtime if a ``victim`` is given.
        """
        key = "base" if others else "plain"
        own = self.source(key, file, Way.PLAIN, "its own gradient", direct=True, **_size_only(reading))
        return Subject(name, victim or VictimFile(self.logits(key, file, **reading)), {"own": own, **others})


def without_twins(subject: Subject, images: Array, labels: Array) -> Subject:
    """Leave the exact way out where holding S constant gives the same gradient: piecewise linear networks."""
    if not {"constant", "exact"} <= set(subject.sources) or not len(images):
        return subject
    found = [
        subject.sources[key]
        .open(Counts())
        .of_label(images, labels)[1]
        .astype(np.float64)
        .reshape(len(images), -1)
        for key in ("constant", "exact")
    ]
    norms = np.linalg.norm(found[0], axis=1) * np.linalg.norm(found[1], axis=1)
    cosines = np.where(norms > 0, (found[0] * found[1]).sum(1) / np.maximum(norms, 1e-300), 1)
    if cosines.min() < SAME:
        return subject
    sources = {key: source for key, source in subject.sources.items() if key != "exact"}
    sources["constant"] = dataclasses.replace(sources["constant"], words="both passes, exact (S is constant)")
    return dataclasses.replace(subject, sources=sources)


def judged_file(bundle: Bundle, backend: BackendChoice, precision: str) -> tuple[str, Path, VictimFile]:
    """Name, graph and victim of a bundle's file on a backend.

    Raises:
        BundleError: It has none of this precision.
    """
    name = file_of(bundle, backend, precision)
    if backend is BackendChoice.CPU:
        return name, bundle.file(name), VictimFile(bundle.file(name))
    place = bundle.file(name) if bundle.is_bare else bundle.root
    victim = VictimFile(place, backend.value, precision, plain=bundle.plain)
    if backend in GRAPH_BACKENDS:
        return name, bundle.file(name), victim
    return name, bundle.file(bundle.engine(backend.value, precision).graph), victim


def _size_only(reading: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in reading.items() if key != "logits" or value != "plain_logits"}


def _save(graph: onnx.ModelProto, path: Path) -> None:
    """Whole or not at all, so that an interrupted run leaves nothing half written."""
    draft = path.with_suffix(".draft")
    onnx.save(graph, str(draft))
    draft.rename(path)
