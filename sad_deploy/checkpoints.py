"""Weights from a file into a network, without ever running what the file says.

Safetensors, or a PyTorch file read with ``weights_only=True``: a state dict, or a dictionary that holds one
or several. A pickle that needs more than tensors is refused, not executed. What is chosen among several, and
what is not loaded, is said.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sad_runtime.errors import UserError

_NESTED = ("state_dict", "model", "model_state_dict", "net")
_PLAIN = (argparse.Namespace, pathlib.PosixPath)
"""What training scripts put beside the tensors, their arguments; making one runs no other code."""

_WRAPPERS = ("module.", "_orig_mod.")
_AVERAGED = "n_averaged"
_COUNTER = ".num_batches_tracked"
_SHOWN = 4
_CONVERT = (
    "where you trust the file, load it and write torch.save(model.state_dict(), 'weights.pt') or "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


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
        if not self.others and (self.key is None or self.key in _NESTED):
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
    loaded = _load(path)
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


def _load(path: Path) -> object:
    if not path.is_file():
        raise UserError(f"there is no weights file {path}", hint="check the path given with --weights")
    try:
        is_safetensors = path.suffix == ".safetensors" or _looks_like_safetensors(path)
    except OSError as error:
        raise _damaged(path, error) from None
    if is_safetensors:
        try:
            return safetensors.torch.load_file(path, device="cpu")
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not readable safetensors: {_first_line(error)}", hint="download or write it again"
            ) from None
    return _torch_load(path)


def _looks_like_safetensors(path: Path) -> bool:
    # Eight bytes of header length, then JSON. A zip or pickle of PyTorch begins otherwise.
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _torch_load(path: Path) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_PLAIN)):
            # torch advises on odd pickles before it refuses them; the error below says it in one line.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch reports damaged bytes and refused code alike; only the latter names what it would have run.
        if not any(
            word in str(error)
            for word in ("GLOBAL", "Unsupported class", "Unsupported operand", "TorchScript")
        ):
            raise _damaged(path, error) from None
        found = re.search(r"GLOBAL `?([\w.]+)", str(error))
        more = f" ({found[1]})" if found else ""
        raise UserError(
            f"{path} is a pickle that holds more than tensors{more}; "
            "loading it could run any code, so it was not",
            hint=_CONVERT,
        ) from None
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise UserError(f"{path} is a TorchScript archive, not a state dict", hint=_CONVERT) from None
        raise _damaged(path, error) from None
    except (EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not readable as PyTorch weights: {_first_line(error) or type(error).__name__}",
        hint="download or write it again; .safetensors and torch.save(model.state_dict(), …) are read",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]


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
        inside = {f"{name}.{inner}": entry[inner] for inner in _NESTED if inner in entry}
        for key, candidate in {name: entry, **inside}.items():
            tensors = _tensors_of(candidate)
            # Numbers alone are a training's figures, not weights.
            if tensors is not None and any(value.dim() for value in tensors.values()):
                yield key, tensors


def _default(loaded: object, found: Mapping[str, object]) -> str | None:
    """The key of the state dict that is meant if none is named: of a usual name, or the only one there is."""
    usual = (*_NESTED, *(f"{outer}.{inner}" for outer in _NESTED for inner in _NESTED))
    if named := [key for key in usual if key in found]:
        return named[0]
    # What has a usual name and is no state dict may be the raw weights, which the only one is then not.
    clear = len(found) == 1 and isinstance(loaded, Mapping) and not any(name in loaded for name in _NESTED)
    return next(iter(found)) if clear else None


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
    return _below(_tensors_of(entry) or {}, f"{key}.") or None


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
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
            f"{path} holds no state dict under {', '.join(_NESTED)}; there is {', '.join(found)}",
            hint=f"choose one: --weights-key {next(iter(found))}",
        )
    return UserError(
        f"{path} holds no state dict: neither at its top nor under {', '.join(_NESTED)} "
        f"is there a dictionary of names and tensors (found {type(loaded).__name__})",
        hint="write torch.save(model.state_dict(), 'weights.pt')",
    )


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in range(2 * len(_WRAPPERS)):  # any may be outside the other
        inside = {name: value for name, value in state.items() if name != _AVERAGED}
        prefix = next((wrapper for wrapper in _WRAPPERS if all(k.startswith(wrapper) for k in inside)), None)
        if not inside or prefix is None:
            break
        state = _below(inside, prefix)
    return state


def without_prefix(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A network's own weights from among those of what it was a part of while it was trained.

    Lightning saves a module that holds the network, its loss and perhaps an averaged copy: the names are
    ``model.conv1.weight``, ``criterion.weight``. If the names expected are not all there, the prefixes of
    ``DataParallel`` (``module.``), ``torch.compile`` (``_orig_mod.``) and torch's ``AveragedModel`` are
    removed where all names have them. If they are there with another prefix in front, what has that prefix is
    taken: of several one whose shapes fit, then a usual one, then the first in the file.

    Args:
        state: Tensors by name.
        expected: The network's own.
        source: What to call the weights in a note.

    Returns:
        The tensors and, in sentences, what was done; as they are, and no sentence, if nothing had to be done
        or no prefix fits.
    """
    required = [name for name in expected if not name.endswith(_COUNTER)]
    if not required or all(name in state for name in required):
        return dict(state), ()
    state = _unwrapped(dict(state))
    if all(name in state for name in required):
        return state, ()
    first = required[0]
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    misfits = {
        prefix: sum(state[prefix + name].shape != expected[name].shape for name in required)
        for prefix in prefixes
        if all(prefix + name in state for name in required)
    }
    if not misfits:
        return dict(state), ()
    fitting = [prefix for prefix in misfits if misfits[prefix] == min(misfits.values())]
    taken, *others = sorted(fitting, key=lambda prefix: prefix.removesuffix(".") not in _NESTED)
    rest = [name for name in state if not name.startswith(tuple(fitting))]
    left_out = f"; left out: {_shortened(rest)}" if rest else ""
    notes = [f"the weights of {source} whose names begin with {taken} were taken{left_out}"]
    if others:
        keys = " or ".join(f"--weights-key {prefix.removesuffix('.')}" for prefix in others)
        notes.append(f"those that begin with {', '.join(others)} would fit as well: {keys} takes them")
    return _below(state, taken), tuple(notes)


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    num_classes: int,
    ignore: Iterable[str] = (),
) -> tuple[str, ...]:
    """Copy a state dict into a network; every parameter and buffer must be there.

    Missing ``num_batches_tracked`` counters of BatchNorm are forgiven: nothing reads them here. The names may
    have a prefix in common: see :func:`without_prefix`.

    Args:
        model: Changed in place, or, on error, not at all.
        state: Tensors by name.
        source: What to call the weights in an error.
        num_classes: K of the network, by which a class-count mismatch is recognised.
        ignore: Beginnings of keys to leave out.

    Returns:
        Sentences about what was chosen and left out.

    Raises:
        UserError: Keys are missing, unexpected or of the wrong shape, or values are not finite; all of it is
            said at once, shortened.
    """
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state, notes = without_prefix(state, expected, source=source)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(ignore))}
    wrong = {k: v for k, v in state.items() if k in expected and v.shape != expected[k].shape}
    if found := _other_class_count(wrong, expected, num_classes):
        raise UserError(
            f"{source} has {found} classes, but {num_classes} are needed",
            hint="the data's classes must be the ones the network was trained on, in the same number",
        )
    problems = [
        _listed("missing", [k for k in expected if k not in state and not k.endswith(_COUNTER)]),
        _listed("unexpected", [k for k in state if k not in expected]),
        _listed(
            "wrong shape",
            [f"{k} {tuple(v.shape)} instead of {tuple(expected[k].shape)}" for k, v in wrong.items()],
        ),
        _listed(
            "not finite",
            [k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())],
        ),
    ]
    if any(problems):
        raise UserError(
            f"{source} does not fit {type(model).__name__}: " + "; ".join(filter(None, problems)),
            hint="check that --model names the network these weights were trained with",
        )
    model.load_state_dict(state, strict=False)
    return notes


def _other_class_count(
    wrong: Mapping[str, Tensor], expected: Mapping[str, Tensor], num_classes: int
) -> int | None:
    """The checkpoint's class count, if that alone is what does not fit."""
    counts = set()
    for key, value in wrong.items():
        shape = expected[key].shape
        if not shape or shape[0] != num_classes or value.dim() != len(shape) or value.shape[1:] != shape[1:]:
            return None
        counts.add(value.shape[0])
    return counts.pop() if len(counts) == 1 else None


def _listed(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {_shortened(names)}" if names else ""


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
