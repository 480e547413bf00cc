"""Attacks in NumPy, over anything that gives logits, and gradients where an attack needs them."""

from .apgd import Apgd
from .carlini_wagner import CarliniWagner
from .one_pixel import OnePixel
from .pgd import Pgd
from .rays import RayS
from .search import Problem, Search, Victim
from .square import Square
from .zoo import Zoo

__all__ = [
    "Apgd",
    "CarliniWagner",
    "OnePixel",
    "Pgd",
    "Problem",
    "RayS",
    "Search",
    "Square",
    "Victim",
    "Zoo",
]
