"""The manifest: everything that inference must know and that must equal what calibration used.

Frozen dataclasses inside, JSON with a schema version at the border. Reading is strict: an unknown
schema, a missing field, an unknown field or a value of the wrong kind is a :class:`BundleError` that
names the field, and all of them are reported at once.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from . import strict_json
from .choices import Normalization
from .errors import BundleError

MANIFEST_NAME = "manifest.json"
"""Name of the manifest inside the bundle."""

SCHEMA_VERSION = 1
"""Version of the JSON written by this release. A loader refuses anything newer."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def unsafe_name(name: str) -> str | None:
    """Why a file name of a manifest cannot be used, or ``None`` if it can.

    A name is a relative path with forward slashes that stays inside the bundle on every system: no empty,
    ``.`` or ``..`` part, no backslash, no colon (drive letters, NTFS streams), no control character, and
    not the manifest itself.
    """
    if not name:
        return "is empty"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "must be a relative path with forward slashes"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "leaves the bundle or is not in its plain form"
    if any(ord(c) < 32 for c in name):
        return "holds a control character"
    if name.casefold() == MANIFEST_NAME:
        return "is the manifest itself"
    return None


class Color(enum.StrEnum):
    """Colour mode an image is converted to; it decides C."""

    RGB = "RGB"
    GRAY = "L"
    RGBA = "RGBA"
    """Without a fourth channel, an image has 255 there. A resize weights the others by it, as Pillow does."""

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return {Color.RGB: 3, Color.GRAY: 1, Color.RGBA: 4}[self]

    @classmethod
    def of(cls, channels: int) -> Color | None:
        """The mode of so many channels; None for a number that image files are not read as."""
        return next((color for color in cls if color.channels == channels), None)


class Interpolation(enum.StrEnum):
    """Filter of the resize, by Pillow's and torchvision's name."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"


class ExifOrientation(enum.StrEnum):
    """Whether a camera's orientation tag turns the image upright before anything else."""

    APPLY = "apply"
    IGNORE = "ignore"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to (C, H, W) float32 in [0, 1], the graph's input. Normalisation is in the graph.

    Attributes:
        color: Colour mode converted to.
        resize: Length of the shorter side after the resize (aspect kept), or ``(height, width)``.
        crop: ``(height, width)`` of the centre crop; the H and W of the graph.
        interpolation: Filter of the resize, always antialiased.
        exif_orientation: Whether EXIF orientation is applied.
    """

    color: Color
    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: Interpolation = Interpolation.BILINEAR
    exif_orientation: ExifOrientation = ExifOrientation.APPLY

    def __post_init__(self) -> None:
        sides = (self.resize, *self.crop) if isinstance(self.resize, int) else (*self.resize, *self.crop)
        if any(side < 1 for side in sides):
            raise BundleError(
                f"preprocessing sizes must be at least 1, got resize {self.resize}, crop {self.crop}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the graph's input."""
        return (self.color.channels, *self.crop)


@dataclasses.dataclass(frozen=True)
class InputSpace:
    """The affine map from pixels in [0, 1] to the tensor the network sees: x = (image − mean) / std.

    Attributes:
        mean: Per channel, length C.
        std: Per channel, length C, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise BundleError(f"mean and std must have one value per channel, got {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise BundleError(f"mean must be finite and std positive, got {self.mean} and {self.std}")

    @property
    def pixel_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The images of pixel 0 and pixel 1 in the network's input space, per channel."""
        return (
            tuple((0.0 - m) / s for m, s in zip(self.mean, self.std, strict=True)),
            tuple((1.0 - m) / s for m, s in zip(self.mean, self.std, strict=True)),
        )


@dataclasses.dataclass(frozen=True)
class Defence:
    """What inference must do exactly as calibration did: y = argmax Φ1(x + η·normalise(S1(x))).

    Attributes:
        eta: Hybridization ratio η, in the network's input space (after mean and std).
        normalization: How S is scaled before η.
        clip: Whether x + ηS is clipped to the image of the pixel range [0, 1].
    """

    eta: float
    normalization: Normalization = Normalization.NONE
    clip: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.eta) or self.eta < 0:
            raise BundleError(f"eta must be a finite number of at least 0, got {self.eta}")

    def bounds(self, space: InputSpace) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(low, high) of x + ηS per channel, in the network's input space; ``None`` without a clip."""
        return space.pixel_range if self.clip else None


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """How the PyTorch network is rebuilt from ``weights.safetensors``.

    Attributes:
        name: A model name or ``package.module:factory``.
        num_classes: K, the width of the logits.
    """

    name: str
    num_classes: int


