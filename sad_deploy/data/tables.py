"""Tables of images: Parquet files, and the Arrow files of Hugging Face's ``save_to_disk``.

A column holds the bytes of image files, or structs of ``bytes`` and ``path`` as Hugging Face writes them;
another holds the class of each: a number or a name. What Hugging Face says of the columns lies in the files
themselves, with the names of the classes. Files are read a few rows at a time, by pyarrow alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sad_runtime.errors import ErrorCode, ImageError, UserError
from sad_runtime.extras import require
from sad_runtime.sources import FailedItem, FileItem, Item, MemberItem

from .image_source import ImageSource
from .items import Places
from .label_column import LabelReader

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "bytes", "image_bytes")
_LABELS = ("label", "labels", "class", "cls", "target", "category", "fine_label", "class_name", "label_name")
_LABEL_KINDS = ("int", "uint", "bool", "double", "string", "large_string", "dictionary")
_ROWS = 32
_LABEL_ROWS = 1 << 14
_BUFFER = 1 << 20


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns of a table are read.

    Attributes:
        image: Of images.
        label: Of their classes; None where there is none.
        names: Of the classes, if the table has them.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None


def open_tables(name: str, paths: Sequence[Path]) -> ImageSource:
    """Images of Parquet or Arrow files of one kind, with their labels.

    Args:
        name: As the user gave it.
        paths: The files, in order.

    Raises:
        UserError: No file can be read, or they hold no column of images.
        MissingExtraError: pyarrow is not installed.
    """
    require("pyarrow", extra="parquet", need=f"reading {name}")
    columns: Columns | None = None
    labels: LabelReader | None = None
    readable, counts, broken = [], [], []
    for path in paths:
        table = _table(path)
        try:
            if columns is None or labels is None:
                columns = _columns(name, table.schema())
                labels = LabelReader(name, columns.names)
            counts.append(_listed(table, columns, labels))
            readable.append(table)
        except _broken() as error:
            broken.append(f"{path}: {_reason(error)}")
    if columns is None or labels is None:
        raise UserError(f"no file of {name} can be read; the first: {broken[0]}")
    items = TableItems(readable, counts, columns)
    said = (
        f"{name}: images of column {columns.image}, "
        + ("no labels" if columns.label is None else f"labels of column {columns.label}"),
    )
    return ImageSource.of(name, items, labels.column(), left_out=said, broken=tuple(broken))


class TableItems:
    """Images of tables, one after another.

    Args:
        tables: The files.
        counts: Rows of each.
        columns: Where the images are in them.
    """

    def __init__(self, tables: Sequence[_Table], counts: Sequence[int], columns: Columns) -> None:
        self._tables = tuple(tables)
        self._ends = np.cumsum(counts)
        self._columns = columns

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, places: Places) -> Iterator[tuple[int, Item]]:
        """See :class:`~.items.Items`; as they lie."""
        places = np.sort(places)
        start = 0
        for table, end in zip(self._tables, map(int, self._ends), strict=True):
            rows = places[(places >= start) & (places < end)] - start
            for row, item in self._within(table, rows):
                yield start + row, item
            start = end

    def _within(self, table: _Table, rows: Places) -> Iterator[tuple[int, Item]]:
        given = 0
        try:
            for first, batch in table.batches(self._columns.image, rows, _ROWS):
                inside = rows[(rows >= first) & (rows < first + len(batch))]
                column = batch.column(0)
                for row in map(int, inside):
                    yield row, self._item(table, row, column[row - first].as_py())
                    given += 1
        except _broken() as error:
            for row in map(int, rows[given:]):
                yield row, FailedItem(f"{table.path} row {row}", ErrorCode.CORRUPT, _reason(error))

    def _item(self, table: _Table, row: int, value: bytes | Mapping[str, Any] | None) -> Item:
        name = f"{table.path} row {row}"
        path, data = None, value
        if isinstance(value, Mapping):
            path, data = value.get("path"), value.get("bytes")
            name = f"{name} ({path})" if path else name
        if isinstance(data, bytes):
            return MemberItem(name, functools.partial(bytes, data), None)
        if path:
            return FileItem(os.path.join(table.path.parent, path))  # noqa: PTH118 - a stranger's text
        return FailedItem(name, ErrorCode.EMPTY, "the row holds no image")


class _Table:
    """A Parquet file: groups of rows, of which those without a wanted row are passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _file(self) -> Any:
        parquet = require("pyarrow.parquet", extra="parquet", need=f"reading {self.path}")
        # Pieces of a column as they are needed, not whole groups of rows.
        return parquet.ParquetFile(self.path, buffer_size=_BUFFER, pre_buffer=False)

    def schema(self) -> Any:
        with self._file() as file:
            return file.schema_arrow

    def batches(self, column: str, rows: Places | None, size: int) -> Iterator[tuple[int, Any]]:
        """Batches of one column with the number of their first row; all, or those that hold some rows."""
        with self._file() as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                if rows is None or np.any((rows >= start) & (rows < end)):
                    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=[column]):
                        yield start, batch
                        start += len(batch)
                start = end

    def count(self) -> int:
        with self._file() as file:
            return int(file.metadata.num_rows)


