"""Whether the labels of the images are the network's outputs in the same order, judged by its predictions.

Class folders come sorted as words, ``10`` before ``2``, ``one`` before ``zero``; a network's outputs come in
the order it was trained with. Where they differ, a network that is always right seems to guess, η is swept on
noise, and the bundle has wrong class names. So before any calibration two things are looked for:

1. *A permutation*: the images of several folders go each to one other output, no two folders to the same.
2. *Chance*: no more predictions agree with the labels than 1/K of them would by guessing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from sad_runtime.errors import UserError

Labels = npt.NDArray[np.int64]

_IMAGES = 20
"""Fewer say nothing about chance."""

_ONE_OF_20 = 1.645
"""Standard deviations of a normal distribution."""

_OF_ONE_CLASS = 3
_MOVED_IMAGES = 8
_MOVED_SHARE = 0.02
"""Least images of a class, of all moved classes, and share of these among all, that show a permutation."""

_AGREEMENT = 0.6
_OVERALL_AGREEMENT = 0.8
"""Share of a class's images that go to its one other output, and of those of all moved classes."""

_SHOWN = 5
_ORDER_SHOWN = 20


def check_label_order(labels: Labels, predictions: Labels, classes: Sequence[str]) -> None:
    """Refuse labels that are out of step with the network.

    Args:
        labels: (n,) indices into ``classes``.
        predictions: (n,) of Φ0 on unattacked images.
        classes: Names in the order that the labels assume.

    Raises:
        UserError: A clear permutation, which is named with the order that would fit, or accuracy at chance.
    """
    moved = find_permutation(labels, predictions)
    right = int((labels == predictions).sum())
    figures = f"{right} of {len(labels)} images ({100 * right / max(1, len(labels)):.0f} %) fit their labels"
    if moved:
        examples = ", ".join(
            f"those of {classes[i]!r} are classified as output {j}, {classes[j]!r}"
            for i, j in list(moved.items())[:_SHOWN]
        )
        more = f", and so on for {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else ""
        raise UserError(
            f"the data's classes are in another order than the network's outputs: {figures}; "
            f"{examples}{more}",
            hint=_advice(moved, classes),
        )
    if len(labels) >= _IMAGES and right <= _by_chance(len(labels), len(classes)):
        raise UserError(
            f"the network is at chance on these images: {figures}, of {len(classes)} classes",
            hint="check --weights, --mean, --std and --image-size; if the data's classes are in another "
            "order than the network's outputs, --classes FILE gives it, one name per line; images in one "
            "folder without subfolders have no labels to fit",
        )


def find_permutation(labels: Labels, predictions: Labels) -> Mapping[int, int]:
    """Classes whose images go to another output, each to its own; empty unless that is clear."""
    goes_to: dict[int, tuple[int, int, int]] = {}
    for label in np.unique(labels).tolist():
        of_class = predictions[labels == label]
        outputs, counts = np.unique(of_class, return_counts=True)
        goes_to[label] = (int(outputs[counts.argmax()]), int(counts.max()), len(of_class))
    targets = [output for output, _, _ in goes_to.values()]
    moved = {
        label: (output, count, images)
        for label, (output, count, images) in goes_to.items()
        if output != label
        and targets.count(output) == 1
        and images >= _OF_ONE_CLASS
        and count >= _AGREEMENT * images
    }
    total = sum(images for _, _, images in moved.values())
    agreeing = sum(count for _, count, _ in moved.values())
    if (
        len(moved) < 2
        or total < max(_MOVED_IMAGES, _MOVED_SHARE * len(labels))
        or agreeing < _OVERALL_AGREEMENT * total
    ):
        return {}
    return {label: output for label, (output, _, _) in moved.items()}


def _by_chance(images: int, classes: int) -> float:
    """Right predictions that guessing gives, or that it exceeds in 1 of 20 trials only."""
    p = 1 / classes
    return images * p + _ONE_OF_20 * math.sqrt(images * p * (1 - p))


def _advice(moved: Mapping[int, int], classes: Sequence[str]) -> str:
    order = list(classes)
    for label, output in moved.items():
        order[output] = classes[label]
    for what, key in (("numbers", _as_numbers), ("words whatever their case", str.lower)):
        if order == sorted(classes, key=key):
            return f"its outputs are in the order of {what}: --classes FILE with the names so, one per line"
    if len(set(order)) < len(order) or len(order) > _ORDER_SHOWN:
        return "give the order that it was trained with: --classes FILE with one name per line"
    return f"--classes FILE with one name per line, by these images: {', '.join(order)}"


def _as_numbers(name: str) -> list[tuple[int, str]]:
    """Sorts ``class 2`` before ``class 10``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
