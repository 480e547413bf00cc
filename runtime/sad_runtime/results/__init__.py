"""What became of each image, and where it is written: rows, the journal, the run's record, tables.

A run appends rows to a journal of JSON Lines, which survives whatever ends the run; the file that the user
asked for is made from it at the end, and an unfinished journal can be gone on with.
"""

from __future__ import annotations

from .columns import Columns
from .finished import FinishedRows
from .journal import Journal
from .output import STDOUT, EarlierRunError, Output, ResultFile, Stream, open_output
from .ranking import rank
from .read import read_rows
from .record import RunRecord
from .row import Failure, PlainPass, Ranked, Row, SaliencyStatistics
from .summary import Summary

__all__ = [
    "STDOUT",
    "Columns",
    "EarlierRunError",
    "Failure",
    "FinishedRows",
    "Journal",
    "Output",
    "PlainPass",
    "Ranked",
    "ResultFile",
    "Row",
    "RunRecord",
    "SaliencyStatistics",
    "Stream",
    "Summary",
    "open_output",
    "rank",
    "read_rows",
]