@dataclasses.dataclass(frozen=True)
class Graph:
    """One exported two-pass graph.

    Attributes:
        file: Path inside the bundle.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; ``fp32-fp16`` where the second pass is in fp32,
            and what gives the saliency, first pass and backward, in fp16.
        conv_gradient: How the gradient of convolutions was written: ``auto``, ``convtranspose`` or ``conv``.
        target: What the graph was written for: ``portable`` or ``cpu``.
        verification: Figures of the comparison with PyTorch on real images.
    """

    file: str
    precision: str
    conv_gradient: str
    target: str
    verification: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Engine:
    """One TensorRT engine; the details lie in its sidecar.

    Attributes:
        file: Path of the plan inside the bundle.
        sidecar: Path of the JSON beside it.
        graph: The ONNX file it was built from.
        flavor: ``rtx`` or ``tensorrt``.
        precision: As the graph's.
    """

    file: str
    sidecar: str
    graph: str
    flavor: str
    precision: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All of ``manifest.json``. ``files`` is filled by the bundle writer.

    Attributes:
        model: The PyTorch network behind it.
        classes: Class names, in the order of the logits.
        preprocessing: Image to graph input.
        input_space: Pixels to network input.
        defence: η and what goes with it.
        calibration: Provenance and figures of the calibration, for people and audits; JSON values only.
        graphs: Exported graphs.
        engines: Built engines.
        files: SHA-256 of every other file of the bundle, by its path inside.
        created_by: Program and version that wrote it.
        schema: Schema version.
    """

    model: ModelSource
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_space: InputSpace
    defence: Defence
    calibration: Mapping[str, Any]
    graphs: tuple[Graph, ...] = ()
    engines: tuple[Engine, ...] = ()
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created_by: str = ""
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        problems = []
        if len(self.classes) != self.model.num_classes:
            problems.append(f"{len(self.classes)} class names for {self.model.num_classes} logits")
        if len(self.input_space.mean) != self.preprocessing.color.channels:
            problems.append(
                f"{len(self.input_space.mean)} mean values for {self.preprocessing.color.channels} channels"
            )
        for name in sorted(self.file_names()):
            if reason := unsafe_name(name):
                problems.append(f"file name {name!r} {reason}")
        problems += [
            f"{digest!r} is not a SHA-256 of {name!r}"
            for name, digest in self.files.items()
            if not _SHA256.fullmatch(digest)
        ]
        if self.files:
            unlisted = sorted(self.file_names() - set(self.files))
            problems += [f"{name!r} is used but has no SHA-256 in files" for name in unlisted]
        if problems:
            raise BundleError("the manifest contradicts itself: " + "; ".join(problems))

    def file_names(self) -> set[str]:
        """Every path inside the bundle that the manifest names."""
        engines = {name for engine in self.engines for name in (engine.file, engine.sidecar, engine.graph)}
        return {graph.file for graph in self.graphs} | engines | set(self.files)

    def to_json(self) -> str:
        """The text of ``manifest.json``; :meth:`from_json` gives back an equal manifest.

        Raises:
            BundleError: A value is not JSON, for example NaN among the calibration figures.
        """
        problems: list[str] = []
        plain = strict_json.to_plain(self, "", problems)
        if problems:
            raise BundleError("the manifest cannot be written: " + "; ".join(problems))
        return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read the text of ``manifest.json``.

        Raises:
            BundleError: Not JSON; a newer or unknown schema; missing or unknown fields or values of the wrong
                kind, all of them named; values that contradict each other.
        """
        try:
            plain = strict_json.parse(text)
        except ValueError as error:
            raise BundleError(f"{MANIFEST_NAME} is not valid JSON: {error}") from None
        if not isinstance(plain, dict):
            raise BundleError(f"{MANIFEST_NAME} must hold an object")
        schema = plain.get("schema")
        if type(schema) is int and schema > SCHEMA_VERSION:
            raise BundleError(
                f"written by a newer sad-deploy (schema {schema}, this one reads up to {SCHEMA_VERSION})",
                hint="upgrade: pip install --upgrade sad-deploy",
            )
        problems: list[str] = []
        if type(schema) is int and schema < 1:
            problems.append(f"schema: must be from 1 to {SCHEMA_VERSION}, got {schema}")
        manifest = strict_json.from_plain(cls, plain, "", problems)
        if problems:
            raise BundleError(f"{MANIFEST_NAME}: " + "; ".join(problems))
        assert isinstance(manifest, cls)
        return manifest
