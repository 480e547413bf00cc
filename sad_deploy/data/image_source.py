"""Images with their labels, wherever they lie: what of them is held out, and the reading of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sad_runtime.errors import UserError
from sad_runtime.manifest import Preprocessing

from ..progress import Decoded
from .image_set import CalibrationData, ImageSet, stratified_split
from .items import Items, Places, Taken, Told, read_images, refuse_skipped
from .label_column import NO_LABEL, LabelColumn, check_range

HELD_OUT = 0.2
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Images that were found but not yet read; see :class:`~.source.DataSource`.

    Attributes:
        name: As the user gave it, or the part of it that this is.
        items: Where they lie.
        places: (n,) of the images among the items.
        labels: (n,) index of each image's class; zeros where there are none.
        classes: Names in the order of the labels, or None without labels.
        numbered: Whether the classes are only numbers, so that the network may have more.
        kind: What a class is here, for messages: ``class folders in``.
        preprocessing: None: any fits.
        left_out: Sentences about what lies there and is not among the images.
        broken: What could not even be listed, with the reason.
        share: Of every class that is held out.
        strict: Whether an image that cannot be used is fatal.
        part: ``train``, ``validation`` or ``test``, or empty where there are no such parts.
    """

    name: str
    items: Items
    places: Places
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...] | None
    numbered: bool = False
    kind: str = "classes of"
    preprocessing: Preprocessing | None = None
    left_out: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    share: float = HELD_OUT
    strict: bool = False
    part: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        items: Items,
        column: LabelColumn,
        *,
        kind: str = "classes of",
        left_out: tuple[str, ...] = (),
        broken: tuple[str, ...] = (),
        lost: int = 0,
    ) -> ImageSource:
        """With the labels as they were read; where some images have none, these are left out, which is said.

        Args:
            name: For sentences.
            items: All of them.
            column: Their labels.
            kind: What a class is, for messages.
            left_out: Sentences about what is not among the items.
            broken: Sentences about what could not be listed.
            lost: Items without a label of which ``broken`` speaks already.

        Raises:
            UserError: There is no image.
        """
        if not len(items):
            raise UserError(f"{name} holds no images", hint="; ".join([*broken, *left_out]) or None)
        places = np.arange(len(items))
        if column.classes is None:
            labels = np.zeros(len(items), np.int64)
        else:
            places = np.flatnonzero(column.indices != NO_LABEL)
            labels = column.indices[places]
            if missing := len(items) - len(places) - lost:
                some = "1 image of {} has" if missing == 1 else f"{missing:,} images of {{}} have"
                left_out += (f"{some.format(name)} no label; left out",)
        return cls(name, items, places, labels, column.classes, column.numbered, kind, None, left_out, broken)

    def whole(self) -> ImageSource:
        """The same source, but that nothing is held out of it."""
        return dataclasses.replace(self, share=0.0)

    @property
    def available(self) -> int:
        """Images that are not held out."""
        return len(self._split(seed=0)[1])

    @property
    def present(self) -> tuple[str, ...]:
        """Classes that have an image."""
        return () if self.classes is None else tuple(self.classes[i] for i in np.unique(self.labels))

    def in_order(self, classes: Sequence[str], *, given_by: str) -> ImageSource:
        """The same images with labels in another order of classes, some of which may have no image.

        Args:
            classes: All names, in the order of the network's outputs.
            given_by: Where they come from, for the message.

        Raises:
            UserError: A class is none of them, or a number beyond them.
        """
        if self.classes is None:
            return self
        if self.numbered and not set(self.present) <= set(classes):
            check_range(self.name, self.labels, len(classes), network=given_by)
            return dataclasses.replace(self, classes=tuple(classes), numbered=False)
        names = self.present if self.numbered else self.classes
        known = set(classes)
        unknown = [name for name in names if name not in known]
        if unknown:
            shown = ", ".join(unknown[:_NAMED]) + (" …" if len(unknown) > _NAMED else "")
            raise UserError(
                f"{len(unknown)} of {len(self.classes)} {self.kind} {self.name} are not in {given_by}: "
                f"{shown}",
                hint=f"name them as {given_by} does, for example {classes[0]!r}",
            )
        place = {name: i for i, name in reversed([*enumerate(classes)])}
        index = np.array([place.get(name, NO_LABEL) for name in self.classes], dtype=np.int64)
        return dataclasses.replace(self, classes=tuple(classes), labels=index[self.labels], numbered=False)

    def _split(self, seed: int) -> list[npt.NDArray[np.intp]]:
        """Indices held out, and the others; how many does not depend on the seed."""
        return stratified_split(self.labels, (self.share,), np.random.default_rng(seed))

    def load(
        self,
        preprocessing: Preprocessing,
        *,
        calibration: int,
        held_out: int,
        seed: int,
        decoded: Decoded | None = None,
    ) -> CalibrationData:
        """See :class:`~.source.DataSource`. A fifth of every class is held out; there is no test part.

        Images that cannot be used are skipped and listed.

        Raises:
            UserError: None can be used; or, if it is strict, some cannot.
        """
        held, rest = self._split(seed)
        wanted = min(calibration, len(rest)) + min(held_out, len(held))
        before = 0

        def told(done: int) -> None:
            if decoded is not None:
                decoded(before + done, wanted)

        first = self.read(rest, calibration, preprocessing, decoded=told)
        before = len(first.kept)
        second = self.read(held, held_out, preprocessing, decoded=told)
        skipped = self.broken + first.skipped + second.skipped
        if not len(first.kept) and calibration:
            raise self.none_usable(len(rest), skipped)
        parts = self._labelled(rest, first), self._labelled(held, second)
        return CalibrationData(self.name, self.classes, *parts, skipped=skipped)

    def read(
        self, indices: Places, limit: int, preprocessing: Preprocessing, *, decoded: Told | None = None
    ) -> Taken:
        """Some of the images, in an order; see :func:`~.items.read_images`.

        Raises:
            UserError: If the source is strict, some cannot be used.
        """
        if self.strict:
            refuse_skipped(self.name, self.broken)
        return read_images(
            self.name,
            self.items,
            self.places[indices],
            limit,
            preprocessing,
            strict=self.strict,
            decoded=decoded,
        )

    def _labelled(self, indices: Places, taken: Taken) -> ImageSet:
        labels = None if self.classes is None else self.labels[indices[taken.kept]]
        return ImageSet(taken.images, labels)

    def none_usable(self, count: int, skipped: Sequence[str]) -> UserError:
        """The error of a source of which none of so many images can be used."""
        first = f"; the first: {skipped[0]}" if skipped else ""
        which = f"none of the {count} images" if count > 1 else "the only image"
        files = "folders" in self.kind
        return UserError(
            f"{which} of {self.name} can{'' if count > 1 else 'not'} be used{first}",
            hint="sad-deploy infer lists what is wrong with every file" if files else None,
        )
