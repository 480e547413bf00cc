"""Images to calibrate on, and others, which the network has not seen, to choose η and measure accuracy on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sad_runtime.errors import UserError
from sad_runtime.manifest import Preprocessing

from ..progress import Decoded
from .folder import FolderSource
from .image_set import CalibrationData
from .source import DataSource


@dataclasses.dataclass(frozen=True)
class WithValidation:
    """Two sources as one. Nothing is held out of the first.

    Attributes:
        training: For Algorithm 1.
        validation: A folder, for the rest; its labels are those of ``training`` where that has some.
    """

    training: DataSource
    validation: FolderSource

    @classmethod
    def of(cls, training: DataSource, validation: FolderSource) -> WithValidation:
        """Both, with labels in the order of the first one's classes.

        Raises:
            UserError: The second has a class that the first has not.
        """
        if training.classes is not None:
            validation = validation.in_order(training.classes, given_by=training.name)
        return cls(training.whole(), validation.whole())

    @property
    def name(self) -> str:
        """Of the images to calibrate on."""
        return self.training.name

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Of whichever has labels."""
        return self.training.classes or self.validation.classes

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Of the images to calibrate on."""
        return self.training.preprocessing

    @property
    def left_out(self) -> tuple[str, ...]:
        """In either."""
        return self.training.left_out + self.validation.left_out

    @property
    def available(self) -> int:
        """To calibrate on."""
        return self.training.available

    def whole(self) -> WithValidation:
        """Nothing is held out as it is."""
        return self

    def in_order(self, classes: Sequence[str], *, given_by: str) -> WithValidation:
        """See :meth:`FolderSource.in_order`; data that bring their own order keep it."""
        training = self.training
        if isinstance(training, FolderSource):
            training = training.in_order(classes, given_by=given_by)
        return WithValidation(training, self.validation.in_order(classes, given_by=given_by))

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        calibration: int,
        held_out: int,
        seed: int,
        decoded: Decoded | None = None,
    ) -> CalibrationData:
        """See :class:`~.source.DataSource`; ``held_out`` are from the validation folder.

        Raises:
            UserError: Of one of the two none can be used.
        """
        limits = {"held_out": 0, "seed": seed, "decoded": decoded}
        first = self.training.load(preprocessing, calibration=calibration, **limits)  # type: ignore[arg-type]
        second = self.validation.load(preprocessing, calibration=held_out, **limits)  # type: ignore[arg-type]
        if not len(second.calibration):
            raise UserError(f"none of the images of {self.validation.name} can be used")
        return CalibrationData(
            self.name,
            self.classes,
            first.calibration,
            second.calibration,
            validation=self.validation.name,
            skipped=first.skipped + second.skipped,
        )
