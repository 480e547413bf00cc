"""Where a run's rows go, and what becomes of an earlier run's.

To a file ``OUT``: rows are journaled in ``OUT.partial``, described by ``OUT.partial.run.json``. At the end
the journal, or the table made from it, takes the name ``OUT`` and the record the name ``OUT.run.json``; an
older ``OUT`` is replaced only then. To standard output, a pipe or a device: straight there.

An earlier run's rows, finished or not, are never thrown away unasked: the next run resumes them or is
refused. A file that is no result is never replaced at all.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ..errors import UserError
from ..files import Destination
from ..result_format import ResultFormat
from .columns import Columns
from .finished import FinishedRows, compact
from .journal import Journal, to_lines
from .record import RunRecord
from .row import Row
from .tables import check_writable, write_table

STDOUT = "-"
"""As a file name: standard output."""


class EarlierRunError(UserError):
    """An earlier run left rows, and it was not said what is to become of them.

    Attributes:
        can_resume: Whether they can be gone on with.
    """

    def __init__(self, message: str, *, can_resume: bool) -> None:
        other = "add --resume to complete them" if can_resume else "choose another --out"
        super().__init__(message, hint=f"{other}, or --overwrite to replace them")
        self.can_resume = can_resume


class Output(Protocol):
    """Takes a run's rows; a context manager, which keeps what was written however it is left.

    Attributes:
        count: Rows written by this run.
        finished: The rows of the run that is gone on with; ``None`` if there is none.
        kept_in: Where rows stay if the run ends early; ``None`` if it cannot be gone on with.
    """

    @property
    def count(self) -> int: ...

    @property
    def finished(self) -> FinishedRows | None: ...

    @property
    def kept_in(self) -> Path | None: ...

    def begin(self, record: RunRecord) -> list[str]:
        """Write down what the run is, before its first row.

        Returns:
            What differs from the run gone on with but does not forbid it; sentences for the user.

        Raises:
            UserError: The run gone on with had another bundle or other options.
        """
        ...

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows.

        Raises:
            UserError: The disk is full or gone.
            BrokenPipeError: The reader of a pipe went away.
        """
        ...

    def complete(self) -> Path | None:
        """Drop rows that a later one replaces, after the last one. Returns the journal, if there is one."""
        ...

    def publish(self, columns: Columns) -> None:
        """Give the result its name, as the table it is to be.

        Args:
            columns: What the rows hold.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_output(
    out: str, *, table: ResultFormat | None = None, resume: bool = False, overwrite: bool = False
) -> Output:
    """Open what a run writes to.

    Args:
        out: A file, or ``-`` for standard output.
        table: What the file becomes; by default what its ending says.
        resume: Go on with an earlier run's rows, if there are some.
        overwrite: Replace an earlier run's rows; finished ones at the end, unfinished ones at once.

    Raises:
        EarlierRunError: An earlier run's rows are there and neither ``resume`` nor ``overwrite`` was asked
            for.
        UserError: It cannot be written, is a file that is no result, another run is writing it, or its rows
            cannot be gone on with.
        MissingExtraError: The format needs a package that is not installed.
    """
    path = Path(out)
    try:
        direct = out == STDOUT or Destination.of(path).place is None
        if direct:
            if resume or overwrite or table not in (None, ResultFormat.JSONL):
                what = "--resume" if resume else "--overwrite" if overwrite else f"--format {table}"
                raise UserError(f"{what} needs a file, but --out is {out}", hint="give --out a file's name")
            return Stream(None if out == STDOUT else path)
        table = table or ResultFormat.of(out)
        check_writable(table)
        return ResultFile(path, table, resume=resume, overwrite=overwrite)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}", hint="choose another --out") from error


class Stream:
    """Rows to standard output, a pipe or a device; see :class:`Output`.

    Args:
        path: A pipe or device; ``None`` for standard output.
    """

    finished = None
    kept_in = None

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self._name = "standard output" if path is None else os.fspath(path)
        self._file = io.FileIO(sys.stdout.fileno() if path is None else path, "wb", closefd=path is not None)

    def begin(self, record: RunRecord) -> list[str]:
        """Nothing to do."""
        return []

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows; see :class:`Output`."""
        data = memoryview(to_lines(rows))
        try:
            while data:
                data = data[self._file.write(data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                f"cannot write to {self._name}: {error.strerror}; the first {self.count} rows are written"
            ) from error
        self.count += len(rows)

    def complete(self) -> None:
        """Nothing to do."""

    def publish(self, columns: Columns) -> None:
        """Nothing to do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class ResultFile:
    """Rows to a file, through a journal; see :class:`Output` and :func:`open_output`."""

    def __init__(self, out: Path, table: ResultFormat, *, resume: bool, overwrite: bool) -> None:
        self._out = Path(os.path.realpath(out)) if out.is_symlink() else out  # a link stays one
        self._table = table
        self._partial = self._out.with_name(self._out.name + ".partial")
        self.kept_in: Path | None = self._partial
        self._out.parent.mkdir(parents=True, exist_ok=True)
        was_begun = self._partial.exists()
        self._journal = Journal(self._partial)
        self.finished: FinishedRows | None = None
        self._earlier: RunRecord | None = None
        self._is_published = False
        try:
            if not was_begun:
                self._mend_cut_off_publishing()
            if resume:
                self._find_finished()
            else:
                self._refuse_to_replace(unasked=not overwrite)
                self._partial_record.unlink(missing_ok=True)
                self._journal.truncate(0)
        except BaseException:
            self._leave()
            raise

    @property
    def count(self) -> int:
        """Rows written by this run."""
        return self._journal.count

    def begin(self, record: RunRecord) -> list[str]:
        """Write down what the run is; see :class:`Output`."""
        notes = []
        if self._earlier is not None:
            different = record.differences(self._earlier)
            if set(record.sources) != set(self._earlier.sources):
                before, sources = ", ".join(self._earlier.sources), ", ".join(record.sources)
                if self._journal.size:  # it would count as finished without its other images
                    different.append(f"other sources ({before}; now {sources})")
                else:
                    notes.append(f"earlier rows are of other sources: {before}; now {sources}")
            if different:
                raise UserError(
                    f"cannot resume {self._out}: its rows were made with {', '.join(different)}",
                    hint="give the same, choose another --out, or say --overwrite instead of --resume",
                )
            for name, was, now in (
                ("backend", self._earlier.backends, record.backends),
                ("version", self._earlier.versions, record.versions),
            ):
                if not set(now) <= set(was):
                    notes.append(
                        f"earlier rows were made by {name} {', '.join(was)}, now it is {', '.join(now)}"
                    )
            record = record.after(self._earlier)
        with self._writing():
            record.write(self._partial_record)
            if self.finished is not None:
                if not self._journal.size:
                    self._replace_journal(self._out, shutil.copyfile)
                self._journal.truncate(self.finished.end)
        return notes

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows to the journal; see :class:`Output`."""
        self._journal.write(rows)

    def complete(self) -> Path:
        """Drop rows that a later one replaces; see :class:`Output`."""
        if self.finished is not None and self.finished.superseded:
            with self._writing():
                self._replace_journal(self._partial, compact)
        return self._partial

    def publish(self, columns: Columns) -> None:
        """Give the result its name; see :class:`Output`."""
        if self._table is not ResultFormat.JSONL:
            write_table(self._partial, self._table, columns, self._out)
        with self._writing():
            # In this order a record never stands beside another run's rows, whenever the power fails.
            self._record.unlink(missing_ok=True)
            if self._table is ResultFormat.JSONL:
                self._partial.replace(self._out)
            else:
                self._partial.unlink()
            self._is_published = True
            self._partial_record.replace(self._record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def _record(self) -> Path:
        return self._out.with_name(self._out.name + ".run.json")

    @property
    def _partial_record(self) -> Path:
        return self._out.with_name(self._partial.name + ".run.json")

    def _refuse_to_replace(self, *, unasked: bool) -> None:
        """Refuse what would lose rows of an earlier run, or a file that never held any."""
        if unasked and self._journal.size:
            raise EarlierRunError(f"{self.kept_in} holds the rows of an unfinished run", can_resume=True)
        if not self._out.exists() or not self._out.stat().st_size:
            return
        if not self._record.exists() and not self._partial_record.exists():
            raise UserError(
                f"{self._out} is there already and was not written by infer", hint="choose another --out"
            )
        if unasked:
            raise EarlierRunError(
                f"{self._out} holds the rows of a finished run",
                can_resume=self._table is ResultFormat.JSONL,
            )

    def _find_finished(self) -> None:
        """Look up what an unfinished journal holds, or else the finished result."""
        if self._journal.size:
            rows, record = self._partial, self._partial_record
        elif self._out.exists():
            rows, record = self._out, self._record
            if self._table is not ResultFormat.JSONL:
                raise UserError(
                    f"{self._out} is finished; only JSON Lines can be added to",
                    hint="choose another --out, or start afresh with --overwrite instead of --resume",
                )
        else:
            return
        self._earlier = RunRecord.read(record)
        if self._earlier is None:
            raise UserError(
                f"{rows} has no {record.name} beside it, which says how its rows were made",
                hint="choose another --out, or start afresh with --overwrite",
            )
        self.finished = FinishedRows(rows)

    def _replace_journal(self, source: Path, copy: Callable[[Path, Path], object]) -> None:
        temporary = self._partial.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            copy(source, temporary)
            self._journal.replace(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def _mend_cut_off_publishing(self) -> None:
        """Give the record its name, if a run ended between giving the result and the record theirs."""
        if self._out.exists() and self._partial_record.exists() and not self._record.exists():
            self._partial_record.replace(self._record)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._out}: {error.strerror or error}") from error

    def _leave(self) -> None:
        """Release the journal; one without rows is of no use to anybody."""
        try:
            if not self._is_published and not self._journal.size:
                self._partial_record.unlink(missing_ok=True)
                self._partial.unlink()
        finally:
            self._journal.close()
