"""A model's name → the network, without weights.

Names: ``digits``, ``digits-adversarial``, the paper's CIFAR networks, every torchvision classifier, and
``package.module:factory`` for anybody's own, looked up from the current folder too.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from sad_runtime.errors import UserError

from ..checkpoints import without_prefix
from ..recipe import EMBEDDED
from . import cifar
from .digits import DigitsResNet
from .plain import unwrapped

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


def is_factory(name: str) -> bool:
    """Whether a name is ``package.module:factory``."""
    return ":" in name


def is_cifar(name: str) -> bool:
    """Whether a name is one of the CIFAR-form networks."""
    return name in _OWN and name not in EMBEDDED


def training_only_prefixes(name: str) -> tuple[str, ...]:
    """Beginnings of checkpoint keys that serve training only, which the built network lacks."""
    return _TRAINING_ONLY.get(name, ({}, ()))[1]


def build_model(name: str, num_classes: int) -> nn.Module:
    """Build a network in eval mode with its own initial weights.

    Args:
        name: See the module.
        num_classes: K; a factory is given it if it takes an argument of that name, or ``**kwargs``.

    Returns:
        A network from (N, C, H, W) to logits (N, K).

    Raises:
        UserError: The name is unknown (close ones are listed), or the factory is missing, needs other
            arguments or gives no module.
    """
    check_model_name(name)
    if is_factory(name):
        return _from_factory(name, num_classes).eval()
    if name in _OWN:
        return _OWN[name](num_classes).eval()
    options, _ = _TRAINING_ONLY.get(name, ({}, ()))
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return model.eval()


def check_model_name(name: str) -> None:
    """Refuse a name that :func:`build_model` does not know; a factory is not looked up.

    Raises:
        UserError: The name is unknown; close ones are listed.
    """
    if is_factory(name) or name in model_names():
        return
    close = difflib.get_close_matches(name, model_names(), n=4, cutoff=0.5)
    raise UserError(
        f"there is no model named {name!r}" + (f"; close: {', '.join(close)}" if close else ""),
        hint=f"use {', '.join(_OWN)}, a torchvision classifier, or package.module:factory for your own",
    )


def classes_in(name: str, state: Mapping[str, Tensor]) -> int | None:
    """K of a checkpoint for a named network: the size of what grows with K; None if it is not there."""
    with torch.device("meta"):
        few, more = (build_model(name, count).state_dict() for count in (2, 3))
    state, _ = without_prefix(state, few, source=name)
    sizes = {state[key].shape[0] for key in few if few[key].shape != more[key].shape and key in state}
    return sizes.pop() if len(sizes) == 1 else None


def takes_num_classes(name: str) -> bool:
    """Whether a factory has an argument ``num_classes``, by name or among its ``**kwargs``.

    Raises:
        UserError: The factory cannot be found.
    """
    module_name, _, attribute = name.partition(":")
    with _current_folder_importable():
        return _has_num_classes(_find_factory(name, module_name, attribute))


def _from_factory(name: str, num_classes: int) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    with _current_folder_importable():
        factory = _find_factory(name, module_name, attribute)
        if isinstance(factory, nn.Module):  # a network already: nobody else's may change
            model: object = copy.deepcopy(unwrapped(factory))
        else:
            arguments = {"num_classes": num_classes} if _has_num_classes(factory) else {}
            _check_call(name, factory, arguments)
            model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{name} returned a {type(model).__name__}, not a torch.nn.Module",
            hint="return the network itself",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{name} is a TorchScript module, whose layers cannot be calibrated",
            hint="give the Python module that it was scripted from",
        )
    return unwrapped(model)


def _check_call(name: str, factory: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Refuse a factory that needs arguments which nobody gives it."""
    try:
        signature = inspect.signature(factory)
    except (ValueError, TypeError):  # builtins without a signature
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{name}{signature} cannot be called with num_classes alone: {error}",
            hint="write a function of your own that takes num_classes, calls it and returns the network",
        ) from None


def _find_factory(name: str, module_name: str, attribute: str) -> Callable[..., object]:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A missing import inside the user's own module is theirs to see with its traceback.
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise
        raise UserError(
            f"{name}: there is no module {error.name!r}, neither installed nor in {Path.cwd()}",
            hint="run in the folder that holds it",
        ) from None
    except (ValueError, TypeError):
        raise UserError(
            f"{name!r} is not package.module:factory", hint="for example mypackage.nets:resnet"
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=3)
            raise UserError(
                f"{name}: {module_name} has no {part!r}" + (f"; close: {', '.join(close)}" if close else ""),
                hint="name a function or class that returns the network",
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is not callable", hint="name a function or class that returns the network")
    return found  # type: ignore[no-any-return]


def _has_num_classes(factory: Callable[..., object]) -> bool:
    if isinstance(factory, nn.Module):
        return False
    try:
        parameters = inspect.signature(factory).parameters
    except (ValueError, TypeError):  # builtins without a signature
        return False
    return "num_classes" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Modules of the current folder can be imported, as with ``python -m``, for as long as this lasts."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
