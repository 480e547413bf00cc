"""Describes a run, in ``OUT.run.json`` beside its rows: ``--resume`` accepts only a run like it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import UserError
from ..files import written_whole
from ..strict_json import from_plain, parse, to_plain
from ..version import __version__

_SCHEMA = 1
_DECISIVE = ("model", "classes", "preprocessing", "input_space", "defence")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What decides over a run's rows.

    Attributes:
        bundle: SHA-256 over what of the bundle decides rows: the graph, and what the manifest says of the
            network, its classes, the preprocessing and the defence. Not its engines, its other graphs, nor
            the figures of its calibration.
        options: The options that change rows, by their names on the command line without the dashes.
        sources: What the last run read, as the user wrote it.
        backends: Which made rows, in order; more than one after the run was gone on with elsewhere.
        versions: Of sad-deploy, likewise.
        schema: Version of the file's form.
    """

    bundle: str
    options: Mapping[str, Any]
    sources: tuple[str, ...]
    backends: tuple[str, ...]
    versions: tuple[str, ...] = (__version__,)
    schema: int = _SCHEMA

    @classmethod
    def of(
        cls, bundle: Bundle, precision: str, options: Mapping[str, Any], sources: Sequence[str], backend: str
    ) -> RunRecord:
        """The record of a run that begins.

        Args:
            bundle: What it runs.
            precision: Which of its graphs.
            options: Its options that change rows.
            sources: What it reads.
            backend: Where it runs.

        Raises:
            BundleError: The bundle has no graph of that precision.
        """
        manifest = json.loads(bundle.manifest.to_json())
        decisive = {name: manifest[name] for name in _DECISIVE}
        decisive["graph"] = bundle.manifest.files[bundle.graph(precision).file]
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return cls(digest, options, tuple(sources), (backend,))

    @classmethod
    def read(cls, path: Path) -> RunRecord | None:
        """Read a record; ``None`` if there is none.

        Raises:
            UserError: It is damaged or of a newer version.
        """
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        problems: list[str] = []
        try:
            record: RunRecord = from_plain(cls, parse(text), "", problems)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise UserError(
                f"{path} is not the record of a run: {'; '.join(problems)}",
                hint="start afresh with --overwrite",
            )
        if record.schema != _SCHEMA:
            raise UserError(
                f"{path} has schema {record.schema}, this version reads {_SCHEMA}",
                hint="resume with the version that wrote it, or start again with --overwrite",
            )
        return record

    def write(self, path: Path) -> None:
        """Write the record whole or not at all.

        Raises:
            UserError: It cannot be written.
        """
        text = json.dumps(to_plain(self, "", []), indent=2, ensure_ascii=True) + "\n"
        with written_whole(path, durable=True) as draft:  # rows without a record cannot be gone on with
            draft.write_text(text, encoding="utf-8")

    def differences(self, earlier: RunRecord) -> list[str]:
        """Why the rows of an earlier run are not what this one would write; empty if they are."""
        found = []
        if earlier.bundle != self.bundle:
            found.append(f"another bundle ({earlier.bundle[:12]}…, now {self.bundle[:12]}…)")
        for name in dict.fromkeys([*earlier.options, *self.options]):
            was, is_now = earlier.options.get(name), self.options.get(name)
            if was != is_now:
                found.append(f"{_shown(name, was)} (now {_shown(name, is_now)})")
        return found

    def after(self, earlier: RunRecord) -> RunRecord:
        """This record, with the backends and versions that made the earlier rows before its own."""
        return dataclasses.replace(
            self,
            backends=tuple(dict.fromkeys((*earlier.backends, *self.backends))),
            versions=tuple(dict.fromkeys((*earlier.versions, *self.versions))),
        )


def _shown(name: str, value: Any) -> str:
    if value is None or value is False:
        return f"no --{name}"
    return f"--{name}" if value is True else f"--{name} {value}"
