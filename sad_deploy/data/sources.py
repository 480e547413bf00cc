"""``--data`` and ``--val-data`` → where the images come from; for ``evaluate`` the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sad_runtime.errors import UserError
from sad_runtime.labelled import FOLDERS

from .digits import DigitsSource
from .folder import open_folder
from .image_source import ImageSource
from .lists import open_list
from .loaders import open_loader
from .named import open_labelled, open_named
from .parts import CALIBRATION, EVALUATION, VALIDATION, Part, first_of
from .shards import open_shards
from .source import DataSource
from .stored import Kind, Stored, find_stored
from .tables import open_tables
from .validation import WithValidation

CIFAR = ("cifar10", "cifar100")
_NAMED = 5


def is_embedded(name: str) -> bool:
    """Whether a name is of a data set that brings its own test images: the digits, CIFAR."""
    return name == "digits" or name.partition(":")[0] in CIFAR


def find_data(
    name: str, *, classes: Sequence[str] | None = None, val_data: str | None = None, strict: bool = False
) -> DataSource:
    """The images to calibrate on, and those to choose η on.

    Of a data set in parts the training part calibrates, and its validation part (else its test part) chooses
    η, unless ``val_data`` names others.

    Args:
        name: ``digits``, ``cifar10:PATH``, ``cifar100:PATH``, or what :func:`~.stored.find_stored` takes.
        classes: Names in the order of the network's outputs; the data's own order by default.
        val_data: Other images to choose η and to measure accuracy on.
        strict: Whether an image that cannot be used is fatal.

    Raises:
        UserError: There is no such data, its classes are not the given ones, or it has one class only.
    """
    if is_embedded(name):
        data = _embedded(name, classes)
        return data if val_data is None else _with_validation(data, val_data, strict)
    parts = find_stored(name)
    training = first_of(parts, CALIBRATION) or parts[None]
    data = _opened(training, strict, may_be_empty=classes is not None)
    if classes is not None:
        data = data.in_order(classes, given_by="--classes")
    _refuse_one_class(data)
    others = {part: each for part, each in parts.items() if each is not training}
    beside = first_of(others, VALIDATION) if val_data is None else None
    if beside is not None:
        chosen = _opened(beside, strict, may_be_empty=data.classes is not None)
        if (chosen.classes is None) == (data.classes is None):
            data = _noted(
                data, f"{training.name} calibrates, {beside.name} chooses eta and measures accuracy"
            )
            return WithValidation.of(data, chosen)
        data = _noted(
            data, f"{beside.name} is left out: {'one has' if data.classes else 'only it has'} labels"
        )
    elif training.part is not None:
        data = _noted(data, f"{training.name} is what is read of {name}")
    return data if val_data is None else _with_validation(data, val_data, strict)


def find_labelled(
    name: str, classes: Sequence[str], *, labels: str = FOLDERS, strict: bool = False
) -> ImageSource:
    """Images to attack, with labels in the order of the logits.

    Of a data set in parts the test part is taken, else its validation part, else the training part.

    Args:
        name: As for :func:`find_data`, but for data sets that bring their own test images.
        classes: Names in the order of the logits.
        labels: ``folders``, or a list of paths and labels; see :meth:`~sad_runtime.labelled.Labels.read`.
        strict: Whether an image that cannot be used is fatal.

    Raises:
        UserError: There is no such data, it has no labels, or some that are none of the classes.
    """
    if labels != FOLDERS:
        return dataclasses.replace(open_labelled(name, [name], classes, labels), strict=strict)
    parts = find_stored(name)
    stored = first_of(parts, EVALUATION) or parts[None]
    data = None
    if stored.kind is Kind.SHARDS:
        data = open_shards(stored.name, stored.paths)
    if stored.kind in (Kind.FOLDER, Kind.NAMED) or (stored.kind is Kind.SHARDS and data is None):
        data = open_labelled(stored.name, stored.paths, classes)
    data = data or _opened(stored, strict)
    if data.classes is None:
        raise UserError(
            f"{stored.name} has no labels, and accuracy needs them", hint="--labels FILE.csv lists them"
        )
    data = data.in_order(classes, given_by="the network's classes")
    return dataclasses.replace(data, strict=strict, part=stored.part or "")


def _embedded(name: str, classes: Sequence[str] | None) -> DataSource:
    if classes is not None:
        raise UserError(
            f"--classes is for images whose classes have no order; {name} has its own", hint="leave it out"
        )
    if name == "digits":
        return DigitsSource()
    dataset, separator, path = name.partition(":")
    if not separator or not path:
        raise UserError(
            f"{dataset} needs the folder of its files", hint=f"--data {dataset}:PATH; nothing is downloaded"
        )
    from .cifar import find_cifar  # torchvision takes a second

    return find_cifar(name, dataset, Path(path).expanduser())


def _with_validation(data: DataSource, name: str, strict: bool) -> WithValidation:
    """The same source, and others to choose η on and to report accuracy on.

    Raises:
        UserError: They bring their own, or have classes that the data has not.
    """
    if is_embedded(name):
        raise UserError(
            f"--val-data {name}: it takes other images than these",
            hint="digits and CIFAR bring their own test images: leave it out",
        )
    parts = find_stored(name)
    stored = first_of(parts, (*VALIDATION, Part.TRAIN)) or parts[None]
    return WithValidation.of(data, _opened(stored, strict, may_be_empty=data.classes is not None))


def _opened(stored: Stored, strict: bool, *, may_be_empty: bool = False) -> ImageSource:
    """Listed, with the labels that it has itself."""
    data: ImageSource | None
    if stored.kind is Kind.FOLDER:
        data = open_folder(stored.name, Path(stored.paths[0]), may_be_empty=may_be_empty)
    elif stored.kind is Kind.LIST:
        data = open_list(stored.name, Path(stored.paths[0]))
    elif stored.kind is Kind.TABLES:
        data = open_tables(stored.name, [Path(path) for path in stored.paths])
    elif stored.kind is Kind.LOADER:
        data = open_loader(stored.name)
    else:
        data = open_shards(stored.name, stored.paths) if stored.kind is Kind.SHARDS else None
        data = data or open_named(stored.name, stored.paths)
    return dataclasses.replace(data, strict=strict, part=stored.part or "")


def _noted(data: ImageSource, note: str) -> ImageSource:
    return dataclasses.replace(data, left_out=(note, *data.left_out))


def _refuse_one_class(data: ImageSource) -> None:
    """Statistics of one class alone are of no use, and a classifier has two at least.

    Raises:
        UserError: All images are of one class.
    """
    if data.classes is not None and len(data.present) == 1:
        raise UserError(
            f"{data.name} has images of one class only: {data.present[0]}",
            hint="calibrate on images of all classes; or give a flat folder of images, without labels",
        )
