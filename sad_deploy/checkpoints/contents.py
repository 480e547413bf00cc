"""What is in a file of weights: a state dict, or a dictionary that holds one or several.

What is chosen among several is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from sad_runtime.errors import UserError

from .files import load_file

NESTED = ("state_dict", "model", "model_state_dict", "net")
"""Where training scripts put the raw weights."""

_AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
"""Where they put averaged ones, which are taken where there are no raw ones."""

_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One state dict of a file.

    Attributes:
        state: Tensors by parameter and buffer name, on the CPU.
        key: Where in the file it is: names of dictionaries, separated by dots; None if it is the whole file.
        others: Keys of the other state dicts in the file, for example of averaged weights.
    """

    state: dict[str, Tensor]
    key: str | None
    others: tuple[str, ...]

    def notes(self, source: str) -> tuple[str, ...]:
        """What was chosen, in a sentence, if there was a choice or the place is unusual.

        Args:
            source: What to call the file.
        """
        if not self.others and (self.key is None or self.key in NESTED):
            return ()
        beside = f"; {', '.join(self.others)} beside it: --weights-key takes another" if self.others else ""
        return (f"{source}: the weights are those of {self.key!r}{beside}",)


def read_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read one state dict of a file onto the CPU.

    The file is a state dict; or its entries are, or hold one under a usual name. Training scripts keep
    averaged weights beside the raw ones: timm ``state_dict_ema``, torchvision ``model_ema``. The raw ones are
    taken unless a key is given.

    Args:
        path: ``.safetensors``, or any file ``torch.load(weights_only=True)`` accepts.
        key: Which state dict, by its place (``ema.state_dict``); or what the names of the tensors begin with,
            after the place, if there is one: ``ema_model`` for ``ema_model.conv1.weight``.

    Raises:
        UserError: The file is missing, damaged, holds code, holds no state dict, none of that key, or only
            such as none can be said to be meant; those that there are are named.
    """
    loaded = load_file(path)
    whole = _tensors_of(loaded)
    found = dict(_state_dicts(loaded)) if whole is None else {}
    default = None if whole is not None else _default(loaded, found)
    if key is not None:
        raw = whole if default is None else found[default]
        state = _at(loaded, key) or _at(raw, key)
        if state is None:
            raise _no_such_key(path, key, found, whole)
    elif whole is not None:
        state = whole
    elif default is not None:
        key, state = default, found[default]
    else:
        raise _no_state_dict(path, loaded, found)
    others = tuple(other for other in found if other != key and not other.startswith(f"{key}."))
    return Checkpoint(state, key, others)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors that :func:`read_checkpoint` takes if it is given no key.

    Raises:
        UserError: See there.
    """
    return read_checkpoint(path).state


def _tensors_of(entry: object) -> dict[str, Tensor] | None:
    """The entry, if it is a state dict: names and tensors and nothing else."""
    if not isinstance(entry, Mapping) or not entry:
        return None
    tensors = {k: v for k, v in entry.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return tensors if len(tensors) == len(entry) else None


def _state_dicts(loaded: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """State dicts among a checkpoint's entries, with their keys, in the order of the file."""
    for name, entry in loaded.items() if isinstance(loaded, Mapping) else ():
        if not isinstance(name, str) or not isinstance(entry, Mapping):
            continue
        inside = {f"{name}.{inner}": entry[inner] for inner in NESTED if inner in entry}
        for key, candidate in {name: entry, **inside}.items():
            tensors = _tensors_of(candidate)
            # Numbers alone are a training's figures, not weights.
            if tensors is not None and any(value.dim() for value in tensors.values()):
                yield key, tensors


def _default(loaded: object, found: Mapping[str, object]) -> str | None:
    """The key of the state dict that is meant if none is named: of a usual name, or the only one there is."""
    usual = (*NESTED, *(f"{outer}.{inner}" for outer in NESTED for inner in NESTED))
    if named := [key for key in usual if key in found]:
        return named[0]
    # What has a usual name and is no state dict may be the raw weights, which no other one is then.
    if not isinstance(loaded, Mapping) or any(name in loaded for name in NESTED):
        return None
    averaged = [key for key in _AVERAGES if key in found]
    return averaged[0] if averaged else next(iter(found)) if len(found) == 1 else None


def _at(entry: object, key: str) -> dict[str, Tensor] | None:
    """The state dict at a key; names in a file may hold dots themselves, so that each dot may part or not."""
    if not isinstance(entry, Mapping):
        return None
    if key in entry:
        found = dict(_state_dicts({key: entry[key]}))
        return next(iter(found.values()), None)
    for dot in (i for i in reversed(range(len(key))) if key[i] == "."):
        if key[:dot] in entry and (state := _at(entry[key[:dot]], key[dot + 1 :])) is not None:
            return state
    return below(_tensors_of(entry) or {}, f"{key}.") or None


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _no_such_key(
    path: Path, key: str, found: Mapping[str, object], whole: Mapping[str, object] | None
) -> UserError:
    if whole is None:
        return UserError(
            f"{path} holds no weights under {key}", hint=f"it holds {', '.join(found) or 'no state dict'}"
        )
    beginnings = list(dict.fromkeys(name.partition(".")[0] for name in whole))
    more = ", …" if len(beginnings) > _SHOWN else ""
    return UserError(
        f"{path} holds no weights under {key}: it is one state dict, and no name in it begins with {key}.",
        hint=f"its names begin with {', '.join(beginnings[:_SHOWN])}{more}",
    )


def _no_state_dict(path: Path, loaded: object, found: Mapping[str, object]) -> UserError:
    if found:
        return UserError(
            f"{path} holds no state dict under {', '.join(NESTED)}; there is {', '.join(found)}",
            hint=f"choose one: --weights-key {next(iter(found))}",
        )
    return UserError(
        f"{path} holds no state dict: neither at its top nor under {', '.join(NESTED)} "
        f"is there a dictionary of names and tensors (found {type(loaded).__name__})",
        hint="write torch.save(model.state_dict(), 'weights.pt')",
    )
