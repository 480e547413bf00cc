"""The names of the classes in the order of the network's outputs: ``--classes FILE``, or a graph's metadata.

A file holds one of:

- text, one name per line; empty lines are left out;
- a JSON list of names;
- a JSON object from name to index (torchvision's ``class_to_idx``) or from index to name (Hugging Face's
  ``id2label``), indices from 0 without a gap.

Exporters write the same into a graph's ``metadata_props`` under names of their own, also as Python writes a
list or dict (Ultralytics' ``names``), or separated by commas.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from sad_runtime.errors import UserError

_SHOWN = 5
_KEYS = ("names", "class_names", "classes", "labels", "id2label", "class_to_idx")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the names.

    Raises:
        UserError: The file is missing, is none of the forms, or names a class twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(
            f"--classes {path} cannot be read: {reason}", hint="give a file with one class name per line"
        ) from None
    names = _of_json(text, path) if text.lstrip().startswith(("[", "{")) else _of_lines(text)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"--classes {path} names {', '.join(twice[:_SHOWN])} more than once")
    if len(names) < 2:
        raise UserError(f"--classes {path} names {len(names)} classes; a classifier has at least two")
    return names


def names_in_metadata(metadata: Mapping[str, str], count: int) -> tuple[str, ...] | None:
    """The names that an exporter wrote into a graph, if it wrote any for so many classes.

    Args:
        metadata: The graph's ``metadata_props``.
        count: K.
    """
    for key in _KEYS:
        names = _of_text(metadata.get(key, ""))
        if names is not None and len(names) == count == len(set(names)):
            return names
    return None


def _of_text(text: str) -> tuple[str, ...] | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            return _of_read(parse(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # of literal_eval, on any text
            continue
    return _of_lines(text if "\n" in text.strip() else text.replace(",", "\n"))


def _of_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _of_json(text: str, path: Path) -> tuple[str, ...]:
    forms = "a list of names, or an object of names and indices from 0 on"
    try:
        read = json.loads(text)
    except ValueError as error:
        raise UserError(f"--classes {path} is not readable as JSON: {error}", hint=f"give {forms}") from None
    names = _of_read(read)
    if names is None:
        raise UserError(f"--classes {path} holds neither {forms.replace(', or', ' nor')}")
    return names


def _of_read(read: object) -> tuple[str, ...] | None:
    """Of a list of names, or a dict from names to indices or from indices to names."""
    if isinstance(read, (list, tuple)) and all(isinstance(name, str) for name in read):
        return tuple(read)
    if not isinstance(read, dict):
        return None
    by_index = {str(value): key for key, value in read.items() if type(value) is int}
    if not by_index:
        by_index = {str(key): value for key, value in read.items() if isinstance(value, str)}
    indices = [str(i) for i in range(len(read))]
    return tuple(map(str, (by_index[i] for i in indices))) if set(by_index) == set(indices) else None
