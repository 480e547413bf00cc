"""What the network sees: how an image becomes pixels, and pixels its input.

Of several that say it the first counts, and options change what it says:

1. the data, where they are of one size;
2. published weights, the network's own configuration, or one beside the weights (:mod:`.models.stated`);
3. what is known of the embedded networks;
4. ImageNet's values, which is an assumption.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, InputSpace, Preprocessing

from .data import DataSource
from .data.cifar import SIDE as CIFAR_SIDE
from .data.digits import PREPROCESSING as DIGITS_PREPROCESSING
from .models import cifar, digits
from .models.pretrained import Pretrained
from .models.reference import is_foreign
from .models.sources import is_cifar
from .models.stated import Stated, stated_by
from .recipe import EMBEDDED, Recipe
from .saliency import logits_of

_IMAGENET = InputSpace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_IMAGENET_SIDE = 224
_IMAGENET_RESIZE = 256 / 224
_INCEPTION_SIDE = 299
_SMALLEST_PHOTO = 128


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """What the network sees.

    Attributes:
        preprocessing: Image to pixels.
        space: Pixels to network input.
        source: Where it is said, if a configuration says it.
    """

    preprocessing: Preprocessing
    space: InputSpace
    source: str | None


def network_input(
    recipe: Recipe, data: DataSource, pretrained: Pretrained | None, model: nn.Module, folder: Path | None
) -> NetworkInput:
    """Decide it.

    Args:
        recipe: What was asked for.
        data: The images.
        pretrained: Published weights, if they are.
        model: As it was built.
        folder: The folder of its weights, if they lie in one.

    Raises:
        UserError: What was asked for does not fit the data or each other.
    """
    said: Stated | None = None
    if pretrained is not None and pretrained.images is not None:
        said = Stated(*pretrained.images, source=pretrained.name)
    elif data.preprocessing is None:
        said = stated_by(model, folder)
    preprocessing = _preprocessing(recipe, data, said, model)
    space = _input_space(recipe, data, said, preprocessing)
    return NetworkInput(preprocessing, space, said.source if said is not None else None)


def _preprocessing(recipe: Recipe, data: DataSource, said: Stated | None, model: nn.Module) -> Preprocessing:
    if data.preprocessing is not None:
        _refuse_options(recipe, data.preprocessing)
        return data.preprocessing
    size = recipe.image_size
    known = said.preprocessing if said is not None else _known(recipe, model)
    if said is not None and len(recipe.input_space[0] if recipe.input_space else ()) in (1, 4):
        known = dataclasses.replace(known, color=_color(recipe, model, size or known.crop))
    if size is not None:
        known = dataclasses.replace(known, resize=_scaled(known, size), crop=size)
    if recipe.resize is not None:
        known = dataclasses.replace(known, resize=recipe.resize)
    if recipe.crop_pct is not None:
        known = dataclasses.replace(known, resize=math.floor(min(known.crop) / recipe.crop_pct))
    if recipe.interpolation is not None:
        known = dataclasses.replace(known, interpolation=recipe.interpolation)
    if recipe.resize is not None and recipe.resize < max(known.crop):
        raise UserError(
            f"--resize {recipe.resize} is less than the network's input of {max(known.crop)}",
            hint="it is the shorter side before the crop; --image-size is what is cut out",
        )
    return known


def _refuse_options(recipe: Recipe, fixed: Preprocessing) -> None:
    height, width = fixed.crop
    given = [
        name
        for name, value in (
            ("--image-size", recipe.image_size not in (None, fixed.crop)),
            ("--resize", recipe.resize),
            ("--crop-pct", recipe.crop_pct),
            ("--interpolation", recipe.interpolation),
        )
        if value
    ]
    if given:
        raise UserError(
            f"{', '.join(given)}: {recipe.data} has images of {height}×{width}", hint="leave them out"
        )


def _scaled(known: Preprocessing, size: tuple[int, int]) -> int | tuple[int, int]:
    """The resize for another size, in the same proportion to the crop.

    By the shorter side, an image need not cover an input that is no square; it is resized to its shape then.
    """
    both = (known.resize, known.resize) if isinstance(known.resize, int) else known.resize
    height, width = (round(r * n / c) for r, n, c in zip(both, size, known.crop, strict=True))
    return height if isinstance(known.resize, int) and size[0] == size[1] else (height, width)


def _known(recipe: Recipe, model: nn.Module) -> Preprocessing:
    """Of an embedded network, or assumed."""
    if recipe.model in EMBEDDED:
        return DIGITS_PREPROCESSING
    if is_cifar(recipe.model):
        return Preprocessing(color=Color.RGB, resize=CIFAR_SIDE, crop=(CIFAR_SIDE, CIFAR_SIDE))
    usual = _INCEPTION_SIDE if recipe.model == "inception_v3" else _IMAGENET_SIDE
    side = min(recipe.image_size or (usual,))
    # The border is cut off photographs, not off small images that were made that size.
    resize = round(side * _IMAGENET_RESIZE) if side >= _SMALLEST_PHOTO else side
    return Preprocessing(
        color=_color(recipe, model, recipe.image_size or (side, side)), resize=resize, crop=(side, side)
    )


def _color(recipe: Recipe, model: nn.Module, size: tuple[int, int]) -> Color:
    """Grey for one mean value, if a network from elsewhere takes that; one may be for all three channels."""
    values = 3 if recipe.input_space is None or not is_foreign(recipe.model) else len(recipe.input_space[0])
    if values != 1:
        return Color.of(values) or Color.RGB
    try:
        with torch.no_grad():  # a copy: lazy modules would take their shape from this
            logits_of(copy.deepcopy(model), torch.zeros(2, 1, *size))
    except RuntimeError:
        return Color.RGB
    return Color.GRAY


def _input_space(
    recipe: Recipe, data: DataSource, said: Stated | None, preprocessing: Preprocessing
) -> InputSpace:
    channels = preprocessing.color.channels
    if recipe.input_space is not None:
        mean, std = recipe.input_space
        if len(mean) not in (1, channels):
            raise UserError(
                f"--mean and --std have {len(mean)} values, the images {channels} channels",
                hint="give one value a channel, or one for all",
            )
        repeated = channels // len(mean)
        return InputSpace(mean * repeated, std * repeated)
    if said is not None:
        return said.input_space
    if channels == 1:
        return InputSpace(digits.MEAN, digits.STD)
    if is_cifar(recipe.model) or data.preprocessing is not None:
        return InputSpace(cifar.MEAN, cifar.STD)
    return _IMAGENET