class _ArrowTable(_Table):
    """An Arrow file, as a stream or with a footer: mapped into memory, so that only what is read is there."""

    def _batches(self) -> Iterator[Any]:
        arrow = require("pyarrow", extra="parquet", need=f"reading {self.path}")
        with arrow.memory_map(str(self.path)) as file:
            try:
                opened = arrow.ipc.open_stream(file)
                found = iter(opened)
            except arrow.ArrowInvalid:
                opened = arrow.ipc.open_file(file)
                found = (opened.get_batch(i) for i in range(opened.num_record_batches))
            yield opened.schema
            yield from found

    def schema(self) -> Any:
        return next(self._batches())

    def batches(self, column: str, rows: Places | None, size: int) -> Iterator[tuple[int, Any]]:
        start = 0
        batches = self._batches()
        next(batches)
        for batch in batches:
            yield start, batch.select([column])
            start += len(batch)

    def count(self) -> int:
        batches = self._batches()
        next(batches)
        return sum(map(len, batches))


def _table(path: Path) -> _Table:
    return _ArrowTable(path) if path.suffix.lower() == ".arrow" else _Table(path)


def _listed(table: _Table, columns: Columns, labels: LabelReader) -> int:
    """Add a file's labels, all or none of them; how many rows there are."""
    if columns.label is None:
        count = table.count()
        for _ in range(count):
            labels.add(None)
        return count
    found = [
        label
        for _, batch in table.batches(columns.label, None, _LABEL_ROWS)
        for label in batch.column(0).to_pylist()
    ]
    for label in found:
        labels.add(label)
    return len(found)


def _columns(name: str, schema: Any) -> Columns:
    """Those of images and of labels, as Hugging Face says it, or by their types and names."""
    features = _features(schema)
    kinds = {field.name: str(field.type) for field in schema}
    images = [each for each in kinds if features.get(each, {}).get("_type") == "Image"]
    images = images or [each for each, kind in kinds.items() if _holds_bytes(kind)]
    if not images:
        raise UserError(
            f"{name} has no column of images: {', '.join(f'{key} ({kind})' for key, kind in kinds.items())}",
            hint="a column of image files' bytes, or of structs with bytes, as Hugging Face writes them",
        )
    image = _preferred(images, _IMAGES) or images[0]
    classes = [each for each in kinds if features.get(each, {}).get("_type") == "ClassLabel"]
    label = _preferred(classes, _LABELS) or next(iter(classes), None) or _preferred([*kinds], _LABELS)
    if label == image:
        label = None
    if label is not None and not kinds[label].startswith(_LABEL_KINDS):
        raise UserError(
            f"column {label} of {name} is {kinds[label]}, not one class per image",
            hint="a label is a number or a name",
        )
    names = features.get(label or "", {}).get("names")
    return Columns(image, label, tuple(names) if names else None)


def _features(schema: Any) -> Mapping[str, Mapping[str, Any]]:
    """What Hugging Face says of the columns, by column; empty where it says nothing."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {key: value for key, value in said.items() if isinstance(value, dict)}


def _holds_bytes(kind: str) -> bool:
    return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: " in kind)


def _preferred(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column whose name comes first among some."""
    by_name = {column.lower(): column for column in reversed(columns)}
    return next((by_name[name] for name in names if name in by_name), None)


def _broken() -> tuple[type[Exception], ...]:
    """What pyarrow raises on a file that it cannot read."""
    arrow = require("pyarrow", extra="parquet", need="a table of images")
    return (arrow.ArrowException, OSError, ValueError, ImageError)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
