"""``package.module:factory``: a function or class of anybody's own, looked up from the current folder too."""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sad_runtime.errors import UserError

from .plain import unwrapped
from .reference import Reference


def takes_num_classes(factory: Reference) -> bool:
    """Whether it has an argument ``num_classes``, by name or among its ``**kwargs``, that is not given yet.

    Raises:
        UserError: It cannot be found.
    """
    if "num_classes" in factory.arguments:
        return False
    with _current_folder_importable():
        return _has_num_classes(_find(factory))


def from_factory(factory: Reference, num_classes: int) -> nn.Module:
    """Call it.

    Args:
        factory: Its name and arguments.
        num_classes: K, which it is given if it takes an argument of that name, or ``**kwargs``.

    Raises:
        UserError: It is missing, needs other arguments, raises, or gives no module.
    """
    with _current_folder_importable():
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
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:160]
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UserError(
            f"{factory.name}({given}) raised {type(error).__name__}{f': {said}' if said else ''} "
            f"({last.filename}, line {last.lineno})",
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
    name, (module_name, _, attribute) = factory.name, factory.name.partition(":")
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


def _has_num_classes(found: Callable[..., object]) -> bool:
    if isinstance(found, nn.Module):
        return False
    try:
        parameters = inspect.signature(found).parameters
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
