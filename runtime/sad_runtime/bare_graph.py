"""A bare two-pass graph as a bundle of one file: its manifest is made from the file's metadata and options.

What ``sad-deploy export`` writes says everything of itself: classes, preprocessing, η, mean and std. A file
of ``defend`` knows its defence, but neither its classes nor how images come to its size: unless told, classes
are numbers and an image is resized to the graph's height and width.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import strict_json
from .backends.protocol import LOGITS, SALIENCY
from .bundle import Bundle
from .bundle.read import sha256
from .choices import Normalization, choose
from .class_names import names_in_metadata, read_class_names
from .errors import BundleError, UserError
from .graph_metadata import PREFIX
from .manifest import (
    Color,
    Defence,
    ExifOrientation,
    Graph,
    InputSpace,
    Interpolation,
    Manifest,
    ModelSource,
    Preprocessing,
)

_PREPROCESSING = f"{PREFIX}preprocessing"
_CLASSES = f"{PREFIX}classes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BareOptions:
    """What the user says of a bare graph; None: as the file says, else the default.

    Attributes:
        resize: Length of the shorter side after the resize, aspect kept; the middle is cut out of it.
        interpolation: Filter of the resize.
        exif_orientation: Whether the camera's orientation tag turns the image.
        classes: File with the names of the classes, in the order of the logits.
        mean: Per channel, of a classifier without a defence that has it not inside; with ``std``.
        std: Likewise.
    """

    resize: int | None = None
    interpolation: Interpolation | None = None
    exif_orientation: ExifOrientation | None = None
    classes: Path | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def given(self) -> list[str]:
        """Names of those that were given, as options."""
        fields = dataclasses.fields(self)
        return [f"--{f.name.replace('_', '-')}" for f in fields if getattr(self, f.name) is not None]


def stated_by(manifest: Manifest) -> dict[str, str]:
    """What a graph's ``metadata_props`` say of classes and preprocessing, for :func:`bundle_of_graph`."""
    problems: list[str] = []
    preprocessing = strict_json.to_plain(manifest.preprocessing, "", problems)
    return {
        _PREPROCESSING: json.dumps(preprocessing),
        _CLASSES: json.dumps(list(manifest.classes), ensure_ascii=False),
    }


def stated(options: BareOptions, path: Path, shape: tuple[int, int, int], classes: int) -> dict[str, str]:
    """What a graph's ``metadata_props`` are to say of what its user told; nothing of what was not told.

    Args:
        options: What was told; mean and std are no part of this, they are in the graph.
        path: The classifier's file, for messages.
        shape: (C, H, W) that it takes.
        classes: K.

    Raises:
        UserError: It does not fit the classifier.
    """
    found = {}
    if any(each is not None for each in (options.resize, options.interpolation, options.exif_orientation)):
        preprocessing = preprocessing_of(path, {}, options, shape)
        found[_PREPROCESSING] = json.dumps(strict_json.to_plain(preprocessing, "", []))
    if options.classes is not None:
        names = classes_of(path, {}, options, classes)
        found[_CLASSES] = json.dumps(list(names), ensure_ascii=False)
    return found


def bundle_of_graph(path: Path, options: BareOptions) -> Bundle:
    """A bare two-pass graph as a bundle.

    Args:
        path: The file of ``sad-deploy export`` or ``defend``.
        options: What the file does not say, or says otherwise.

    Raises:
        UserError: No such file, no two-pass graph, or options that do not fit it.
    """
    if not path.is_file():
        raise UserError(f"no graph at {path}", hint="sad-deploy defend FORWARD.onnx --eta X writes one")
    if options.mean is not None or options.std is not None:
        raise UserError("--mean and --std are for --plain; a two-pass graph has them inside")
    metadata, (channels, height, width), classes = _read(path)
    if f"{PREFIX}eta" not in metadata:
        raise BundleError(
            f"{path} does not say what its defence is, so it is no two-pass graph of sad-deploy",
            hint=f"sad-deploy defend {path} --eta X makes one of a classifier",
        )
    mean, std = (_value(path, metadata, name) for name in ("mean", "std"))
    defence = Defence(
        float(_value(path, metadata, "eta")),
        choose(Normalization, _value(path, metadata, "normalization"), "normalization"),
        clip=_value(path, metadata, "clip") is not None,
    )
    return Bundle(
        path.parent,
        Manifest(
            model=ModelSource(path.stem, classes),
            classes=classes_of(path, metadata, options, classes),
            preprocessing=preprocessing_of(path, metadata, options, (channels, height, width)),
            input_space=InputSpace(tuple(mean or [0.0] * channels), tuple(std or [1.0] * channels)),
            defence=defence,
            calibration={},
            graphs=(
                Graph(
                    path.name,
                    metadata.get(f"{PREFIX}precision", "fp32"),
                    metadata.get(f"{PREFIX}conv_gradient", "auto"),
                    "portable",
                    {},
                ),
            ),
            files={path.name: sha256(path)},
        ),
    )


