"""Which TensorRT builds an engine; how they differ is in :mod:`sad_runtime.tensorrt.flavors`."""

from __future__ import annotations

import importlib.util

from sad_runtime.choices import FlavorChoice, choose
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError, MissingExtraError
from sad_runtime.tensorrt import Flavor


def is_installed(flavor: Flavor) -> bool:
    """Whether the package can be found; importing it may still fail for want of its libraries."""
    return importlib.util.find_spec(flavor.module) is not None


def choose_flavor(flavor: str) -> Flavor:
    """The flavor to build with.

    Args:
        flavor: ``rtx``, ``tensorrt``, or ``auto``: enterprise TensorRT where it and a GPU are there, else
            RTX.

    Raises:
        UserError: There is no such flavor.
        MissingExtraError: The package is not installed (with ``auto``: neither is).
        BackendError: Enterprise TensorRT without a GPU to build on.
    """
    asked = choose(FlavorChoice, flavor, "flavor of TensorRT")
    if asked is not FlavorChoice.AUTO:
        chosen = Flavor(asked)
    elif is_installed(Flavor.TENSORRT) and (cuda_devices().count > 0 or not is_installed(Flavor.RTX)):
        chosen = Flavor.TENSORRT
    else:
        chosen = Flavor.RTX
    if not is_installed(chosen):
        raise MissingExtraError(chosen.module, extra=chosen.value, need="building a TensorRT engine")
    if not chosen.differences.builds_without_gpu and (problem := cuda_devices().problem):
        raise BackendError(
            f"TensorRT builds an engine on the GPU that it will run on, and there is none: {problem}",
            hint='--flavor rtx builds without a GPU: pip install "sad-deploy[rtx]"',
        )
    return chosen
