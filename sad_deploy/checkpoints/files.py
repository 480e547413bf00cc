"""A file of weights → what is in it, on the CPU: safetensors, or PyTorch's read with ``weights_only=True``.

A pickle that needs more than tensors is refused, not executed; so is everything that only has a checkpoint's
name. What it is instead is told by its first bytes.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from sad_runtime.errors import UserError

from ..shorten import shorten

_PLAIN: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.float64(0).__reduce__()[0],  # numpy's "scalar", whose module has moved
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
"""What training scripts put beside the tensors: arguments, numpy's numbers. Making one runs no other code."""

_FORMATS = (
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", "give PyTorch's weights"),
    (b"GGUF", "a GGUF file", "give PyTorch's weights"),
)
_OLD_FORM = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_SHOWN = 4
_NEW_TORCH = "Attempted to read a PyTorch file with version"


def load_file(path: Path) -> object:
    """Read a file.

    Args:
        path: ``.safetensors``, or any file ``torch.load(weights_only=True)`` accepts.

    Raises:
        UserError: It is missing or damaged, is something else, or holds code.
    """
    if not path.is_file():
        raise UserError(f"there is no weights file {path}", hint="check the path given with --weights")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise _damaged(path, error) from None
    _refuse_others(path, start)
    if path.suffix == ".safetensors" or _looks_like_safetensors(start, size):
        _refuse_cut(path, size)
        try:
            return safetensors.torch.load_file(path, device="cpu")
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not readable safetensors: {_first_line(error)}", hint="download or write it again"
            ) from None
    if start.startswith(b"PK"):
        _refuse_archives(path, size)
    return _torch_load(path)


def _refuse_others(path: Path, start: bytes) -> None:
    """What is no file of weights, by its beginning."""
    if not start:
        raise UserError(f"{path} is not readable as weights: it is empty", hint="download or write it again")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"{path} is a web page, saved under a checkpoint's name: not readable as weights",
            hint="download the file itself; the page may ask to log in or to confirm",
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a git-lfs pointer, not the weights themselves: not readable as weights",
            hint=f"git lfs pull --include {path.name}, in the repository that it is from",
        )
    for magic, what, advice in _FORMATS:
        if start.startswith(magic):
            raise UserError(f"{path} is {what}: not readable as weights", hint=advice)


def _looks_like_safetensors(start: bytes, size: int) -> bool:
    # Eight bytes of header length, then JSON. A zip or pickle of PyTorch begins otherwise.
    return len(start) >= 9 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size


def _refuse_cut(path: Path, size: int) -> None:
    """A safetensors file says in its header how long it is."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            said = f": {size:,} bytes, its header alone has {length:,}" if 0 < length < 1 << 27 else ""
        else:
            try:
                header = json.loads(file.read(length))
                ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
                expected = 8 + length + max(ends, default=0)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                return
            if size >= expected:
                return
            said = f": {size:,} of {expected:,} bytes"
    raise UserError(
        f"{path} is not readable safetensors: it is cut off{said}"
        if said
        else f"{path} is not readable safetensors",
        hint="download or write it again",
    )


def _refuse_archives(path: Path, size: int) -> None:
    """Zip files that are cut off, compiled or exported."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        raise UserError(
            f"{path} is not readable as PyTorch weights: it is cut off after {size:,} bytes",
            hint="download or write it again",
        ) from None
    if any(name.endswith("/archive_format") or name == "archive_format" for name in names):
        raise UserError(
            f"{path} is an exported program, not a state dict",
            hint=f"it is a network with its weights: --model {path}"
            + ("" if path.suffix == ".pt2" else " under a name that ends in .pt2"),
        )
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{path} is a TorchScript archive, not a state dict",
            hint=_convert(path, f"torch.jit.load({path.name!r}, map_location='cpu')"),
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(
            f"{path} is a zip archive without weights of PyTorch: not readable as weights",
            hint="unpack it; .safetensors and torch.save(model.state_dict(), …) are read",
        )


def _convert(path: Path, loaded: str, *, at: str = "model.state_dict()") -> str:
    """The two lines of Python that make a state dict of a file."""
    return (
        "where you trust the file and have its classes, make a state dict of it in Python:\n"
        f"    model = {loaded}\n"
        f"    torch.save({at}, {path.stem + '.state.pt'!r})"
    )


def _torch_load(path: Path) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_PLAIN):
            # torch advises on odd pickles before it refuses them; the error below says it in one line.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch reports damaged bytes and refused code alike; only the latter names what it would have run.
        if not any(word in str(error) for word in ("GLOBAL", "Unsupported class")):
            raise _damaged(path, error) from None
        raise _holds_code(path, error) from None
    except RuntimeError as error:
        if _NEW_TORCH in str(error):
            raise _of_newer_torch(path) from None
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript archive, not a state dict",
                hint=_convert(path, f"torch.jit.load({path.name!r}, map_location='cpu')"),
            ) from None
        raise _damaged(path, error) from None
    except (EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from None


def _holds_code(path: Path, error: Exception) -> UserError:
    """What it would have to run, and how its owner gets the weights out."""
    names = _unknown_names(path, error)
    unknown = [name for name in names if name.startswith("torch.") and not _exists(name)]
    if unknown:
        return _of_newer_torch(path, f" ({', '.join(unknown[:_SHOWN])})")
    shown = shorten(names, _SHOWN)
    load = f"torch.load({path.name!r}, map_location='cpu', weights_only=False)"
    if _is_whole_model(path):
        return UserError(
            f"{path} is a whole pickled model and holds more than tensors{f' ({shown})' if shown else ''}; "
            "loading it could run any code, so it was not",
            hint=_convert(path, load),
        )
    return UserError(
        f"{path} is a pickle that holds more than tensors{f' ({shown})' if shown else ''}; "
        "loading it could run any code, so it was not",
        hint=_convert(path, load, at="model['state_dict']").replace(
            "in Python:", "in Python ('state_dict', or the key under which its weights lie):"
        ),
    )


def _unknown_names(path: Path, error: Exception) -> list[str]:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # of a file of the old form; the error names the first
        found = re.search(r"GLOBAL `?([\w.]+)", str(error))
        return [found[1]] if found else []


def _exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    found: object = torch
    for part in (*module.split(".")[1:], attribute):
        found = getattr(found, part, None)
    return found is not None


def _is_whole_model(path: Path) -> bool:
    """Whether a pickle's first object is of a class that is no dictionary; nothing of it is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        else:
            data = path.read_bytes()
        stream = io.BytesIO(data)
        if data.startswith(_OLD_FORM):  # a number, a version and a description come first
            for _ in range(3):
                collections.deque(pickletools.genops(stream), maxlen=0)
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "EMPTY_DICT":
                return False
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                return str(argument) != "collections OrderedDict"
    except Exception:  # a broken pickle breaks in as many ways as there are
        return False
    return False


def _of_newer_torch(path: Path, what: str = "") -> UserError:
    return UserError(
        f"{path} was written by a newer PyTorch than this one{what}, {torch.__version__}",
        hint="pip install --upgrade torch; or write it there as .safetensors, which every version reads",
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not readable as PyTorch weights: {_first_line(error) or type(error).__name__}",
        hint="download or write it again; .safetensors and torch.save(model.state_dict(), …) are read",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:160]
