"""Images to calibrate on, and others, which the network has not seen, to choose η and measure accuracy on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sad_runtime.manifest import Preprocessing

from ..progress import Decoded
from ..shorten import shorten
from .image_set import CalibrationData
from .image_source import ImageSource
from .source import DataSource


@dataclasses.dataclass(frozen=True)
class WithValidation:
    """Two sources as one. Nothing is held out of the first.

    Attributes:
        training: For Algorithm 1.
        validation: For the rest; its labels are those of ``training`` where that has some.
    """

    training: DataSource
    validation: ImageSource

    @classmethod
    def of(cls, training: DataSource, validation: ImageSource) -> WithValidation:
        """Both, with labels in the order of the first one's classes.

        Raises:
            UserError: The second has a class that the first has not.
        """
        if training.classes is not None:
            if isinstance(training, ImageSource) and training.numbered and validation.numbered:
                training, validation = _numbered_alike(training, validation)
            validation = validation.in_order(training.classes or (), given_by=training.name)
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
        """In either; and which classes the second lacks."""
        return self.training.left_out + self.validation.left_out + self._lacking()

    def _lacking(self) -> tuple[str, ...]:
        if not isinstance(self.training, ImageSource) or self.validation.classes is None:
            return ()
        present = set(self.validation.present)
        lacking = [name for name in self.training.present if name not in present]
        if not lacking:
            return ()
        return (
            f"{self.validation.name} has no image of {len(lacking)} of {len(self.training.present)} classes: "
            f"{shorten(lacking)}",
        )

    @property
    def numbered(self) -> bool:
        """Whether the classes are only numbers, so that the network may have more."""
        return isinstance(self.training, ImageSource) and self.training.numbered

    @property
    def available(self) -> int:
        """To calibrate on."""
        return self.training.available

    def whole(self) -> WithValidation:
        """Nothing is held out as it is."""
        return self

    def in_order(self, classes: Sequence[str], *, given_by: str) -> WithValidation:
        """See :meth:`~.image_source.ImageSource.in_order`; data that bring their own order keep it."""
        training = self.training
        if isinstance(training, ImageSource):
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
        """See :class:`~.source.DataSource`; ``held_out`` are from the validation source.

        Raises:
            UserError: Of one of the two none can be used.
        """
        limits = {"held_out": 0, "seed": seed, "decoded": decoded}
        first = self.training.load(preprocessing, calibration=calibration, **limits)  # type: ignore[arg-type]
        second = self.validation.load(preprocessing, calibration=held_out, **limits)  # type: ignore[arg-type]
        if not len(second.calibration):
            raise self.validation.none_usable(self.validation.available, second.skipped)
        return CalibrationData(
            self.name,
            self.classes,
            first.calibration,
            second.calibration,
            validation=self.validation.name,
            skipped=first.skipped + second.skipped,
        )


def _numbered_alike(*sources: ImageSource) -> tuple[ImageSource, ...]:
    """The same with as many numbers for classes as the one that has more."""
    classes = max((source.classes or () for source in sources), key=len)
    return tuple(dataclasses.replace(source, classes=classes) for source in sources)
