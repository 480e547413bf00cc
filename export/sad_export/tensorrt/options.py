"""Options of a build, and which of them a TensorRT package lacks."""

from __future__ import annotations

import dataclasses
from typing import Any

from sad_runtime.choices import HardwareCompatibility
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError
from sad_runtime.tensorrt import Flavor

from .errors import EngineError

CURRENT = "current"
"""The target that is the GPU of this machine."""

TURING = "sm_75"
"""A target of its own: what an engine has for it, newer GPUs do without."""

HIGHEST_LEVEL = 5
"""Highest optimisation level that means something; TensorRT takes a higher one for this."""


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. The workspace is TensorRT's own choice: all of the GPU's memory.

    Attributes:
        optimization_level: How long the builder searches, 0 to 5; None is TensorRT's default.
        targets: RTX only: the GPUs to build for, ``sm_89`` or :data:`CURRENT`; empty for every GPU that
            TensorRT for RTX builds for by itself, which leaves out Turing (``sm_75``).
        hardware_compatibility: Enterprise TensorRT only.
        tf32: Let products of float32 be rounded to TF32's 10 bits. TensorRT does so by itself; here it is
            off, so that float32 is what was verified.
    """

    optimization_level: int | None = None
    targets: tuple[str, ...] = ()
    hardware_compatibility: HardwareCompatibility = HardwareCompatibility.NONE
    tf32: bool = False


def check_options(options: BuildOptions, flavor: Flavor, trt: Any) -> None:
    """Refuse what this TensorRT does not have.

    Args:
        options: What is asked for.
        flavor: Which TensorRT.
        trt: Its module.

    Raises:
        EngineError: With everything that is wrong.
        BackendError: The target is this machine's GPU, and there is none.
    """
    problems, hints = [], []
    level = options.optimization_level
    if level is not None and not 0 <= level <= HIGHEST_LEVEL:
        problems.append(f"the optimisation level goes from 0 to {HIGHEST_LEVEL}, not {level}")
    if options.targets and not flavor.differences.compute_capabilities:
        problems.append(f"{flavor.module} builds for the GPU that it runs on and takes no GPU target")
        hints.append("leave out --gpu-target, or --flavor rtx")
    elif options.targets:
        known = known_targets(trt)
        if unknown := sorted(set(options.targets) - set(known)):
            problems.append(f"{flavor.module} {trt.__version__} knows no GPU target {', '.join(unknown)}")
            hints.append(f"--gpu-target takes {', '.join(known)}")
        if CURRENT in options.targets and len(set(options.targets)) > 1:
            problems.append(f"the GPU target {CURRENT} goes with no other")
            hints.append("name this machine's compute capability instead")
    compatibility = options.hardware_compatibility
    if compatibility is not HardwareCompatibility.NONE:
        if not flavor.differences.hardware_compatibility:
            problems.append(f"{flavor.module} has no hardware compatibility")
            hints.append("say which GPUs with --gpu-target")
        elif compatibility.name not in trt.HardwareCompatibilityLevel.__members__:
            problems.append(f"{flavor.module} {trt.__version__} has no compatibility {compatibility}")
            hints.append("a newer TensorRT has it")
    if problems:
        raise EngineError("; ".join(problems), hint="; ".join(hints) or None)
    if CURRENT in options.targets and (problem := cuda_devices().problem):
        raise BackendError(f"the GPU target {CURRENT} is this machine's GPU, and there is none: {problem}")


def known_targets(trt: Any) -> list[str]:
    """The GPU targets of an RTX module: ``sm_75`` for ``SM75``, and so on, and ``current`` last."""
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return [*(f"sm_{name[2:]}" for name in names), CURRENT]


def configure(trt: Any, config: Any, options: BuildOptions, flavor: Flavor) -> None:
    """Put checked options into a builder's configuration."""
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.targets and flavor.differences.compute_capabilities:
        targets = sorted(set(options.targets))
        # Their number first: an index beyond it is refused.
        config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            name = target.replace("sm_", "SM").upper()
            config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    if options.hardware_compatibility is not HardwareCompatibility.NONE:
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.name)
        config.hardware_compatibility_level = level


def resolved_targets(options: BuildOptions, flavor: Flavor) -> tuple[str, ...]:
    """Where the engine will run, in words; the one GPU of this machine where it is built for that."""
    if flavor.differences.compute_capabilities and CURRENT not in options.targets:
        return tuple(sorted(set(options.targets))) or ("sm_80 and newer",)
    device = cuda_devices().devices[0]
    return (f"{device.name} (compute capability {'.'.join(map(str, device.compute_capability))})",)
