"""``hf:FOLDER``: an image classifier as transformers saves it: extra ``transformers``.

Only the folder is read: nothing is downloaded, and code that lies in it does not run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.extras import require

from .reference import Reference

CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_UNNAMED = re.compile(r"LABEL_\d+")
_SHOWN = 4


class Logits(nn.Module):
    """A classifier of transformers whose forward takes the images and returns the logits alone.

    Args:
        network: As ``AutoModelForImageClassification`` builds it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → logits (N, K)."""
        logits: Tensor = self.network(pixel_values=x, return_dict=True).logits
        return logits


def folder_of(model: Reference) -> Path:
    """Where it lies."""
    return Path(model.name).expanduser()


def has_weights(model: Reference) -> bool:
    """Whether there are weights in its folder."""
    return any(True for pattern in _WEIGHTS for _ in folder_of(model).glob(pattern))


def from_hugging_face(model: Reference) -> nn.Module:
    """Build it by its ``config.json``, with initial weights.

    Raises:
        UserError: There is none, or it is of no image classifier that the installed transformers builds.
        MissingExtraError: transformers is not installed.
    """
    transformers = _transformers()
    config = _config(model)
    with _one_line(model), _quiet(transformers):
        return Logits(transformers.AutoModelForImageClassification.from_config(config))


def class_names(model: Reference) -> tuple[str, ...] | None:
    """The names of ``id2label``; None where they say nothing (``LABEL_0``)."""
    labels = _config(model).id2label
    names = tuple(str(labels[i]) for i in sorted(labels))
    unnamed = all(_UNNAMED.fullmatch(name) for name in names) or len(set(names)) < len(names)
    return None if unnamed or len(names) < 2 else names


def weights(model: Reference) -> dict[str, Tensor]:
    """The weights in its folder, as a state dict of :class:`Logits`.

    Raises:
        UserError: They cannot be read, or are not all of the network's.
    """
    transformers = _transformers()
    with _one_line(model), _quiet(transformers):
        network, found = transformers.AutoModelForImageClassification.from_pretrained(
            folder_of(model),
            config=_config(model),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    problems = [
        f"{len(found[kind])} {what}: {', '.join(sorted(map(_key, found[kind]))[:_SHOWN])}"
        for kind, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape"))
        if found.get(kind)
    ]
    if problems:
        raise UserError(
            f"the weights in {folder_of(model)} do not fit its {CONFIG}: {'; '.join(problems)}",
            hint="transformers would train these anew; save the network again with save_pretrained",
        )
    return dict(Logits(network).state_dict())


def _key(entry: object) -> str:
    return str(entry[0]) if isinstance(entry, tuple) else str(entry)


def _config(model: Reference) -> Any:
    folder = folder_of(model)
    path = folder / CONFIG
    if not path.is_file():
        what = "no such folder" if not folder.is_dir() else f"it holds no {CONFIG}"
        raise UserError(f"--model {model.text}: {what}", hint="give what model.save_pretrained(FOLDER) wrote")
    _refuse_others(path)
    transformers = _transformers()
    with _one_line(model), _quiet(transformers):
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **model.arguments
        )


def _refuse_others(path: Path) -> None:
    """What is no configuration of transformers.

    Raises:
        UserError: It is not JSON, of timm, or of code that would have to run.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", hint="write it again") from None
    if not isinstance(read, dict) or "model_type" not in read:
        architecture = read.get("architecture") if isinstance(read, dict) else None
        if architecture and "pretrained_cfg" in read:
            raise UserError(
                f"{path} is timm's, of {architecture}",
                hint=f"--model timm:{architecture} --weights {path.parent / 'model.safetensors'}",
            )
        raise UserError(
            f"{path} names no model_type of transformers",
            hint="give what model.save_pretrained(FOLDER) wrote",
        )
    if "auto_map" in read:
        raise UserError(
            f"{path} needs code of its own ({read['auto_map']}), which is not run",
            hint="build it in a module of yours: --model package.module:factory",
        )


@contextlib.contextmanager
def _one_line(model: Reference) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"transformers cannot read {folder_of(model)}: {type(error).__name__}: {said}",
            hint="it must hold an image classifier: AutoModelForImageClassification.from_pretrained(FOLDER)",
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Its progress bars and reports of loading are not ours; errors are told."""
    logging = transformers.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _transformers() -> Any:
    return require("transformers", extra="transformers", need="--model hf:FOLDER")
