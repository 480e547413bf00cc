"""``--data`` → where the images come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sad_runtime.errors import UserError
from sad_runtime.manifest import Preprocessing

from ..progress import Decoded
from . import cifar
from .digits import DigitsSource
from .folder import find_folder
from .image_set import CalibrationData


class DataSource(Protocol):
    """Images that were found but not yet read."""

    @property
    def name(self) -> str:
        """As the user gave it."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in the order of the labels, or None without labels."""
        ...

    @property
    def preprocessing(self) -> Preprocessing | None:
        """The only preprocessing that fits, or None if any does."""
        ...

    @property
    def left_out(self) -> tuple[str, ...]:
        """Sentences about what lies there and is not used."""
        ...

    @property
    def available(self) -> int:
        """How many images there are to calibrate on, unread: some may turn out unusable."""
        ...

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        calibration: int,
        held_out: int,
        seed: int,
        decoded: Decoded | None = None,
    ) -> CalibrationData:
        """Read the images.

        Args:
            preprocessing: What the manifest will say.
            calibration: Most images to calibrate on.
            held_out: Most images to hold out.
            seed: Decides which ones.
            decoded: Told after every image, where that takes time.

        Raises:
            UserError: There is nothing to read.
        """
        ...


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
