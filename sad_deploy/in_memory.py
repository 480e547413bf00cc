"""A calibrated network in memory → a bundle, also where nobody else can build that network.

A bundle's network is built again by its name. One that has none, made in a notebook for example, is kept as
what an export needs of it: its folded forward graph, and what PyTorch says of a few images. Its weights and
Φ0's statistics lie beside them, for whoever has the network.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from sad_runtime.bundle import Bundle
from sad_runtime.errors import BundleError, UserError
from sad_runtime.manifest import Color, Defence, InputSpace, Manifest, ModelSource, Preprocessing

from .calibrated import FORWARD, check_rebuilds, write_calibrated
from .classifier import SADClassifier, standardized
from .data.image_set import ImageSet
from .exportable import exportable
from .models.plain import fix_weights
from .saliency import evaluating, logits_of
from .sweep import Calibration

ANSWERS = "pytorch.npz"
"""What PyTorch said of the bundle's first images: ``logits``, ``saliency``, ``plain_logits``."""

Array = npt.NDArray[np.float32]
Extra = Mapping[str, onnx.ModelProto | Mapping[str, Array]]

_REFERENCE_BATCH = 16
_ANSWERED = 16
"""Images in :data:`ANSWERS`, whose saliencies are large."""


def save_calibration(
    calibration: Calibration,
    directory: Path | str,
    *,
    samples: Tensor | tuple[Tensor, Tensor],
    classes: Sequence[str] | None = None,
    model: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Bundle:
    """Write a bundle of what :func:`sad_deploy.calibrate` gave; see :meth:`Calibration.save`."""
    images, labels = samples if isinstance(samples, tuple) else (samples, None)
    stored = _samples(images, labels)
    channels, height, width = stored.images.shape[1:]
    space = calibration.settings.input_space or InputSpace((0.0,) * channels, (1.0,) * channels)
    network, base = (copy.deepcopy(each).cpu() for each in (calibration.model, calibration.base()))
    fix_weights(network)
    fix_weights(base)
    with torch.no_grad(), evaluating(network):
        logits = logits_of(network, standardized(images[:2].cpu(), space))
    name = model or type(network).__name__
    manifest = Manifest(
        model=ModelSource(name, logits.shape[1]),
        classes=tuple(classes) if classes is not None else tuple(map(str, range(logits.shape[1]))),
        preprocessing=preprocessing or _preprocessing(channels, height, width),
        input_space=space,
        defence=Defence(calibration.eta, calibration.settings.normalization, _is_clipped(calibration, space)),
        calibration={
            "algorithm": "default",
            "batches": calibration.batches,
            "batch_size": calibration.batch_size,
            "attack": {"kind": calibration.settings.attack.kind.value},
            "seed": calibration.settings.seed,
            "statistics_shift": calibration.shift,
            "torch": torch.__version__,
        },
    )
    if manifest.preprocessing.shape != stored.images.shape[1:]:
        raise UserError(
            f"the samples are {channels}×{height}×{width}, the preprocessing gives "
            f"{'×'.join(map(str, manifest.preprocessing.shape))}",
            hint="give samples as the network sees them, in pixels of [0, 1]",
        )
    if model is not None:
        check_rebuilds(network, manifest.model, manifest.preprocessing.shape)
    extra: Extra = {} if model is not None else _kept(network, manifest, stored)
    write_calibrated(Path(directory), network, manifest, stored, base=base, extra=extra)
    return Bundle.open(directory)


def _kept(network: nn.Module, manifest: Manifest, samples: ImageSet) -> Extra:
    """What stands in for a network that nobody can build."""
    images = samples.images[:_ANSWERED].astype(np.float32) / np.float32(255)
    return {
        FORWARD: exportable(network, manifest.preprocessing.shape, name=manifest.model.name),
        ANSWERS: torch_reference(network, manifest, images),
    }


def is_in_memory(bundle: Bundle) -> bool:
    """Whether its network cannot be built by name."""
    return FORWARD in bundle.manifest.files


def kept_network(bundle: Bundle) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The folded forward graph of such a bundle, and PyTorch's answers to its first images.

    Raises:
        BundleError: They cannot be read.
    """
    path = bundle.file(ANSWERS)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            answers = {name: arrays[name] for name in ("logits", "saliency", "plain_logits")}
    except (ValueError, OSError, KeyError, EOFError) as error:
        raise BundleError(f"{path} cannot be read: {error}", hint="save the calibration again") from None
    return onnx.load(bundle.file(FORWARD)), answers


def torch_reference(model: nn.Module, manifest: Manifest, images: Array) -> dict[str, Array]:
    """What PyTorch's unfolded Φ1 says of images: ``logits``, ``saliency``, ``plain_logits``, of its dtype."""
    dtype = next(model.parameters()).dtype
    defence, space = manifest.defence, manifest.input_space
    classifier = SADClassifier(
        model, eta=defence.eta, normalization=defence.normalization, clip=defence.bounds(space)
    )
    parts = [
        classifier.defend(standardized(batch.to(dtype), space))._asdict()
        for batch in torch.split(torch.from_numpy(images), _REFERENCE_BATCH)
    ]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def _samples(images: Tensor, labels: Tensor | None) -> ImageSet:
    if images.dim() != 4 or len(images) < 2 or not images.is_floating_point():
        raise UserError(
            f"samples must be at least two images (N, C, H, W), got {tuple(images.shape)} of {images.dtype}"
        )
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 1:
        raise UserError(f"samples span [{low:.3g}, {high:.3g}], pixels are in [0, 1]")
    pixels = (images.detach().cpu().float() * 255).round().to(torch.uint8).numpy()
    return ImageSet(pixels, None if labels is None else labels.cpu().numpy().astype(np.int64))


def _preprocessing(channels: int, height: int, width: int) -> Preprocessing:
    color = Color.of(channels)
    if color is None:
        raise UserError(
            f"images of {channels} channels cannot be read from files, and a bundle is for such",
            hint="1, 3 or 4 can; for others sad_export.two_pass(forward, eta=…) writes the graph alone",
        )
    resize = height if height == width else (height, width)
    return Preprocessing(color, resize, (height, width))


def _is_clipped(calibration: Calibration, space: InputSpace) -> bool:
    clip = calibration.settings.clip
    if clip is None:
        return False
    ends = [torch.as_tensor(bound, dtype=torch.float64).reshape(-1) for bound in clip]
    expected = [torch.as_tensor(bound, dtype=torch.float64) for bound in space.pixel_range]
    if not all(torch.allclose(a.expand(len(b)), b) for a, b in zip(ends, expected, strict=True)):
        raise UserError(
            "the clip is not the range that pixels can have, and a bundle knows no other",
            hint="calibrate with clip=input_space.pixel_range, or without",
        )
    return True
