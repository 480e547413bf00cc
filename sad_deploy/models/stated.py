"""What a network, or the folder of its weights, says of its images: timm's and Hugging Face's configurations.

1. timm: ``pretrained_cfg`` of the network itself, or in a ``config.json`` beside the weights. The resize is
   ⌊side / crop_pct⌋, of the shorter side, or of both with ``crop_mode`` ``squash``.
2. Hugging Face: ``preprocessor_config.json`` beside the weights: ``size`` as the shortest edge or as height
   and width, ``crop_size`` or ``crop_pct``, ``resample`` by Pillow's number, ``image_mean``, ``image_std``.

What says anything that a bundle's preprocessing cannot do is refused with its name, not half followed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, InputSpace, Interpolation, Preprocessing

_RESAMPLE = {0: Interpolation.NEAREST, 2: Interpolation.BILINEAR, 3: Interpolation.BICUBIC}
_COLORS = {color.channels: color for color in Color}
_LARGE = 384
"""From this edge on ConvNeXt's processor crops nothing."""


@dataclasses.dataclass(frozen=True)
class Stated:
    """What is said of a network's images.

    Attributes:
        preprocessing: Image to pixels.
        input_space: Pixels to network input.
        source: Where it is said, for people.
    """

    preprocessing: Preprocessing
    input_space: InputSpace
    source: str


def stated_by(model: nn.Module, folder: Path | None) -> Stated | None:
    """What the network says itself, or else a file beside its weights.

    Args:
        model: As it was built.
        folder: Where its weights lie.

    Raises:
        UserError: That file is no JSON, or asks for what a bundle's preprocessing cannot do.
    """
    config = getattr(model, "pretrained_cfg", None)
    if config is not None and not isinstance(config, Mapping):  # timm's dataclass
        config = vars(config) if hasattr(config, "__dict__") else None
    if isinstance(config, Mapping) and config.get("input_size"):
        return _read(_of_timm, config, f"{type(model).__name__}.pretrained_cfg")
    if folder is None:
        return None
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return _read(_of_hugging_face, _json(path), str(path))
    path = folder / "config.json"
    inside = _json(path).get("pretrained_cfg") if path.is_file() else None
    return _read(_of_timm, inside, str(path)) if isinstance(inside, Mapping) else None


def class_names_beside(folder: Path) -> tuple[str, ...] | None:
    """The class names in timm's ``config.json`` beside weights (``label_descriptions``, ``label_names``)."""
    path = folder / "config.json"
    config = _json(path) if path.is_file() else {}
    inside = config.get("pretrained_cfg")
    names = config.get("label_names") or (inside.get("label_names") if isinstance(inside, Mapping) else None)
    described = config.get("label_descriptions")
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        return None
    told = [str(described.get(name, name)) for name in names] if isinstance(described, Mapping) else names
    return tuple(map(str, told if len(set(told)) == len(names) else names))


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint="mend it, or move it away") from None
    return found if isinstance(found, Mapping) else {}


def _read(reader: Any, config: Mapping[str, Any], source: str) -> Stated:
    try:
        preprocessing, space = reader(config)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        wrong = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{source} does not say how images are prepared, or says what cannot be done here ({wrong})",
            hint="say it with --image-size, --resize, --interpolation, --mean and --std, without that file",
        ) from None
    return Stated(preprocessing, space, source)


def _of_timm(config: Mapping[str, Any]) -> tuple[Preprocessing, InputSpace]:
    channels, height, width = config["input_size"]
    part = float(config.get("crop_pct") or 0.875)
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {mode}")
    resized = math.floor(height / part), math.floor(width / part)
    resize: int | tuple[int, int] = resized if mode == "squash" or height != width else resized[0]
    named = config.get("interpolation") or "bilinear"
    return Preprocessing(
        color=_COLORS[channels],
        resize=resize,
        crop=(height, width),
        interpolation=Interpolation.BILINEAR if named == "random" else Interpolation(named),
    ), InputSpace(tuple(map(float, config["mean"])), tuple(map(float, config["std"])))


def _of_hugging_face(config: Mapping[str, Any]) -> tuple[Preprocessing, InputSpace]:
    scale = config.get("rescale_factor", 1 / 255)
    if not config.get("do_rescale", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        raise ValueError(f"rescale_factor {scale}")
    normalized = config.get("do_normalize", True)
    mean = tuple(map(float, config["image_mean"])) if normalized else (0.0,) * 3
    std = tuple(map(float, config["image_std"])) if normalized else (1.0,) * 3
    edge, both = _size(config["size"])
    crop, resize = both or (edge, edge), both or edge
    if config.get("crop_pct") is not None and edge:
        resize = (edge, edge) if edge >= _LARGE else int(edge / config["crop_pct"])
    elif config.get("do_center_crop") and config.get("crop_size") is not None:
        cut, exactly = _size(config["crop_size"])
        crop = exactly or (cut, cut)
    elif both is None and isinstance(config["size"], Mapping):
        raise ValueError("a shortest edge without a crop: images of any shape")
    return Preprocessing(
        color=_COLORS[len(mean)],
        resize=resize,
        crop=crop,
        interpolation=_RESAMPLE[config.get("resample", 2)],
    ), InputSpace(mean, std)


def _size(size: Any) -> tuple[int, tuple[int, int] | None]:
    """The shortest edge, or 0 and height and width; a number is an edge."""
    if not isinstance(size, Mapping):
        return int(size), None
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), None
    return 0, (int(size["height"]), int(size["width"]))
