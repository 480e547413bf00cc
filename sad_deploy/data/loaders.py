"""``module:factory``: images from anybody's own code, a PyTorch data set or any iterable.

A sample is ``(image, label)``, a dict with both, or the image alone. An image is what
:data:`sad_runtime.given.GivenImage` says, or a tensor of that: Pillow's, an array (H, W, C) of uint8 and
a path are prepared as image files are, floats (C, H, W) in [0, 1] are the network's input itself. The factory
is called once for every pass, and must give the same samples in the same order.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sad_runtime.errors import ErrorCode, UserError
from sad_runtime.given import GivenItem, as_item
from sad_runtime.sources import FailedItem, Item

from ..named_object import current_folder_importable, described, find_object
from .image_source import ImageSource
from .items import Places
from .label_column import LabelReader

_HINT = "it returns a torch Dataset or an iterable of (image, label)"
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_IMAGES = ("image", "img", "pixel_values")
_LABELS = ("label", "labels", "target", "cls")


def is_loader(name: str) -> bool:
    """Whether a name is of this form and of nothing that lies there."""
    return _NAME.fullmatch(name) is not None and not os.path.exists(name)  # noqa: PTH110


def open_loader(name: str) -> ImageSource:
    """Images of a factory.

    Where its data set has ``targets`` or ``labels``, these are taken and no image is touched; else all are
    gone through once.

    Args:
        name: ``package.module:factory``.

    Raises:
        UserError: There is no such factory, it raises, or it gives no images.
    """
    items = LoaderItems(name)
    labels = LabelReader(name)
    broken: list[str] = []
    for label in items.labels(broken):
        labels.add(label)
    column = labels.column()
    if column.classes is None:
        broken = []  # reading says it again
    return ImageSource.of(name, items, column, broken=tuple(broken), lost=len(broken))


class LoaderItems:
    """The samples of a factory's data set.

    Args:
        name: ``package.module:factory``.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        try:
            with current_folder_importable():
                found = find_object(name, example="mypackage.data:photos", hint=_HINT)
        except UserError:
            raise
        except Exception as error:  # whatever somebody's own module raises
            raise UserError(f"{name}: importing its module raised {described(error)}") from error
        self._factory: Callable[[], Any] = found
        self._count = 0
        self._seen = array("q")  # what tells a sample's label, where all were gone through

    def __len__(self) -> int:
        return self._count

    def labels(self, broken: list[str]) -> Iterator[object]:
        """Those of all samples, None where there is none; counts the samples."""
        made = self._made()
        given = _given(made, "targets")
        given = _given(made, "labels") if given is None else given
        if given is not None:
            self._count = len(given)
            yield from map(_number, given)
            return
        self._count = 0
        for place, sample in self._samples(made, None):
            self._count = place + 1
            label = None if isinstance(sample, Exception) else _number(_taken_apart(sample)[1])
            if isinstance(sample, Exception):
                broken.append(f"{self._called(place)}: {described(sample)}")
            self._seen.append(hash(str(label)))
            yield label

    def at(self, places: Places) -> Iterator[tuple[int, Item]]:
        """See :class:`~.items.Items`; in the order asked for of what has numbers, else as they come."""
        for place, sample in self._samples(self._made(), places):
            name = self._called(place)
            if isinstance(sample, Exception):
                yield place, FailedItem(name, ErrorCode.UNREADABLE, described(sample))
                continue
            image, label = _taken_apart(sample)
            if self._seen and self._seen[place] != hash(str(_number(label))):
                raise UserError(
                    f"{self._name} gives its samples in another order each time",
                    hint="leave the shuffling out",
                )
            try:
                yield place, self._item(name, place, image)
            except UserError as error:
                yield place, FailedItem(name, ErrorCode.UNSUPPORTED, error.message)

    def _called(self, place: int) -> str:
        return f"{self._name}[{place}]"

    def _made(self) -> Any:
        try:
            with current_folder_importable():
                made = self._factory()
        except UserError:
            raise
        except Exception as error:  # whatever somebody's own code raises
            raise UserError(f"{self._name}() raised {described(error)}", hint=_HINT) from error
        if not hasattr(made, "__iter__") and not hasattr(made, "__getitem__"):
            kind = "None" if made is None else f"a {type(made).__name__}"
            raise UserError(f"{self._name}() returned {kind}, which holds no images", hint=_HINT)
        if hasattr(made, "batch_size") and hasattr(made, "dataset"):
            raise UserError(f"{self._name}() returned a loader of batches", hint="return its dataset")
        return made

    def _samples(self, made: Any, places: Places | None) -> Iterator[tuple[int, Any]]:
        """Samples by place, or what reading one raised; of an iterable all until the last wanted."""
        with current_folder_importable():
            if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
                for place in range(len(made)) if places is None else map(int, places):
                    try:
                        sample = made[place]
                    except Exception as error:  # of one image, which is skipped
                        sample = error
                    yield place, sample
                return
            wanted = None if places is None else set(map(int, places))
            last = -1 if not wanted else max(wanted)
            try:
                for place, sample in enumerate(made):
                    if wanted is None or place in wanted:
                        yield place, sample
                    if wanted is not None and place >= last:
                        return
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"{self._name}: going through it raised {described(error)}") from error

    def _item(self, name: str, place: int, image: Any) -> Item:
        if hasattr(image, "detach"):
            image = image.detach().cpu().numpy()
        if not isinstance(image, np.ndarray):
            item = as_item(image, place)
            return GivenItem(name, item.image) if isinstance(item, GivenItem) else item
        if image.ndim == 4:
            raise UserError(f"an array of shape {image.shape} is a batch, not an image")
        return GivenItem(name, image)


def _given(made: Any, key: str) -> Any:
    found: Any = getattr(made, key, None)
    if not hasattr(made, "__getitem__") or not hasattr(made, "__len__") or not hasattr(found, "__len__"):
        return None
    return found if len(found) == len(made) and len(found) else None


def _number(label: Any) -> object:
    """A label out of a tensor or an array of one value."""
    try:
        return label.item() if hasattr(label, "item") else label
    except (ValueError, RuntimeError):  # it has several
        return label


def _taken_apart(sample: Any) -> tuple[Any, Any]:
    """Image and label; None where there is no label."""
    if isinstance(sample, Mapping):
        image = next((sample[key] for key in _IMAGES if key in sample), None)
        return image, next((sample[key] for key in _LABELS if key in sample), None)
    if isinstance(sample, tuple | list):
        return (sample[0] if sample else None), (sample[1] if len(sample) > 1 else None)
    return sample, None
