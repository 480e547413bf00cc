"""A calibrated model's way into a bundle and back: Φ1, unfolded, Φ0's statistics, a few held-out images."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import safetensors.torch
import torch
from torch import Tensor, nn

from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.errors import BundleError, UserError
from sad_runtime.manifest import Manifest, ModelSource
from sad_runtime.verification.samples import SAMPLES, read_samples

from .checkpoints import load_weights, read_state_dict
from .data.image_set import ImageSet
from .exportable import exportable
from .models import build_model
from .models.plain import fix_weights, materialise

WEIGHTS = "weights.safetensors"
FORWARD = "forward.onnx"
"""The folded Φ1 of a network that cannot be built by name; see :mod:`.in_memory`."""

BASE_STATISTICS = "base_statistics.safetensors"
"""The buffers in which Φ0, the network before calibration, differs from Φ1; all its weights are the same."""


def load_calibrated(
    bundle: Bundle | Path | str, *, model: nn.Module | None = None
) -> tuple[nn.Module, Manifest]:
    """Φ1 of a bundle, unfolded, in eval mode on the CPU, and the manifest that belongs to it.

    Args:
        bundle: An opened bundle or its folder.
        model: The network, of any weights, where it cannot be built by name; it is not modified.

    Raises:
        UserError: The bundle is not whole, or its network cannot be rebuilt (its factory is gone or changed).
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    source = opened.manifest.model
    path = opened.file(WEIGHTS)
    if model is not None:
        model = copy.deepcopy(model).cpu()
        fix_weights(model)
    elif FORWARD in opened.manifest.files:
        raise UserError(
            f"the network of {opened.root} was given in memory, so that nobody can build it ({source.name})",
            hint="load_calibrated(bundle, model=…) with a network of that kind; an export does without",
        )
    else:
        model = rebuilt(source, opened.manifest.preprocessing.shape)
    load_weights(model, read_state_dict(path), source=str(path), num_classes=source.num_classes)
    return model.eval(), opened.manifest


def load_base(bundle: Bundle) -> nn.Module | None:
    """Φ0 of a bundle, the network that was calibrated, unfolded, in eval mode on the CPU.

    Returns:
        None if the bundle was calibrated before Φ0's statistics were kept.

    Raises:
        UserError: As :func:`load_calibrated`; or the statistics are not this network's.
    """
    if BASE_STATISTICS not in bundle.manifest.files:
        return None
    model, _ = load_calibrated(bundle)
    path = bundle.file(BASE_STATISTICS)
    state, kept = model.state_dict(), read_state_dict(path)
    foreign = [name for name, value in kept.items() if name not in state or state[name].shape != value.shape]
    if foreign:
        raise BundleError(f"{path} is not of this bundle's network: {foreign[0]}", hint="calibrate it again")
    model.load_state_dict(state | kept)
    return model


def rebuilt(source: ModelSource, shape: tuple[int, int, int]) -> nn.Module:
    """A bundle's network with its own initial weights, as plain modules, in eval mode on the CPU.

    Args:
        source: Its name and K.
        shape: (C, H, W) of its images.

    Raises:
        UserError: Its factory is gone or changed.
    """
    model = build_model(source.name, source.num_classes)
    materialise(model, shape)
    fix_weights(model)
    return model


def check_rebuilds(model: nn.Module, source: ModelSource, shape: tuple[int, int, int]) -> None:
    """Refuse a network that :func:`load_calibrated` could not load or an export not hold, before the work.

    Args:
        model: As it will be calibrated, on the CPU.
        source: What a bundle would say of it.
        shape: (C, H, W) of its images.

    Raises:
        UserError: Building it once more gives other weights; or see :func:`.exportable.exportable`.
    """
    again = rebuilt(source, shape)
    had, has = ({name: tuple(v.shape) for name, v in _plain_state_dict(m).items()} for m in (model, again))
    if had != has:
        other = [*(had.items() - has.items()), *(has.items() - had.items())][0][0]
        raise UserError(
            f"{source.name} gives another network each time that it is called, {other} for example: "
            "its bundle could not be loaded",
            hint="let it depend on nothing but num_classes",
        )
    exportable(model, shape, name=source.name)


def load_samples(bundle: Bundle) -> ImageSet | None:
    """The held-out images stored for verification, or None if calibration stored none.

    Raises:
        BundleError: They are not images of the manifest's shape.
    """
    samples = read_samples(bundle)
    return None if samples is None else ImageSet(*samples)


def write_calibrated(
    destination: Path,
    model: nn.Module,
    manifest: Manifest,
    samples: ImageSet | None,
    *,
    base: nn.Module | None = None,
    extra: Mapping[str, onnx.ModelProto | Mapping[str, npt.NDArray[np.float32]]] | None = None,
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        destination: The bundle's folder; a bundle there is replaced.
        model: Φ1, unfolded.
        manifest: All but the file hashes, which the writer fills in.
        samples: Held-out images to store, or None.
        base: Φ0, whose statistics are stored beside Φ1, or None.
        extra: Graphs and arrays to store besides, by the name of their file.

    Raises:
        UserError: It cannot be written; what was there is as it was.
    """
    with write_bundle(destination) as draft:
        # Not save_file: that makes a file which only its owner may read, whatever the umask says.
        state = _plain_state_dict(model)
        draft.path(WEIGHTS).write_bytes(safetensors.torch.save(state, _metadata(manifest)))
        if base is not None:
            before = {
                name: value
                for name, value in _plain_state_dict(base).items()
                if not torch.equal(value, state[name])
            }
            draft.path(BASE_STATISTICS).write_bytes(safetensors.torch.save(before))
        if samples is not None and len(samples):
            arrays: dict[str, npt.NDArray[Any]] = {"images": samples.images}
            if samples.labels is not None:
                arrays["labels"] = samples.labels
            np.savez_compressed(draft.path(SAMPLES), allow_pickle=False, **arrays)
        for name, content in (extra or {}).items():
            if isinstance(content, onnx.ModelProto):
                onnx.save(content, draft.path(name))
            else:
                np.savez(draft.path(name), allow_pickle=False, **content)
        draft.manifest = manifest


def _plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    # A copy each: safetensors refuses tensors that share memory, as tied weights do.
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
    }


def _metadata(manifest: Manifest) -> dict[str, str]:
    # One entry: safetensors writes several in random order, and equal weights should be equal files.
    described = {
        "model": manifest.model.name,
        "num_classes": manifest.model.num_classes,
        "eta": manifest.defence.eta,
        "normalization": manifest.defence.normalization.value,
    }
    return {"sad_deploy": json.dumps(described)}
