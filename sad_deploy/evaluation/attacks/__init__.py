"""Attacks in NumPy, over anything that gives logits, and gradients where an attack needs them."""

from .apgd import Apgd
from .pgd import Pgd
from .rays import RayS
from .search import Problem, Search, Victim
from .square import Square

__all__ = ["Apgd", "Pgd", "Problem", "RayS", "Search", "Square", "Victim"]
