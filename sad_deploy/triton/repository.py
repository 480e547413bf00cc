"""Lays a bundle out as a model repository of Triton.

    REPO/NAME/config.pbtxt, labels.txt, 1/model.onnx      the graph or engine
    REPO/NAME_images/…, REPO/NAME_preprocess/…            with images="server": files in, answers out

A version whose files are the same is not written again; others get the next number. A version appears whole,
by a rename, so a server that polls its repository never loads half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sad_runtime import strict_json
from sad_runtime.backends.server import model_name
from sad_runtime.bundle import Bundle
from sad_runtime.choices import Target, TritonBackend, TritonDevice, TritonImages, TritonInput
from sad_runtime.errors import UserError, reason_of
from sad_runtime.files import written_whole
from sad_runtime.tensorrt.sidecar import read_sidecar

from .configuration import LABELS, MARK, Served, ensemble_text, preprocessing_text

_CONFIGURATION = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BATCH = (8, 16)
"""Best and largest batch of a graph, which takes any."""


@dataclasses.dataclass(frozen=True)
class TritonRequest:
    """How a bundle is served.

    Attributes:
        repository: The folder of all models; made if it is missing.
        name: Of the model; by default the bundle's folder.
        backend: What runs it.
        device: Where; ``auto`` leaves it to Triton.
        input: What its images are: floats as ``infer`` prepares them, or bytes (N, H, W, C) of the same size.
        images: Who decodes and resizes: ``server`` adds an ensemble that takes image files.
        instances: How many run at once, on each device.
    """

    repository: Path
    name: str | None = None
    backend: TritonBackend = TritonBackend.ONNXRUNTIME
    device: TritonDevice = TritonDevice.AUTO
    input: TritonInput = TritonInput.FLOAT
    images: TritonImages = TritonImages.CLIENT
    instances: int = 1

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} is no model's name", hint="letters, digits, dots, dashes and underscores"
            )
        if self.instances < 1:
            raise UserError(f"there is at least one instance, got {self.instances}")
        if self.backend is TritonBackend.OPENVINO and self.device is TritonDevice.GPU:
            raise UserError("Triton's OpenVINO backend runs on CPUs", hint="leave the device out")
        if self.backend is TritonBackend.TENSORRT and self.device is TritonDevice.CPU:
            raise UserError("TensorRT runs on GPUs", hint="leave the device out")
        if self.input is TritonInput.UINT8 and self.backend is TritonBackend.TENSORRT:
            raise UserError(
                "an engine's input is floats: it was built of the graph as it is",
                hint="the backend onnxruntime takes bytes, on GPUs too",
            )
        if self.input is TritonInput.UINT8 and self.images is TritonImages.SERVER:
            raise UserError("bytes are for clients that decode; with images=server the server does")


@dataclasses.dataclass(frozen=True)
class Written:
    """A model of the repository.

    Attributes:
        model: Its folder.
        version: Its newest version.
        is_new: Whether that was written now, or was there already.
    """

    model: Path
    version: int
    is_new: bool


def write_repository(bundle: Bundle, request: TritonRequest, precision: str = "fp32") -> list[Written]:
    """Write a bundle's graph or engine, and what serves image files, into a model repository.

    Args:
        bundle: With a graph of that precision, or an engine of enterprise TensorRT.
        request: How it is served.
        precision: Label of the graph.

    Returns:
        The models; the last one takes image files, if that was asked for.

    Raises:
        UserError: The bundle has no such graph or engine, a folder in the place is not ours, or it cannot be
            written.
    """
    source, batch = _source(bundle, request, precision)
    shape, name = bundle.manifest.preprocessing.shape, request.name or model_name(bundle)
    device = TritonDevice.GPU if request.backend is TritonBackend.TENSORRT else request.device
    device = TritonDevice.CPU if request.backend is TritonBackend.OPENVINO else device
    served = Served(
        name,
        request.backend,
        device,
        request.input,
        shape,
        bundle.manifest.model.num_classes,
        batch,
        request.instances,
    )
    labels = "".join(f"{' '.join(each.split())}\n" for each in bundle.manifest.classes)
    with _refusals(request.repository), _beside(request.repository) as draft:
        if request.input is TritonInput.UINT8:
            from sad_export.bytes_input import write_with_bytes_input

            write_with_bytes_input(source, draft / served.file)
        else:
            shutil.copyfile(source, draft / served.file)
        models: list[_Model] = [
            (name, {_CONFIGURATION: served.text(), LABELS: labels}, {served.file: draft / served.file})
        ]
        if request.images is TritonImages.SERVER:
            models += _for_files(bundle, served, labels, draft)
        for model, _, _ in models:
            _refuse_others(request.repository / model)
        return [_write(request.repository / model, texts, files) for model, texts, files in models]


_Model = tuple[str, Mapping[str, str], Mapping[str, Path]]
"""Name, texts beside the versions, files of a version."""


def _for_files(bundle: Bundle, served: Served, labels: str, draft: Path) -> list[_Model]:
    """The model that prepares images, and the ensemble."""
    problems: list[str] = []
    plain = strict_json.to_plain(bundle.manifest.preprocessing, "", problems)
    assert not problems, problems
    stated = draft / "preprocessing.json"
    stated.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    preparing, both = f"{served.name}_preprocess", f"{served.name}_images"
    text = preprocessing_text(preparing, served.shape, served.batch[1], served.instances)
    files = {"model.py": Path(__file__).with_name("preprocess_model.py"), stated.name: stated}
    return [
        (preparing, {_CONFIGURATION: text}, files),
        (both, {_CONFIGURATION: ensemble_text(both, preparing, served), LABELS: labels}, {}),
    ]


def _source(bundle: Bundle, request: TritonRequest, precision: str) -> tuple[Path, tuple[int, int]]:
    """The file that is served, and its best and largest batch."""
    if request.backend is TritonBackend.TENSORRT:
        if not any(engine.flavor == "tensorrt" for engine in bundle.manifest.engines):
            raise UserError(
                f"{bundle.root} has no engine of enterprise TensorRT, and Triton loads no other",
                hint=f"on the server's GPU: sad-deploy export {bundle.root} --trt --flavor tensorrt",
            )
        engine = bundle.engine("tensorrt", precision)
        _, best, largest = read_sidecar(bundle.file(engine.sidecar)).batch
        return bundle.file(engine.file), (best, largest)
    on_cpu = request.backend is TritonBackend.ONNXRUNTIME and request.device is TritonDevice.CPU
    targets = (Target.CPU, Target.PORTABLE) if on_cpu else (Target.PORTABLE,)
    return bundle.file(bundle.graph(precision, targets).file), _BATCH


def _refuse_others(model: Path) -> None:
    """Raise if a folder of that name was not written by this module."""
    if not model.exists():
        return
    try:
        is_ours = (model / _CONFIGURATION).read_text(encoding="utf-8").startswith(MARK)
    except (OSError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise UserError(
            f"{model} is there already and was not written by sad-deploy", hint="give another --triton-name"
        )


def _write(model: Path, texts: Mapping[str, str], files: Mapping[str, Path]) -> Written:
    """Write one model; its texts first, which a version needs."""
    model.mkdir(exist_ok=True)
    for name, text in texts.items():
        place = model / name
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            with written_whole(place, option="--triton") as whole:
                whole.write_text(text, encoding="utf-8")
    versions = sorted(int(each.name) for each in model.iterdir() if each.name.isdecimal())
    if versions and _same(model / str(versions[-1]), files):
        return Written(model, versions[-1], is_new=False)
    version = versions[-1] + 1 if versions else 1
    with _beside(model.parent) as draft:
        folder = draft / "version"
        folder.mkdir()
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
        folder.rename(model / str(version))
    return Written(model, version, is_new=True)


def _same(version: Path, files: Mapping[str, Path]) -> bool:
    """Whether a version has these files and no others, those that Python compiled aside."""
    there = {each.name for each in version.iterdir()} - {"__pycache__"}
    return there == set(files) and all(
        filecmp.cmp(source, version / name, shallow=False) for name, source in files.items()
    )


@contextlib.contextmanager
def _beside(repository: Path) -> Iterator[Path]:
    """A temporary folder on the repository's file system, outside it: a server loads what lies in it."""
    repository.mkdir(parents=True, exist_ok=True)
    parent = repository.resolve().parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{repository.resolve().name}.") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _refusals(repository: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write a model repository at {repository}: {reason_of(error)}",
            hint="choose another --triton",
        ) from error
