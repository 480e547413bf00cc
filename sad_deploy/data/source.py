"""What a source of images is."""

from __future__ import annotations

from typing import Protocol

from sad_runtime.manifest import Preprocessing

from ..progress import Decoded
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

    def whole(self) -> DataSource:
        """The same source, but that nothing is held out of it."""
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
