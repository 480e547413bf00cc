"""A forward classifier's file as a bundle of one file without a defence: a row has its answer and no more.

Such a file says nothing of how images come to it, unless `defend` or `gradient` wrote it with that: unless
told, it takes pixels in [0, 1] at its own height and width, and classes are numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .backends.batch_limit import Notice, ignore
from .backends.protocol import LOGITS, PLAIN_LOGITS
from .bare_graph import BareOptions, classes_of, opened, preprocessing_of
from .bundle import Bundle
from .bundle.read import sha256
from .errors import BundleError, UserError
from .graph_metadata import PREFIX
from .manifest import Defence, Graph, InputSpace, Manifest, ModelSource
from .plain import PlainGraph
from .prediction import kind_of_probabilities

_TRIED = 4
"""Images of noise that show whether the file gives logits or probabilities."""


def bundle_of_classifier(path: Path, options: BareOptions, *, notice: Notice = ignore) -> Bundle:
    """A forward classifier as a bundle without a defence.

    Args:
        path: An ONNX file with one float32 input (N, C, H, W) and an output (N, K): its only one, or
            ``logits``.
        options: What the file does not say, or says otherwise.
        notice: Called with a line for what is taken of it without being told.

    Raises:
        UserError: No such file, no classifier, or options that do not fit it.
    """
    if path.is_dir() or path.suffix != ".onnx":
        raise UserError(
            f"--plain runs a classifier's ONNX file, and {path} is none",
            hint="rows of a bundle say the plain answer too: plain_label and plain_class",
        )
    if not path.is_file():
        raise UserError(f"no graph at {path}", hint="sad-deploy infer FORWARD.onnx --plain images/")
    session = opened(path)
    metadata = session.get_modelmeta().custom_metadata_map
    if f"{PREFIX}eta" in metadata or PLAIN_LOGITS in {each.name for each in session.get_outputs()}:
        raise UserError(
            f"{path} has a defence, so its answer is not the plain one",
            hint="leave out --plain: its rows say the plain answer too, plain_label and plain_class",
        )
    image, (channels, height, width) = _image(path, session)
    inside = metadata.get(f"{PREFIX}mean", "null") != "null"
    mean, std = _space(path, options, channels, inside=inside)
    if options.mean is None and not inside:
        notice(f"{path} gets pixels in [0, 1]: give --mean and --std if it was trained with them")
    name = _logits(path, session)
    graph = PlainGraph(image, name, mean, std)
    noise = np.random.default_rng(0).random((_TRIED, channels, height, width), dtype=np.float32)
    try:
        (found,) = session.run([name], {image: graph.space(noise)})
    except Exception as error:  # its exceptions share no base class
        raise BundleError(f"{path} cannot be run: {' '.join(str(error).split())[-200:]}") from None
    if found.ndim != 2 or len(found) != _TRIED or found.dtype != np.float32:
        raise BundleError(f"{path}: {name} is {found.dtype} {found.shape} for {_TRIED} images, not (N, K)")
    if is_probabilities := kind_of_probabilities(found) == "probabilities":
        notice(f"{path} gives probabilities, which rows show as they are; logits are their logarithms")
    manifest = Manifest(
        model=ModelSource(path.stem, found.shape[1]),
        classes=classes_of(path, metadata, options, found.shape[1]),
        preprocessing=preprocessing_of(path, metadata, options, (channels, height, width)),
        input_space=InputSpace(mean, std),
        defence=Defence(0.0),
        calibration={},
        graphs=(Graph(path.name, "fp32", "auto", "portable", {}),),
        files={path.name: sha256(path)},
    )
    return Bundle(path.parent, manifest, PlainGraph(image, name, mean, std, is_probabilities))


def _image(path: Path, session: Any) -> tuple[str, tuple[int, int, int]]:
    """Name and (C, H, W) of the input.

    Raises:
        BundleError: It is no batch of float32 images of one size.
    """
    inputs = session.get_inputs()
    found = [f"{each.name} {each.type} {each.shape}" for each in inputs]
    if len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4:
        batch, *chw = inputs[0].shape
        if isinstance(batch, int):
            raise BundleError(
                f"the batch of {path} is fixed to {batch}",
                hint="sad-deploy gradient writes it with any batch",
            )
        if all(isinstance(side, int) for side in chw):
            channels, height, width = chw
            return inputs[0].name, (channels, height, width)
    raise BundleError(
        f"{path} takes {', '.join(found)}, not one float32 image (N, C, H, W) of one size",
        hint="sad-deploy gradient brings it into that form; --image-size fixes height and width",
    )


def _logits(path: Path, session: Any) -> str:
    names = [str(output.name) for output in session.get_outputs()]
    if LOGITS in names or len(names) == 1:
        return LOGITS if LOGITS in names else names[0]
    raise BundleError(
        f"{path} has outputs {', '.join(names)}, and none is called {LOGITS}",
        hint="sad-deploy gradient --logits NAME writes a graph whose first output is",
    )


def _space(
    path: Path, options: BareOptions, channels: int, *, inside: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std that are applied before the file.

    Raises:
        UserError: One without the other, not one number a channel, or the file has them inside.
    """
    if (options.mean is None) != (options.std is None):
        raise UserError("--mean and --std come together")
    if options.mean is None or options.std is None:
        return (0.0,) * channels, (1.0,) * channels
    if inside:
        raise UserError(f"{path} has its mean and std inside", hint="leave out --mean and --std")
    if len(options.mean) != channels or len(options.std) != channels:
        raise UserError(f"--mean and --std need {channels} numbers each for the channels of {path}")
    return options.mean, options.std