def opened(path: Path) -> Any:
    """onnxruntime's session of a graph; nothing is optimised for it, so it takes less time than loading.

    Raises:
        BundleError: onnxruntime cannot read it.
    """
    import onnxruntime

    quick = onnxruntime.SessionOptions()
    quick.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    quick.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), quick, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        reason = " ".join(str(error).split())[-200:]
        raise BundleError(f"{path} cannot be read as an ONNX graph: {reason}") from None


def _read(path: Path) -> tuple[Mapping[str, str], tuple[int, int, int], int]:
    """Metadata, (C, H, W) and K.

    Raises:
        BundleError: onnxruntime cannot read it, or it is no two-pass graph.
    """
    session = opened(path)
    outputs = {output.name: output.shape for output in session.get_outputs()}
    image = session.get_inputs()[0].shape
    if not {LOGITS, SALIENCY} <= set(outputs) or len(image) != 4:
        raise BundleError(
            f"{path} has outputs {', '.join(outputs)}, so it is no two-pass graph",
            hint=f"sad-deploy defend {path} --eta X makes one of a classifier; --plain runs it as it is",
        )
    _, channels, height, width = image
    return session.get_modelmeta().custom_metadata_map, (channels, height, width), outputs[LOGITS][1]


def _value(path: Path, metadata: Mapping[str, str], name: str) -> Any:
    """What the file says under a name.

    Raises:
        BundleError: It is not what sad-deploy writes.
    """
    try:
        return json.loads(metadata[PREFIX + name])
    except (KeyError, ValueError):
        raise BundleError(f"{path} does not say its {name}") from None


def preprocessing_of(
    path: Path, metadata: Mapping[str, str], options: BareOptions, shape: tuple[int, int, int]
) -> Preprocessing:
    """How images come to a graph: as its file says, else to its height and width, but for what is told.

    Args:
        path: The file, for messages.
        metadata: Its own.
        options: What is told.
        shape: (C, H, W) that it takes.

    Raises:
        UserError: It takes no such images, or the options do not fit.
    """
    channels, height, width = shape
    color = Color.of(channels)
    if color is None:
        raise UserError(f"images are read with 1, 3 or 4 channels, {path} takes {channels}")
    stated = Preprocessing(color, (height, width), (height, width))
    if _PREPROCESSING in metadata:
        problems: list[str] = []
        stated = strict_json.from_plain(Preprocessing, _value(path, metadata, "preprocessing"), "", problems)
        if problems:
            raise BundleError(f"{path} does not say its preprocessing: {'; '.join(problems)}")
    if options.resize is not None and options.resize < max(height, width):
        raise UserError(
            f"--resize {options.resize} leaves less than the {height}×{width} that {path} takes",
            hint=f"at least {max(height, width)}",
        )
    given = {
        name: value
        for name in ("resize", "interpolation", "exif_orientation")
        if (value := getattr(options, name)) is not None
    }
    return dataclasses.replace(stated, **given)


def classes_of(path: Path, metadata: Mapping[str, str], options: BareOptions, count: int) -> tuple[str, ...]:
    """Names of the classes: those that are told, else as the file says, ours or its exporter, else numbers.

    Raises:
        UserError: Another number of them than of logits.
    """
    if options.classes is not None:
        names = read_class_names(options.classes)
    elif _CLASSES in metadata:
        names = tuple(map(str, _value(path, metadata, "classes")))
    else:
        names = names_in_metadata(metadata, count) or tuple(map(str, range(count)))
    if len(names) != count:
        raise UserError(f"{len(names)} class names for the {count} logits of {path}")
    return names
