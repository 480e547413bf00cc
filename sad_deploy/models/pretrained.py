"""Weights that come with a name, with their classes and preprocessing.

1. torchvision's published ones, such as ``IMAGENET1K_V2``; ``DEFAULT`` is the best of them.
2. timm's published ones, ``DEFAULT``.
3. Those in the folder of ``hf:FOLDER``, which are meant where no others are given.
"""

from __future__ import annotations

import dataclasses
import pickle
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor

from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, InputSpace, Interpolation, Preprocessing

from . import from_hugging_face, from_timm
from .reference import Origin, Reference, origin_of, reference
from .sources import torchvision_names

_DEFAULT = "DEFAULT"

# With published weights torchvision maps the input of these from ImageNet's mean and std to 0.5 and 0.5
# inside the network; the networks built here do not, so their input space says it.
_INPUT_TRANSFORMED = {"googlenet", "inception_v3"}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One set of weights, not yet read or downloaded.

    Attributes:
        name: For example ``ResNet18_Weights.IMAGENET1K_V1``.
        publisher: ``torchvision``, ``timm`` or ``transformers``.
        classes: Class names in the order of the logits; None if they are not known.
        images: Image to pixels, and pixels to network input; None where the network, or a file beside the
            weights, says it.
        folder: The folder of the weights, where they lie in one.
        state_dict: Reads the weights. It raises a UserError where they cannot be downloaded or are damaged.
    """

    name: str
    publisher: str
    classes: tuple[str, ...] | None
    images: tuple[Preprocessing, InputSpace] | None
    folder: Path | None
    state_dict: Callable[[], dict[str, Tensor]]


def _downloaded(weights: Any) -> dict[str, Tensor]:
    """torchvision's, from torch.hub's cache or downloaded and checked against the published hash."""
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=True, check_hash=True, weights_only=True, map_location="cpu"
        )
    except urllib.error.URLError as error:
        raise UserError(
            f"{weights} could not be downloaded from {weights.url}: {error.reason}",
            hint="download it elsewhere and give the file with --weights",
        ) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        raise UserError(
            f"{weights}: the file of {weights.url} is damaged: {str(error)[:160]}",
            hint="remove it from torch.hub's cache and try again",
        ) from None
    return state


def weight_names(model: str) -> list[str]:
    """Names of the published weights of torchvision's and timm's classifiers; none for other models."""
    if origin_of(model) is Origin.TIMM:
        return [_DEFAULT] if from_timm.published(reference(model)) else []
    if model not in torchvision_names():
        return []
    return [_DEFAULT, *(weights.name for weights in torchvision.models.get_model_weights(model))]


def find_pretrained(model: str, name: str | None) -> Pretrained | None:
    """Weights by name.

    Args:
        model: Its name.
        name: One of :func:`weight_names`; None for those that a folder of transformers holds.

    Returns:
        The weights, or None if this model has none of that name.
    """
    if name is None:
        return _in_folder(reference(model)) if origin_of(model) is Origin.HUGGING_FACE else None
    if name not in weight_names(model):
        return None
    if origin_of(model) is Origin.TIMM:
        return _of_timm(reference(model))
    return _of_torchvision(model, name)


def _in_folder(model: Reference) -> Pretrained:
    classes = from_hugging_face.class_names(model)
    folder = from_hugging_face.folder_of(model)
    if not from_hugging_face.has_weights(model):
        raise UserError(
            f"{folder} holds no weights", hint="put model.safetensors there, or give others with --weights"
        )
    return Pretrained(
        model.text, "transformers", classes, None, folder, lambda: from_hugging_face.weights(model)
    )


def _of_timm(model: Reference) -> Pretrained:
    return Pretrained(
        f"{model.text} (published)",
        "timm",
        from_timm.published_classes(model),
        None,
        None,
        lambda: from_timm.published_weights(model),
    )


def _of_torchvision(model: str, name: str) -> Pretrained:
    weights = torchvision.models.get_model_weights(model)[name]
    transforms = weights.transforms()
    (resize,) = transforms.resize_size
    (crop,) = transforms.crop_size
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if model in _INPUT_TRANSFORMED:
        mean = std = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(
        color=Color.RGB,
        resize=resize,
        crop=(crop, crop),
        interpolation=Interpolation(transforms.interpolation.value),
    )
    return Pretrained(
        str(weights),
        "torchvision",
        tuple(weights.meta["categories"]),
        (preprocessing, InputSpace(mean, std)),
        None,
        lambda: _downloaded(weights),
    )
