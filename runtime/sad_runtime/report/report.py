"""``with Report("report.html", manifest) as report``: pictures while the run goes on, the page at its end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from ..bundle.robustness import NOT_EVALUATED
from ..errors import UserError
from ..files import Destination, written_whole
from ..labelled import RunScores
from ..manifest import Manifest
from ..results import read_rows
from .listing import LISTED_ROWS, Listing
from .page import GENERATOR, write_page
from .pictures import strip
from .sample import Sample
from .summary import Run
from .tally import tally

# Where a page says what made it.
_HEAD = 1024


class Report:
    """Builds the page of one run. A context manager: leaving it without :meth:`finish` keeps the pictures.

    Args:
        path: The page to write. Until it is, pictures lie in ``PATH.pictures`` beside it.
        manifest: Of the bundle that runs.
        thumbnails: How many images keep their pictures at most.
        resume: Whether the pictures of an interrupted run of the same bundle are gone on with.
        overwrite: Whether an earlier report of that name may be replaced.

    Raises:
        UserError: The page's folder cannot be written to, or a file is there that must not be replaced.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        manifest: Manifest,
        *,
        thumbnails: int = 2000,
        resume: bool = True,
        overwrite: bool = True,
    ) -> None:
        self.path = Path(path)
        self.manifest = manifest
        # Pictures are kept beside the page while the run goes on, which no pipe or device has room for.
        Destination.of(path, option="--report", regular=True).check()
        _refuse_to_replace(self.path, unasked=not overwrite)
        self._identity = hashlib.blake2b(manifest.to_json().encode(), digest_size=16).digest()
        self._sample = Sample(
            self.path.with_name(self.path.name + ".pictures"),
            identity=self._identity,
            size=thumbnails,
            resume=resume,
        )

    def write(
        self, name: str, image: npt.NDArray[np.float32], saliency: npt.NDArray[np.float32] | None
    ) -> None:
        """Offer one image's pictures, drawn only if they are kept. May be called from several threads.

        Args:
            name: The image, as its row's ``path`` has it.
            image: (C, H, W) float32 in [0, 1]: what the graph was given.
            saliency: (C, H, W), S; None of a classifier without a defence.

        Raises:
            UserError: The pictures cannot be written.
        """
        if self._sample.wants(name):
            self._sample.add(name, strip(image, saliency, self.manifest))

    def finish(
        self,
        journal: Path,
        *,
        seconds: float,
        backend: str,
        processed: int | None = None,
        robust: Sequence[str] = (NOT_EVALUATED,),
        scores: RunScores | None = None,
        is_defended: bool = True,
    ) -> Path:
        """Write the page, whole or not at all, and remove the pictures beside it.

        The journal is read twice, row by row. Memory grows with the rows that are listed, of which there are
        at most 100,000; the counts are of all rows.

        Args:
            journal: The run's JSON Lines, every image once.
            seconds: How long the run took.
            backend: Where it ran.
            processed: Images that took those seconds, where earlier ones were resumed; by default all.
            robust: See :class:`~.summary.Run`.
            scores: How right the answers are, where labels are known.
            is_defended: Whether there is a defence; of a plain classifier there is an image and its answer.

        Returns:
            The page.

        Raises:
            UserError: The journal cannot be read or the page not written; the pictures are kept.
        """
        num_classes = len(self.manifest.classes)
        counts = tally(read_rows(journal, num_classes), self._sample, self._sample.lacks)
        listing = Listing(
            read_rows(journal, num_classes),
            counts,
            self._sample,
            limit=LISTED_ROWS,
            labels=None if scores is None else scores.labels,
        )
        done = counts.images if processed is None else processed
        run = Run(backend, seconds, done, robust, scores, is_defended)
        with (
            written_whole(self.path, option="--report") as draft,
            draft.open("w", encoding="utf-8", newline="\n") as file,
        ):
            write_page(file, self.manifest, self._identity.hex()[:8], run, counts, listing, self._sample)
        self._sample.remove()
        return self.path

    def close(self) -> None:
        """Close the pictures and leave them for a resumed run. May be called twice."""
        self._sample.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _refuse_to_replace(path: Path, *, unasked: bool) -> None:
    """Refuse an earlier report, if it was not asked for, and any other file."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        is_report = GENERATOR.encode() in file.read(_HEAD)
    if not is_report:
        raise UserError(f"{path} is there already and is not a report", hint="choose another --report")
    if unasked:
        raise UserError(
            f"{path} is an earlier report", hint="choose another --report, or replace it with --overwrite"
        )
