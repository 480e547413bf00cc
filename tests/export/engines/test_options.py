"""What a build can be asked for, against TensorRT for RTX itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sad_export import GraphOptions
from sad_export.graph.write import save_graph
from sad_export.precision import lower
from sad_export.tensorrt import (
    BuildOptions,
    EngineError,
    HardwareCompatibility,
    UnbuildableError,
    build_engine,
)
from sad_export.tensorrt.options import check_options, configure, known_targets
from sad_runtime.devices import cuda_devices
from sad_runtime.errors import BackendError
from sad_runtime.tensorrt import Flavor, error_log
from tests.support.models import forward_onnx, small_cnn, two_pass_graph

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")


def test_targets_are_the_compute_capabilities_that_the_package_knows() -> None:
    targets = known_targets(trt)
    assert {"sm_75", "sm_80", "sm_86", "sm_89", "sm_120"} <= set(targets)
    assert targets[-1] == "current"
    assert "none" not in targets


@pytest.mark.parametrize("targets", [("sm_89", "sm_120"), ("sm_89", "sm_89")])
def test_an_engine_is_built_for_the_gpus_asked_for(
    targets: tuple[str, ...], graph_path: Path, tmp_path: Path
) -> None:
    info = build_engine(graph_path, tmp_path / "m.plan", flavor="rtx", options=BuildOptions(targets=targets))
    assert info.targets == tuple(sorted(set(targets)))


def test_turing_takes_fp16(graph_path: Path, tmp_path: Path) -> None:
    options = BuildOptions(targets=("sm_75",))
    with pytest.raises(UnbuildableError, match=r"at node .*FP32 GEMM is not supported") as caught:
        build_engine(graph_path, tmp_path / "m.plan", flavor="rtx", options=options)
    assert "--precision fp16" in str(caught.value.hint)
    assert caught.value.operator == "Gemm"
    half = GraphOptions("fp16")
    graph = two_pass_graph(forward_onnx(small_cnn()), half, eta=0.3)
    save_graph(lower(graph, half.variant).graph, tmp_path / "m.onnx")
    info = build_engine(tmp_path / "m.onnx", tmp_path / "m.plan", flavor="rtx", options=options)
    assert info.targets == ("sm_75",)


def test_tf32_is_off_unless_asked_for(graph_path: Path, tmp_path: Path) -> None:
    """TensorRT's own default is on."""
    assert config().get_flag(trt.BuilderFlag.TF32)
    for tf32 in (False, True):
        info = build_engine(graph_path, tmp_path / "m.plan", flavor="rtx", options=BuildOptions(tf32=tf32))
        assert info.tf32 is tf32


@pytest.mark.parametrize("level", [0, 5])
def test_the_optimisation_level_reaches_the_builder(level: int, graph_path: Path, tmp_path: Path) -> None:
    options = BuildOptions(optimization_level=level)
    assert (
        build_engine(graph_path, tmp_path / "m.plan", flavor="rtx", options=options).optimization_level
        == level
    )


def test_the_workspace_is_left_as_it_is() -> None:
    """16 MiB of it and no engine is built."""
    untouched, configured = config(), config()
    configure(trt, configured, BuildOptions(optimization_level=1, targets=("sm_89",)), Flavor.RTX)
    pool = trt.MemoryPoolType.WORKSPACE
    assert configured.get_memory_pool_limit(pool) == untouched.get_memory_pool_limit(pool)


@pytest.mark.parametrize(
    ("options", "flavor", "message", "hint"),
    [
        (BuildOptions(targets=("sm_90",)), Flavor.RTX, "knows no GPU target sm_90", "sm_75, sm_80, sm_86"),
        (BuildOptions(targets=("current", "sm_89")), Flavor.RTX, "current goes with no other", "instead"),
        (BuildOptions(optimization_level=6), Flavor.RTX, "from 0 to 5, not 6", None),
        (BuildOptions(targets=("sm_89",)), Flavor.TENSORRT, "takes no GPU target", "--flavor rtx"),
        (
            BuildOptions(hardware_compatibility=HardwareCompatibility.AMPERE_PLUS),
            Flavor.RTX,
            "has no hardware compatibility",
            "--gpu-target",
        ),
    ],
)
def test_what_this_tensorrt_does_not_have_is_refused(
    options: BuildOptions, flavor: Flavor, message: str, hint: str | None
) -> None:
    with pytest.raises(EngineError, match=message) as caught:
        check_options(options, flavor, trt)
    assert hint is None or hint in str(caught.value.hint)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    options = BuildOptions(-1, ("sm_1", "sm_2"), HardwareCompatibility.AMPERE_PLUS)
    with pytest.raises(EngineError, match=r"not -1.*sm_1, sm_2.*has no hardware compatibility"):
        check_options(options, Flavor.RTX, trt)


def test_the_current_gpu_has_to_be_there() -> None:
    if cuda_devices().count:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match="this machine's GPU, and there is none"):
        check_options(BuildOptions(targets=("current",)), Flavor.RTX, trt)


def test_hardware_compatibility_is_a_level_of_the_configuration() -> None:
    """On a stand-in: enterprise TensorRT does not run here, and the RTX package ignores the level."""

    class Configuration:
        hardware_compatibility_level = None

        def clear_flag(self, flag: object) -> None:
            pass

    for wanted in (HardwareCompatibility.AMPERE_PLUS, HardwareCompatibility.SAME_COMPUTE_CAPABILITY):
        options = BuildOptions(hardware_compatibility=wanted)
        check_options(options, Flavor.TENSORRT, trt)
        configuration = Configuration()
        configure(trt, configuration, options, Flavor.TENSORRT)
        level = configuration.hardware_compatibility_level
        assert level == getattr(trt.HardwareCompatibilityLevel, wanted.name)


def config() -> object:
    """A configuration as TensorRT makes it."""
    builder = trt.Builder(error_log(trt))
    made: object = builder.create_builder_config()
    return made
