"""A classifier from an ONNX file, whoever wrote it, in the one form that the rest of the package takes.

May import :mod:`sad_export.graph`, :mod:`sad_export.normal_form` and the registry of gradient rules.
"""

from .classifier import ForwardGraph, Reading, load_classifier, normalise, warn
from .image import FileForm

__all__ = ["FileForm", "ForwardGraph", "Reading", "load_classifier", "normalise", "warn"]
