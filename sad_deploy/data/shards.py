"""Archives whose members share a key, as WebDataset writes them: ``000.jpg`` and ``000.cls``.

A label is what a ``.cls`` holds, or the field ``label``, ``cls`` or ``class`` of a ``.json``. The members of
one image may lie apart. Nothing is unpacked; a tar file is gone through once for its labels, and once for the
images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from sad_runtime.errors import ImageError
from sad_runtime.sources import FailedItem, LeftOut, MemberItem, describe_left_out, has_image_ending
from sad_runtime.sources.archives import Archive, TarMember

from .image_source import ImageSource
from .items import ArchiveItems
from .label_column import LabelReader

_LABEL_ENDINGS = (".cls", ".json")
_FIELDS = ("label", "cls", "class")
_LONGEST = 1 << 20


def open_shards(name: str, paths: Sequence[str]) -> ImageSource | None:
    """Images of some archives, with their labels.

    Args:
        name: As the user gave it.
        paths: The archives, in order.

    Returns:
        None if no label lies in them.

    Raises:
        UserError: There are no images, or labels that are none.
    """
    labels = LabelReader(name)
    left_out, counts, broken = LeftOut(), [], []
    for path in paths:
        listing = _Listing(path, left_out)
        for label in listing.labels:
            labels.add(label)
        counts.append(len(listing.labels))
        broken += listing.broken
    column = labels.column()
    if column.classes is None:
        return None
    notes = (describe_left_out(left_out.counts, name),) if left_out.counts else ()
    return ImageSource.of(
        name, ArchiveItems(paths, counts), column, kind="classes of", left_out=notes, broken=tuple(broken)
    )


class _Listing:
    """What one archive holds.

    Attributes:
        labels: Of every image as they lie, None where there is none.
        broken: What is wrong with it.
    """

    def __init__(self, path: str, left_out: LeftOut) -> None:
        self.labels: list[object] = []
        self.broken: list[str] = []
        # Of what has come without its other half: a handful, where the members of an image lie together.
        self._images: dict[str, int] = {}
        self._waiting: dict[str, object] = {}
        self._same: dict[object, object] = {}
        try:
            archive = Archive(path)
        except ImageError as error:
            self.broken.append(f"{path}: {error.message}")
            return
        try:
            for member in archive.members(left_out, beside=_LABEL_ENDINGS):
                if isinstance(member, FailedItem):
                    self.broken.append(f"{path}: {member.message}, after {len(self.labels)} images")
                elif has_image_ending(member.name):
                    self._image(_key(member.name))
                else:
                    self._label(_key(member.name), self._read(member))
        finally:
            archive.close()

    def _image(self, key: str) -> None:
        if key in self._waiting:
            self.labels.append(self._waiting.pop(key))
        else:
            self._images[key] = len(self.labels)
            self.labels.append(None)

    def _label(self, key: str, label: object) -> None:
        if label is None:
            return
        label = self._same.setdefault(label, label)
        if key in self._images:
            self.labels[self._images.pop(key)] = label
        else:
            self._waiting[key] = label

    def _read(self, member: MemberItem | TarMember) -> object:
        item = member.held() if isinstance(member, TarMember) else member
        try:
            text = item.read()[:_LONGEST].decode().strip()
        except ImageError as error:
            self.broken.append(f"{item.name}: {error.message}")
            return None
        except UnicodeDecodeError:
            self.broken.append(f"{item.name}: not text")
            return None
        return self._of_json(item.name, text) if item.name.lower().endswith(".json") else text or None

    def _of_json(self, name: str, text: str) -> object:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            self.broken.append(f"{name}: no JSON")
            return None
        if not isinstance(fields, dict):
            return fields if isinstance(fields, str | int) else None
        label = next((fields[field] for field in _FIELDS if fields.get(field) is not None), None)
        return str(label) if isinstance(label, dict | list) else label


def _key(name: str) -> str:
    """What the members of one image share."""
    return name.rpartition(".")[0]
