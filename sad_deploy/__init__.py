"""SAD in PyTorch: saliency, attacks, calibration, folding, models, data; a bundle's speed; the command line.

May import everything; torch only where it is needed, so that the command line starts without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sad_runtime.version import __version__

if TYPE_CHECKING:
    from .attack_config import Attack, AttackKind
    from .calibrated import load_calibrated
    from .calibration import calibrate
    from .classifier import SADClassifier, Standardize
    from .eta import EtaChoice, choose_eta
    from .export_bundle import export
    from .fold import fold_batchnorm
    from .models import build_model
    from .sweep import Calibration, CalibrationSettings

__all__ = [
    "Attack",
    "AttackKind",
    "Calibration",
    "CalibrationSettings",
    "EtaChoice",
    "SADClassifier",
    "Standardize",
    "__version__",
    "build_model",
    "calibrate",
    "choose_eta",
    "export",
    "fold_batchnorm",
    "load_calibrated",
]

_HOME = {
    "Attack": "attack_config",
    "AttackKind": "attack_config",
    "Calibration": "sweep",
    "CalibrationSettings": "sweep",
    "EtaChoice": "eta",
    "SADClassifier": "classifier",
    "Standardize": "classifier",
    "build_model": "models",
    "calibrate": "calibration",
    "choose_eta": "eta",
    "export": "export_bundle",
    "fold_batchnorm": "fold",
    "load_calibrated": "calibrated",
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
