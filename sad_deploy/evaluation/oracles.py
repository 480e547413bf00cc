"""What attacks ask: gradients of attack graphs, and answers of the victim, counted an image each.

Everything runs on one thread: work is divided among processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sad_runtime.choices import BackendChoice
from sad_runtime.plain import PlainGraph

if TYPE_CHECKING:
    from sad_runtime.bundle import Bundle

Array = np.ndarray[Any, Any]

_BATCH = 64


@dataclasses.dataclass
class Counts:
    """Passes so far, an image each.

    Attributes:
        forward: Of logits alone.
        backward: Of logits and a gradient.
        zero_gradients: Gradients that were zero everywhere.
    """

    forward: int = 0
    backward: int = 0
    zero_gradients: int = 0

    def add(self, more: Counts) -> None:
        """Count what another counted, too."""
        self.forward += more.forward
        self.backward += more.backward
        self.zero_gradients += more.zero_gradients


class GradientSource:
    """Attack graphs of one way through one file; see :func:`sad_export.attack_graph`.

    Args:
        of_label: File of the graph with the cross-entropy's gradient.
        of_cotangent: File of the one with any other.
        counts: What is counted in.
    """

    def __init__(self, of_label: Path, of_cotangent: Path, counts: Counts) -> None:
        self.counts = counts
        self._files = {"label": of_label, "cotangent": of_cotangent}
        self._sessions: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self._session("cotangent").get_outputs()[0].shape[1])

    def of_label(self, images: Array, labels: Array) -> tuple[Array, Array]:
        """Logits (N, K) and the gradient of the cross-entropy (N, C, H, W)."""
        return self._run("label", images, labels.astype(np.int64))

    def of_cotangent(
        self, images: Array, cotangents: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        """Logits, and the gradient of their product with (N, K), or with what a function makes of them.

        A function needs the logits first, so the graph is run twice.
        """
        if callable(cotangents):
            logits, _ = self._run("cotangent", images, np.zeros((len(images), self.num_classes)))
            cotangents = cotangents(logits)
        return self._run("cotangent", images, cotangents)

    def _run(self, name: str, images: Array, seed: Array) -> tuple[Array, Array]:
        session = self._session(name)
        image = session.get_inputs()[0].name
        typed = seed if name == "label" else seed.astype(np.float32)
        logits, gradient = session.run(["logits", "gradient"], {image: images, name: typed})
        self.counts.backward += len(images)
        if seed.any() or name == "label":
            self.counts.zero_gradients += int((~gradient.any((1, 2, 3))).sum())
        return logits, gradient

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = open_session(self._files[name])
        return self._sessions[name]


class FileVictim:
    """A graph or an engine that is judged; calling it gives logits.

    Args:
        run: (N, C, H, W) → (N, K).
        counts: What is counted in.
    """

    def __init__(self, run: Callable[[Array], Array], counts: Counts) -> None:
        self._run = run
        self.counts = counts

    def __call__(self, images: Array) -> Array:
        """(N, C, H, W) float32 in [0, 1] → (N, K)."""
        self.counts.forward += len(images)
        return self._run(np.ascontiguousarray(images))

    def in_batches(self, images: Array) -> Array:
        """The same of any number of images."""
        starts = range(0, len(images), _BATCH)
        return np.concatenate([self(images[start : start + _BATCH]) for start in starts])


@dataclasses.dataclass(frozen=True)
class VictimFile:
    """Which file is judged, and on what it runs; it can be sent to another process.

    Attributes:
        path: A graph's file, or the bundle's folder.
        backend: Empty: onnxruntime on the CPU, on one thread. Otherwise a backend of the runtime.
        precision: Of the bundle's graph or engine.
        file: Its name in the bundle.
        plain: How a bare classifier's file is run on a backend; None for what has a defence.
    """

    path: Path
    backend: str = ""
    precision: str = "fp32"
    file: str = ""
    plain: PlainGraph | None = None

    def open(self, counts: Counts) -> FileVictim:
        """Load it.

        Raises:
            UserError: It cannot run here.
        """
        if self.backend:
            return self._on_backend(counts)
        session = open_session(self.path)
        image = session.get_inputs()[0].name
        return FileVictim(lambda images: session.run(["logits"], {image: images})[0], counts)

    def _on_backend(self, counts: Counts) -> FileVictim:
        from sad_runtime.backends import BackendOptions
        from sad_runtime.backends.load import load

        options = BackendOptions(precision=self.precision)
        loaded = load(self._bundle(), BackendChoice(self.backend), options, file=self.file or None)
        backend = loaded.backend

        def run(images: Array) -> Array:
            step = backend.max_batch or len(images)
            pieces = [images[i : i + step] for i in range(0, len(images), step)]
            return np.concatenate([backend.run(piece, ("logits",))["logits"] for piece in pieces])

        return FileVictim(run, counts)

    def _bundle(self) -> Bundle:
        """What the backend loads: the bundle, or a bare graph as one."""
        from sad_runtime.bare_graph import BareOptions, bundle_of_graph
        from sad_runtime.bundle import Bundle
        from sad_runtime.plain_graph import bundle_of_classifier

        if self.plain is not None:
            mean, std = (None, None) if self.plain.takes_pixels else (self.plain.mean, self.plain.std)
            return bundle_of_classifier(self.path, BareOptions(mean=mean, std=std))
        return bundle_of_graph(self.path, BareOptions()) if self.path.is_file() else Bundle.open(self.path)


def open_session(path: Path) -> Any:
    """An onnxruntime session on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
