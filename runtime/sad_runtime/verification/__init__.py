"""Whether a graph or engine computes here what its reference says, on the bundle's own images.

:mod:`.agreement` has the figures, :mod:`.tolerances` what they must be, :mod:`.references` what a bundle
carries, :mod:`.trial` runs a backend on it, :mod:`.record` remembers. Imports the bundle, and no backend.
"""

from .agreement import Verification, compare, worst
from .references import References
from .tolerances import TOLERANCES, Tolerance
from .trial import Trial, verdict

__all__ = ["TOLERANCES", "References", "Tolerance", "Trial", "Verification", "compare", "verdict", "worst"]
