"""torchvision's published weights by name (``IMAGENET1K_V2``, ``DEFAULT``), classes and preprocessing."""

from __future__ import annotations

import dataclasses
import pickle
import urllib.error
from typing import Any

import torchvision
from torch import Tensor

from sad_runtime.errors import UserError
from sad_runtime.manifest import Color, InputSpace, Interpolation, Preprocessing

from .sources import torchvision_names

# With published weights torchvision maps the input of these from ImageNet's mean and std to 0.5 and 0.5
# inside the network; the networks built here do not, so their input space says it.
_INPUT_TRANSFORMED = {"googlenet", "inception_v3"}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One published set of weights, not yet downloaded.

    Attributes:
        name: For example ``ResNet18_Weights.IMAGENET1K_V1``.
        classes: Class names in the order of the logits.
        preprocessing: What the weights were evaluated with.
        input_space: Likewise.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    input_space: InputSpace
    _weights: Any

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, from torch.hub's cache or downloaded and checked against the published hash.

        Raises:
            UserError: They cannot be downloaded, or the file is damaged.
        """
        try:
            state: dict[str, Tensor] = self._weights.get_state_dict(
                progress=True, check_hash=True, weights_only=True, map_location="cpu"
            )
        except urllib.error.URLError as error:
            raise UserError(
                f"{self.name} could not be downloaded from {self._weights.url}: {error.reason}",
                hint="download it elsewhere and give the file with --weights",
            ) from None
        except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
            raise UserError(
                f"{self.name}: the file of {self._weights.url} is damaged: {str(error)[:160]}",
                hint="remove it from torch.hub's cache and try again",
            ) from None
        return state


def weight_names(model: str) -> list[str]:
    """Names of the published weights of a torchvision classifier; none for other models."""
    if model not in torchvision_names():
        return []
    return ["DEFAULT", *(weights.name for weights in torchvision.models.get_model_weights(model))]


def find_pretrained(model: str, name: str) -> Pretrained | None:
    """Published weights by name.

    Args:
        model: A torchvision classifier.
        name: One of :func:`weight_names`.

    Returns:
        The weights, or None if this model has none of that name.
    """
    if name not in weight_names(model):
        return None
    weights = torchvision.models.get_model_weights(model)[name]
    transforms = weights.transforms()
    (resize,) = transforms.resize_size
    (crop,) = transforms.crop_size
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if model in _INPUT_TRANSFORMED:
        mean = std = (0.5, 0.5, 0.5)
    return Pretrained(
        name=str(weights),
        classes=tuple(weights.meta["categories"]),
        preprocessing=Preprocessing(
            color=Color.RGB,
            resize=resize,
            crop=(crop, crop),
            interpolation=Interpolation(transforms.interpolation.value),
        ),
        input_space=InputSpace(mean, std),
        _weights=weights,
    )
