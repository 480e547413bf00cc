"""The script for a machine with a GPU, as far as it runs without one."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import TensorProto, helper

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


def _loaded() -> ModuleType:
    """The script under a name of its own: `gpu` is the folder of tests."""
    spec = importlib.util.spec_from_file_location("benchmark_on_a_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    return module


benchmark = _loaded()


def test_multiply_adds_are_those_counted_by_hand(tmp_path: Path) -> None:
    def weight(name: str, *dims: int) -> TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, dims, [0.0] * math.prod(dims))

    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Conv", ["x", "a"], ["y"], strides=[2, 2], group=2),  # (4, 8, 8) → (6, 3, 3), 3×3, 2 groups
        node("ConvTranspose", ["y", "b"], ["z"], strides=[2, 2]),  # (6, 3, 3) → (5, 6, 6), 2×2
        node("Flatten", ["z"], ["f"]),
        node("Gemm", ["f", "c"], ["g"], transB=1),  # 180 → 7
        node("MatMul", ["g", "d"], ["logits"]),  # 7 → 3
    ]
    weights = [weight("a", 6, 2, 3, 3), weight("b", 6, 5, 2, 2), weight("c", 7, 180), weight("d", 7, 3)]
    image, logits = info("x", 1, ["N", 4, 8, 8]), info("logits", 1, ["N", 3])
    graph = helper.make_graph(nodes, "g", [image], [logits], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(tmp_path / "m.onnx"))
    conv, back = 6 * 3 * 3 * (2 * 3 * 3), 6 * 3 * 3 * (5 * 2 * 2)
    assert benchmark.multiply_adds(tmp_path / "m.onnx") == conv + back + 180 * 7 + 7 * 3


def test_rates_and_verdicts_follow_from_the_times() -> None:
    def row(contender: str, one: float, two: float) -> dict[str, object]:
        times = {"single_pass_ms": one, "two_passes_ms": two, "end_to_end_ms": 9.0}
        base = {"model": "m", "precision": "fp16", "batch": 10, "contender": contender}
        return benchmark.with_rates(base | times, 1_000_000_000, {"fp16": 20.0})

    rows = [row("tensorrt", 2.0, 6.0), row("onnxruntime", 4.0, 16.0), row("torch.compile", 3.0, 12.0)]
    rows.append({"model": "m", "precision": "fp16", "batch": "all", "contender": "x", "failed": "no"})
    assert rows[0]["tflops"] == pytest.approx(3 * 2 * 1e9 * 10 / 6e-3 / 1e12)
    assert rows[0]["share_of_matrix_product"] == pytest.approx(0.5)
    (verdict,) = benchmark.verdicts(rows)
    assert verdict["best"] == "tensorrt"
    assert verdict["latency_ratio"] == 3
    assert verdict["speedup_over_torch_compile"] == 2


@pytest.mark.slow
def test_script_runs_and_what_does_not_is_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the networks are torchvision's")
    out = tmp_path / "gpu.json"
    contenders = ["onnxruntime", "onnxruntime, CUDA graphs", "tensorrt_rtx", "torch eager"]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(out)]
    run = subprocess.run([*command, "--contenders", *contenders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["gpu"]
    assert found["matrix_product_tflops"]["fp32"] > 0
    rows = {(row["contender"], row["batch"]): row for row in found["rows"]}
    for contender in ("onnxruntime", "torch eager"):
        for batch in (1, 2):
            row = rows[contender, batch]
            assert row["two_passes_ms"] > row["single_pass_ms"] > 0
            assert row["cosine_of_logits"] > 0.999
            assert row["tflops"] > 0
    assert rows["onnxruntime, CUDA graphs", "all"]["failed"] == "RuntimeError: the CPU has no CUDA graphs"
    assert rows["tensorrt_rtx", "all"]["failed"]
    assert "does not run" in run.stdout
