"""Images whose class is known: where their labels come from, and how right a network is on them.

``labels`` reads them from a list or from the names of folders; ``scores`` has the figures, with intervals;
``run_scores`` counts the rows of a run. May import numpy, ``results`` and what lies below.
"""

from .labels import FOLDERS, Labels, listed, read_list
from .run_scores import RunScores
from .scores import Bin, Paired, Scores, Share, out_of_step, share

__all__ = [
    "FOLDERS",
    "Bin",
    "Labels",
    "Paired",
    "RunScores",
    "Scores",
    "Share",
    "listed",
    "out_of_step",
    "read_list",
    "share",
]
