"""The labels of a source as they are written, one per image → class indices and the names of the classes.

Numbers stay what they are and are counted from 0: the network may have more classes than occur. Texts are
names, whose order is the alphabet's unless the source says another.
"""

from __future__ import annotations

import dataclasses
import re
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sad_runtime.errors import UserError

NO_LABEL = -1
"""In place of an index, where an image has no label."""

_MOST_CLASSES = 100_000
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class LabelColumn:
    """Class by image.

    Attributes:
        indices: (n,) into ``classes``, :data:`NO_LABEL` where there is none.
        classes: Names, or None where no image has a label.
        numbered: Whether the names are only the numbers up to the largest one that occurs.
    """

    indices: npt.NDArray[np.int64]
    classes: tuple[str, ...] | None
    numbered: bool = False


class LabelReader:
    """Takes labels one by one; remembers four bytes of each.

    Args:
        name: Of the source, for messages.
        names: Of the classes, if the source has them: numbers are indices into them.
    """

    def __init__(self, name: str, names: Sequence[str] | None = None) -> None:
        self._name = name
        self._names = None if names is None else tuple(names)
        self._known: dict[str, int] = {}
        self._each = array("i")

    def add(self, label: object) -> None:
        """The next image's: a name, a number, or None where it has none.

        Raises:
            UserError: It is neither, or there are more different ones than any classifier's.
        """
        if label is None or label == "" or label != label:  # NaN, a table's gap
            self._each.append(NO_LABEL)
            return
        text = self._text(label)
        index = self._known.setdefault(text, len(self._known))
        if index == _MOST_CLASSES:
            raise UserError(
                f"{self._name} has more than {_MOST_CLASSES:,} different labels, for example {text[:40]!r}",
                hint="a label is the class of an image: a name, or a number from 0",
            )
        self._each.append(index)

    def _text(self, label: object) -> str:
        if isinstance(label, str):
            return label
        if isinstance(label, int | float) and float(label).is_integer():
            return str(int(label))
        raise UserError(
            f"a label of {self._name} is a {type(label).__name__}: {str(label)[:40]}",
            hint="a label is the class of an image: a name, or a number from 0",
        )

    def column(self) -> LabelColumn:
        """All of them.

        Raises:
            UserError: Some numbers are negative, or beyond the classes that the source names.
        """
        each = np.frombuffer(self._each, np.int32).astype(np.int64) if self._each else np.empty(0, np.int64)
        if not self._known:
            return LabelColumn(each, None)
        given = list(self._known)
        if all(map(_NUMBER.fullmatch, given)) and not set(given) <= set(self._names or ()):
            return self._numbered(each, np.array([int(text) for text in given], np.int64))
        names = self._names or tuple(sorted(given))
        unknown = [text for text in given if text not in set(names)]
        if unknown:
            raise UserError(
                f"{len(unknown)} labels of {self._name} are none of its {len(names)} classes: "
                f"{', '.join(unknown[:5])}"
            )
        place = {name: i for i, name in enumerate(names)}
        return LabelColumn(_looked_up(each, np.array([place[text] for text in given], np.int64)), names)

    def _numbered(self, each: npt.NDArray[np.int64], given: npt.NDArray[np.int64]) -> LabelColumn:
        if self._names is None and set(given.tolist()) == {NO_LABEL}:  # as Hugging Face's test parts have it
            return LabelColumn(np.full(len(each), NO_LABEL, np.int64), None)
        count = _MOST_CLASSES if self._names is None else len(self._names)
        labels = _looked_up(each, given)
        if self._names is not None and set(given.tolist()) == {NO_LABEL}:
            return LabelColumn(labels, None)
        has = each != NO_LABEL
        check_range(self._name, labels[has], count)
        if self._names is not None:
            return LabelColumn(labels, self._names)
        return LabelColumn(labels, tuple(map(str, range(int(labels.max()) + 1))), numbered=True)


def check_range(name: str, labels: npt.NDArray[np.int64], count: int, *, network: str | None = None) -> None:
    """Refuse labels that are no class.

    Args:
        name: Of the source.
        labels: (n,) as they are.
        count: K.
        network: What has so many classes, if it is not the source itself.

    Raises:
        UserError: Some are negative, or K and above.
    """
    wrong = labels[(labels < 0) | (labels >= count)]
    if len(wrong):
        shown = ", ".join(map(str, np.unique(wrong)[:5]))
        raise UserError(
            f"{len(wrong):,} of {len(labels):,} labels of {name} are out of range: {shown}"
            + (f"; {network} has {count} classes" if network else ""),
            hint=f"classes are numbered from 0 to {count - 1}",
        )


def _looked_up(each: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``values[each]``, and no label where there is none."""
    return np.append(values, NO_LABEL)[each]
