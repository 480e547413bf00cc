"""``timm:NAME``, such as ``timm:resnet26t`` or ``timm:resnet50.a1_in1k(in_chans=1)``: extra ``timm``.

The network is built without weights and says itself what images it sees (``pretrained_cfg``). Its published
weights are ``--weights DEFAULT``; what follows the dot in its name chooses among several.
"""

from __future__ import annotations

import difflib
import warnings
from typing import Any

import torchvision
from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.extras import require

from .reference import Reference

_IMAGENET = "imagenet-1k"


def check_timm(model: Reference) -> None:
    """Refuse a network that the installed timm does not have.

    Raises:
        UserError: Its name is unknown (close ones are listed).
        MissingExtraError: timm is not installed.
    """
    timm = _timm()
    name = model.name.partition(".")[0]
    if timm.is_model(name):
        return
    close = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
    raise UserError(
        f"timm {timm.__version__} has no model {name!r}" + (f"; close: {', '.join(close)}" if close else ""),
        hint="python -c 'import timm; print(timm.list_models())' lists them",
    )


def from_timm(model: Reference, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build it.

    Args:
        model: Its name and further arguments of ``timm.create_model``.
        num_classes: K, unless it is among the arguments.
        pretrained: With the published weights, from the Hugging Face hub's cache or downloaded.

    Raises:
        UserError: timm does not build it like that, or its weights are not there.
    """
    timm = _timm()
    arguments = {"num_classes": num_classes} | dict(model.arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built: nn.Module = timm.create_model(model.name, pretrained=pretrained, **arguments)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        if pretrained and isinstance(error, OSError):
            raise UserError(
                f"the published weights of {model.text} could not be read or downloaded: {said}",
                hint="download the file elsewhere and give it with --weights",
            ) from None
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"timm does not build {model.name}({given}): {type(error).__name__}: {said}",
            hint="arguments in parentheses are those of timm.create_model",
        ) from error
    return built


def published(model: Reference) -> bool:
    """Whether there are weights of it to download."""
    return bool(_config(model).has_weights)


def published_classes(model: Reference) -> tuple[str, ...] | None:
    """Names of the classes of its published weights, where timm knows them."""
    config = _config(model)
    if names := config.label_names:
        return tuple(map(str, names))
    data: Any = require("timm.data", extra="timm", need="--model timm:NAME")
    # timm has 1,000 first, and tells the others by the name of the weights.
    subset = data.infer_imagenet_subset(config.to_dict()) or (
        _IMAGENET if config.num_classes == 1000 else None
    )
    if subset == _IMAGENET:  # of timm's descriptions some are equal
        return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    if info.num_classes() != config.num_classes:
        return None
    described = tuple(str(info.index_to_description(i)) for i in range(info.num_classes()))
    return described if len(set(described)) == len(described) else tuple(map(str, info.label_names()))


def published_weights(model: Reference) -> dict[str, Tensor]:
    """The published weights.

    Raises:
        UserError: They can neither be found nor downloaded.
    """
    return dict(from_timm(model, _config(model).num_classes, pretrained=True).state_dict())


def _config(model: Reference) -> Any:
    config = _timm().get_pretrained_cfg(model.name, allow_unregistered=True)
    assert config is not None  # allow_unregistered gives an empty one
    return config


def _timm() -> Any:
    return require("timm", extra="timm", need="--model timm:NAME")
