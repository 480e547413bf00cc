"""``--data`` and ``--val-data`` → where the images come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sad_runtime.errors import UserError

from . import cifar
from .digits import DigitsSource
from .folder import find_folder
from .source import DataSource
from .validation import WithValidation


def find_data(name: str, *, classes: Sequence[str] | None = None) -> DataSource:
    """The source behind ``digits``, ``cifar10:PATH``, ``cifar100:PATH`` or a folder.

    Args:
        name: As the user gave it.
        classes: Names in the order of the network's outputs, for a folder; its own order by default.

    Raises:
        UserError: There is no such data, or the classes are not those of its folders.
    """
    dataset, separator, path = name.partition(":")
    if classes is not None and (name == "digits" or dataset in cifar.NAMES):
        raise UserError(f"--classes is for a folder of images; {name} has its own", hint="leave it out")
    if name == "digits":
        return DigitsSource()
    if dataset in cifar.NAMES:
        if not separator or not path:
            raise UserError(
                f"{dataset} needs the folder of its files",
                hint=f"--data {dataset}:PATH; nothing is downloaded",
            )
        return cifar.find_cifar(name, dataset, Path(path).expanduser())
    folder = find_folder(name, Path(name).expanduser(), may_be_empty=classes is not None)
    return folder if classes is None else folder.in_order(classes, given_by="--classes")


def with_validation(data: DataSource, name: str) -> WithValidation:
    """The same source, and a folder of other images to choose η on and to report accuracy on.

    Args:
        data: To calibrate on.
        name: The folder as the user gave it.

    Raises:
        UserError: It is no folder of images, or has classes that the data has not.
    """
    if name == "digits" or name.partition(":")[0] in cifar.NAMES:
        raise UserError(
            f"--val-data {name}: it takes a folder of images",
            hint="digits and CIFAR bring their own test images: leave it out",
        )
    folder = find_folder(
        name, Path(name).expanduser(), may_be_empty=data.classes is not None, option="--val-data"
    )
    return WithValidation.of(data, folder)
