"""Reading a bundle: a folder with a manifest and files whose SHA-256 the manifest lists.

Nothing is handed out unverified: :meth:`Bundle.file` hashes a file before its first use. Writing, which is
whole or not at all, lies in :mod:`sad_runtime.bundle.write`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..choices import Precision, Target
from ..errors import BundleError
from ..manifest import MANIFEST_NAME, Engine, Graph, Manifest
from ..plain import PlainGraph

_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle. Every file that the manifest lists is there; contents are verified on first use.

    Attributes:
        root: The folder.
        manifest: What it says.
        plain: How its graph is run, where it is a forward classifier without a defence.
    """

    root: Path
    manifest: Manifest
    plain: PlainGraph | None = None
    _verified: set[str] = dataclasses.field(default_factory=set, init=False, repr=False, compare=False)
    _lock: threading.Lock = dataclasses.field(
        default_factory=threading.Lock, init=False, repr=False, compare=False
    )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Open a bundle and check that it is complete.

        A replacement that was cut off between its two renames (see ``write_bundle``) is undone first.

        Args:
            path: The bundle's folder.

        Raises:
            BundleError: No such folder; not a bundle; a manifest that is broken or of a newer schema; a file
                that is missing or lies outside the folder.
        """
        root = Path(path)
        with folder_lock(_resolved(root).parent):  # so that a writer's two renames are never seen half done
            _undo_interrupted_swap(_resolved(root))
            manifest = _read_manifest(root)
            _check_files(root, manifest)
        return cls(root, manifest)

    @property
    def is_bare(self) -> bool:
        """Whether it is a bare graph's file, with nothing that a calibration wrote."""
        return len(self.manifest.files) == 1

    def file(self, name: str) -> Path:
        """Path of a listed file, after its SHA-256 was found to be the manifest's (computed once).

        Args:
            name: Path inside the bundle, as in the manifest.

        Raises:
            BundleError: Not listed, or changed since the bundle was written.
        """
        try:
            expected = self.manifest.files[name]
        except KeyError:
            raise BundleError(f"{self.root} lists no file {name!r}") from None
        path = self.root / name
        with self._lock:
            if name not in self._verified:
                try:
                    found = sha256(path)
                except OSError as error:
                    raise BundleError(f"{path} cannot be read: {error.strerror}") from None
                if found != expected:
                    raise BundleError(
                        f"{path} was changed since the bundle was written: not the SHA-256 of the manifest",
                        hint="restore the file, or write the bundle again",
                    )
                self._verified.add(name)
        return path

    def changed_files(self) -> list[str]:
        """Names of the listed files whose contents are not the manifest's, sorted."""
        changed = []
        for name in sorted(self.manifest.files):
            try:
                self.file(name)
            except BundleError:
                changed.append(name)
        return changed

    def verify(self) -> None:
        """Verify every listed file.

        Raises:
            BundleError: Some were changed; all of them are named.
        """
        if changed := self.changed_files():
            raise BundleError(
                f"{self.root}: changed since the bundle was written: {', '.join(changed)}",
                hint="restore the files, or write the bundle again",
            )

    def graph(self, precision: str = "fp32", targets: Sequence[str] = (Target.PORTABLE,)) -> Graph:
        """The exported graph of a precision.

        Args:
            precision: Its label.
            targets: Which of its forms, the first that there is; any other where there is none of them.

        Raises:
            BundleError: There is none of this precision.
        """
        forms = {graph.target: graph for graph in self.manifest.graphs if graph.precision == precision}
        for target in (*targets, *forms):
            if target in forms:
                return forms[target]
        if self.manifest.graphs:
            has = ", ".join(sorted({graph.precision for graph in self.manifest.graphs}))
            raise BundleError(
                f"{self.root} has no {precision} graph, only {has}",
                hint=_how_to_export(self.root, precision),
            )
        raise BundleError(f"{self.root} has no exported graph yet", hint=f"sad-deploy export {self.root}")

    def engine(self, flavor: str, precision: str = "fp32") -> Engine:
        """The built engine of a flavor (``rtx`` or ``tensorrt``) and precision.

        Raises:
            BundleError: There is none.
        """
        for engine in self.manifest.engines:
            if (engine.flavor, engine.precision) == (flavor, precision):
                return engine
        raise BundleError(
            f"{self.root} has no {flavor} engine of precision {precision}",
            hint=_how_to_export(self.root, precision, f" --trt --flavor {flavor}"),
        )


def _how_to_export(root: Path, precision: str, options: str = "") -> str:
    """The command for a precision, or what a precision is."""
    first, _, saliency = precision.partition("-")
    if first == saliency or not {first, saliency or first} <= set(Precision):
        return f"a precision is one of {', '.join(Precision)}, or two of them, as in fp32-fp16"
    return f"sad-deploy export {root}{options}{_options(precision)}"


def _options(precision: str) -> str:
    """What export needs for a precision, ``fp32-fp16`` for example: that of the saliency comes second."""
    if precision == "fp32":
        return ""
    first, _, saliency = precision.partition("-")
    return f" --precision {first}" + (f" --saliency-precision {saliency}" if saliency else "")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def previous_path(root: Path) -> Path:
    """Where the old bundle waits while a new one is renamed into its place."""
    return root.parent / f".{root.name}.previous"


def recover_previous(root: Path) -> None:
    """Undo a replacement that was cut off between its two renames: the old bundle gets its name back."""
    with folder_lock(_resolved(root).parent):
        _undo_interrupted_swap(_resolved(root))


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the one lock under which names in a folder are swapped, against other processes.

    Advisory and without a lock file: ``flock`` on the folder itself. Where a file system has none,
    nothing is held.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # absent, or not ours to read
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _undo_interrupted_swap(root: Path) -> None:
    previous = previous_path(root)
    if not os.path.lexists(root) and previous.exists():
        previous.rename(root)


def _read_manifest(root: Path) -> Manifest:
    if not root.exists():
        raise BundleError(f"no bundle at {root}", hint="make one with: sad-deploy calibrate")
    if not root.is_dir():
        raise BundleError(
            f"{root} is not a folder; a bundle is one", hint="make one with: sad-deploy calibrate"
        )
    try:
        text = (root / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"{root} has no {MANIFEST_NAME}, so it is not a bundle",
            hint="make one with: sad-deploy calibrate",
        ) from None
    except OSError as error:
        raise BundleError(f"{root / MANIFEST_NAME} cannot be read: {error.strerror}") from None
    try:
        return Manifest.from_json(text)
    except BundleError as error:
        raise BundleError(f"{root}: {error.message}", hint=error.hint) from None


def _check_files(root: Path, manifest: Manifest) -> None:
    """Everything that the manifest names is listed, present, a regular file, and inside the folder."""
    real_root = Path(os.path.realpath(root))
    missing, outside = [], []
    for name in sorted(manifest.file_names()):
        real = Path(os.path.realpath(root / name))
        if not real.is_relative_to(real_root):
            outside.append(name)
        elif not real.is_file():
            missing.append(name)
    problems = []
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    if outside:
        problems.append(f"leads out of the folder: {', '.join(outside)}")
    if unlisted := sorted(manifest.file_names() - set(manifest.files)):
        problems.append(f"used but without a SHA-256: {', '.join(unlisted)}")
    if problems:
        raise BundleError(
            f"{root} is not a whole bundle: {'; '.join(problems)}",
            hint="restore the files, or write it again",
        )
