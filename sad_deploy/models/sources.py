"""A model's name → the network, with its own initial weights.

Names: ``digits``, ``digits-adversarial``, the paper's CIFAR networks, every torchvision classifier, and those
from elsewhere of :mod:`.reference`: timm's, transformers', exported programs and anybody's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from sad_runtime.errors import UserError

from ..checkpoints import without_prefix
from ..recipe import EMBEDDED
from . import cifar
from .digits import DigitsResNet
from .exported_program import from_exported
from .factories import from_factory
from .factories import takes_num_classes as factory_takes_num_classes
from .from_hugging_face import from_hugging_face
from .from_timm import check_timm, from_timm
from .plain import thawed
from .reference import Origin, Reference, is_foreign, reference

_OWN: Mapping[str, Callable[[int], nn.Module]] = {
    **dict.fromkeys(EMBEDDED, DigitsResNet),
    "cifar-resnet18": cifar.resnet18,
    "cifar-resnet50": cifar.resnet50,
    "cifar-wrn32-10": cifar.wrn32_10,
}

# Auxiliary heads serve training only; random initialisation would take seconds and be overwritten.
# TRADES' wide network keeps a block that its forward never uses.
_TRAINING_ONLY: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "googlenet": ({"aux_logits": False, "init_weights": False}, ("aux1.", "aux2.")),
    "inception_v3": ({"aux_logits": False, "init_weights": False}, ("AuxLogits.",)),
    "cifar-wrn32-10": ({}, ("sub_block1.",)),
}


def model_names() -> list[str]:
    """All names that are not factories, sorted within each group: own ones, then torchvision's."""
    return [*_OWN, *torchvision_names()]


def torchvision_names() -> list[str]:
    """Every classifier of the installed torchvision."""
    return list(torchvision.models.list_models(module=torchvision.models))


def is_cifar(name: str) -> bool:
    """Whether a name is one of the CIFAR-form networks."""
    return name in _OWN and name not in EMBEDDED


def training_only_prefixes(name: str) -> tuple[str, ...]:
    """Beginnings of checkpoint keys that serve training only, which the built network lacks."""
    return _TRAINING_ONLY.get(name, ({}, ()))[1]


def build_model(name: str, num_classes: int) -> nn.Module:
    """Build a network in eval mode with its own initial weights, in float32.

    Args:
        name: See the module.
        num_classes: K, for what does not decide it itself: see :func:`takes_num_classes`.

    Returns:
        A network from (N, C, H, W) to logits (N, K).

    Raises:
        UserError: The name is unknown (close ones are listed), or what it names cannot be built.
    """
    check_model_name(name)
    if is_foreign(name):
        return thawed(_foreign(reference(name), num_classes)).float().eval()
    if name in _OWN:
        return _OWN[name](num_classes).eval()
    options, _ = _TRAINING_ONLY.get(name, ({}, ()))
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return model.eval()


def _foreign(model: Reference, num_classes: int) -> nn.Module:
    if model.origin is Origin.TIMM:
        return from_timm(model, num_classes)
    if model.origin is Origin.HUGGING_FACE:
        return from_hugging_face(model)
    return from_exported(model) if model.origin is Origin.EXPORTED else from_factory(model, num_classes)


def check_model_name(name: str) -> None:
    """Refuse a name that :func:`build_model` does not know; only names of timm's are looked up elsewhere.

    Raises:
        UserError: The name is unknown; close ones are listed.
    """
    if is_foreign(name):
        model = reference(name)
        if model.origin is Origin.TIMM:
            check_timm(model)
        return
    if name in model_names():
        return
    bare = name.partition("(")[0]
    if bare != name and bare in model_names():
        raise UserError(
            f"{bare} takes no arguments here",
            hint=f"'timm:{bare}(…)' or a factory of yours, package.module:factory, take them",
        )
    close = difflib.get_close_matches(name, model_names(), n=4, cutoff=0.5)
    raise UserError(
        f"there is no model named {name!r}" + (f"; close: {', '.join(close)}" if close else ""),
        hint=f"use {', '.join(_OWN)}, a torchvision classifier, timm:NAME, hf:FOLDER, a .pt2 file, "
        "or package.module:factory for your own",
    )


def classes_in(name: str, state: Mapping[str, Tensor]) -> int | None:
    """K of a checkpoint for a named network: the size of what grows with K; None if it is not there."""
    with torch.device("meta"):
        few, more = (build_model(name, count).state_dict() for count in (2, 3))
    state, _ = without_prefix(state, few, source=name)
    sizes = {state[key].shape[0] for key in few if few[key].shape != more[key].shape and key in state}
    return sizes.pop() if len(sizes) == 1 else None


def takes_num_classes(name: str) -> bool:
    """Whether a network is built for K classes, and does not decide K itself.

    Raises:
        UserError: It is a factory that cannot be found.
    """
    if not is_foreign(name):
        return True
    model = reference(name)
    if model.origin is Origin.TIMM:
        return "num_classes" not in model.arguments
    return model.origin is Origin.FACTORY and factory_takes_num_classes(model)
