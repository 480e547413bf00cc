"""Weights from a file into a network, without ever running what the file says.

Safetensors, or a PyTorch file read with ``weights_only=True``: a state dict, or a dictionary that holds one
under a usual name. A pickle that needs more than tensors is refused, not executed.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sad_runtime.errors import UserError

_NESTED = ("state_dict", "model", "model_state_dict", "net")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 4
_CONVERT = (
    "where you trust the file, load it and write torch.save(model.state_dict(), 'weights.pt') or "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a checkpoint onto the CPU.

    The prefixes of ``DataParallel`` (``module.``) and ``torch.compile`` (``_orig_mod.``) are removed if all
    keys have them.

    Args:
        path: ``.safetensors``, or any file ``torch.load(weights_only=True)`` accepts.

    Returns:
        Tensors by parameter and buffer name.

    Raises:
        UserError: The file is missing, damaged, holds code, or holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}", hint="check the path given with --weights")
    try:
        is_safetensors = path.suffix == ".safetensors" or _looks_like_safetensors(path)
    except OSError as error:
        raise _damaged(path, error) from None
    loaded: object
    if is_safetensors:
        try:
            loaded = safetensors.torch.load_file(path, device="cpu")
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not readable safetensors: {_first_line(error)}", hint="download or write it again"
            ) from None
    else:
        loaded = _torch_load(path)
    return _unwrapped(_state_dict_in(loaded, path))


def _looks_like_safetensors(path: Path) -> bool:
    # Eight bytes of header length, then JSON. A zip or pickle of PyTorch begins otherwise.
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _torch_load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
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
        raise UserError(
            f"{path} is a pickle that holds more than tensors; loading it could run any code, so it was not",
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


def _state_dict_in(loaded: object, path: Path) -> dict[str, Tensor]:
    for candidate in (loaded, *(_get(loaded, key) for key in _NESTED)):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(key, str) for key in candidate):
            tensors = {key: value for key, value in candidate.items() if isinstance(value, Tensor)}
            if len(tensors) == len(candidate):
                return tensors
    raise UserError(
        f"{path} holds no state dict: neither at its top nor under {', '.join(_NESTED)} "
        f"is there a dictionary of names and tensors (found {type(loaded).__name__})",
        hint="write torch.save(model.state_dict(), 'weights.pt')",
    )


def _get(loaded: object, key: str) -> object:
    return loaded.get(key) if isinstance(loaded, Mapping) else None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPERS * 2:  # either may be outside the other
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    num_classes: int,
    ignore: Iterable[str] = (),
) -> None:
    """Copy a state dict into a network; every parameter and buffer must be there.

    Missing ``num_batches_tracked`` counters of BatchNorm are forgiven: nothing reads them here.

    Args:
        model: Changed in place, or, on error, not at all.
        state: Tensors by name.
        source: What to call the weights in an error.
        num_classes: K of the network, by which a class-count mismatch is recognised.
        ignore: Beginnings of keys to leave out.

    Raises:
        UserError: Keys are missing, unexpected or of the wrong shape, or values are not finite; all of it is
            said at once, shortened.
    """
    state = {key: value for key, value in state.items() if not key.startswith(tuple(ignore))}
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    wrong = {k: v for k, v in state.items() if k in expected and v.shape != expected[k].shape}
    if found := _other_class_count(wrong, expected, num_classes):
        raise UserError(
            f"{source} has {found} classes, but {num_classes} are needed",
            hint="the data's classes must be the ones the network was trained on, in the same number",
        )
    problems = [
        _listed(
            "missing", [k for k in expected if k not in state and not k.endswith(".num_batches_tracked")]
        ),
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
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"
