"""``package.module:factory``: a network from a function or class of anybody's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import nn

from sad_runtime.errors import UserError

from ..named_object import current_folder_importable, described, find_object
from .plain import unwrapped
from .reference import Reference


def takes_num_classes(factory: Reference) -> bool:
    """Whether it has an argument ``num_classes``, by name or among its ``**kwargs``, that is not given yet.

    Raises:
        UserError: It cannot be found.
    """
    if "num_classes" in factory.arguments:
        return False
    with current_folder_importable():
        return _has_num_classes(_find(factory))


def from_factory(factory: Reference, num_classes: int) -> nn.Module:
    """Call it.

    Args:
        factory: Its name and arguments.
        num_classes: K, which it is given if it takes an argument of that name, or ``**kwargs``.

    Raises:
        UserError: It is missing, needs other arguments, raises, or gives no module.
    """
    with current_folder_importable():
        found = _find(factory)
        if isinstance(found, nn.Module):  # a network already: nobody else's may change
            factory.refuse_arguments()
            model: object = copy.deepcopy(unwrapped(found))
        else:
            arguments = dict(factory.arguments)
            if _has_num_classes(found):
                arguments = {"num_classes": num_classes} | arguments
            _check_call(factory, found, arguments)
            model = _called(factory, found, arguments)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{factory.text} returned {_described(model)}, not a torch.nn.Module",
            hint="return the network itself",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{factory.text} is a TorchScript module, whose layers cannot be calibrated",
            hint="give the Python module that it was scripted from",
        )
    return unwrapped(model)


def _described(found: object) -> str:
    return "None" if found is None else f"a {type(found).__name__}"


def _called(factory: Reference, found: Callable[..., object], arguments: Mapping[str, object]) -> object:
    try:
        return found(**arguments)
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"{factory.name}({given}) raised {described(error)}",
            hint="it must return a torch.nn.Module when it is called like that",
        ) from error


def _check_call(factory: Reference, found: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Refuse a factory that needs arguments which nobody gives it."""
    try:
        signature = inspect.signature(found)
    except (ValueError, TypeError):  # builtins without a signature
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "no argument"
        raise UserError(
            f"{factory.name}{signature} cannot be called with {given}: {error}",
            hint=f"give what it needs: '{factory.name}(key=value, …)', with literal values",
        ) from None


def _find(factory: Reference) -> Callable[..., object]:
    found: Callable[..., object] = find_object(
        factory.name,
        example="mypackage.nets:resnet",
        hint="name a function or class that returns the network",
    )
    return found


def _has_num_classes(found: Callable[..., object]) -> bool:
    if isinstance(found, nn.Module):
        return False
    try:
        parameters = inspect.signature(found).parameters
    except (ValueError, TypeError):  # builtins without a signature
        return False
    return "num_classes" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
