"""Write → verify → build: a graph that TensorRT cannot build is written once more, if the choice was open."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import sad_export
from sad_export import GraphOptions
from sad_export.job import write_and_build
from sad_export.tensorrt import UnbuildableError
from sad_runtime.errors import UserError
from tests.support.models import forward_onnx, small_cnn


class Job:
    """Notes what it is told to do; building fails as often as it is told."""

    def __init__(self, *failures: UnbuildableError) -> None:
        self.done: list[str] = []
        self.failures = list(failures)

    def write(self, conv_gradient: str) -> int:
        self.done.append(f"write {conv_gradient}")
        return len(self.done)

    def build(self) -> sad_export.EngineInfo:
        self.done.append("build")
        if self.failures:
            raise self.failures.pop(0)
        return object()  # type: ignore[return-value]  # only handed on


def no_kernel(operator: str | None = "ConvTranspose") -> UnbuildableError:
    return UnbuildableError("no kernel", operator=operator)


@pytest.mark.parametrize("operator", ["ConvTranspose", None])
def test_an_open_choice_is_written_and_verified_once_more(operator: str | None) -> None:
    job, said = Job(no_kernel(operator)), list[str]()
    made = write_and_build(job.write, job.build, GraphOptions(), said.append)
    assert job.done == ["write auto", "build", "write conv", "build"]
    assert (made.conv_gradient, made.figures) == ("conv", 3)
    assert said == ["no kernel; writing the graph with --conv-gradient conv instead"]


@pytest.mark.parametrize(
    ("options", "failures"),
    [
        (GraphOptions(conv_gradient="convtranspose"), [no_kernel()]),
        (GraphOptions(precision="bf16"), [no_kernel()]),  # is written with conv already
        (GraphOptions(), [no_kernel("Gemm")]),
        (GraphOptions(), [no_kernel(), no_kernel()]),
    ],
)
def test_nothing_else_is(options: GraphOptions, failures: list[UnbuildableError]) -> None:
    job = Job(*failures)
    with pytest.raises(UnbuildableError):
        write_and_build(job.write, job.build, options, lambda line: None)
    assert len([step for step in job.done if step == "build"]) == len(failures)


def test_without_an_engine_the_graph_is_written_once() -> None:
    job = Job()
    made = write_and_build(job.write, None, GraphOptions(precision="fp16"), lambda line: None)
    assert len(job.done) == 1
    assert made.engine is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"saliency_precision": "half"}, "no precision 'half'"),
        ({"target": "gpu"}, "no target 'gpu'"),
        ({"conv_gradient": "winograd"}, "no convolution gradient 'winograd'"),
        ({"precision": "int8", "ranges": "max"}, "no way of finding ranges 'max'"),
        ({"ranges": "entropy"}, "are those of int8, and fp32 has none"),
        ({"target": "cpu", "precision": "fp16"}, "is for fp32 and int8, not fp16"),
    ],
)
def test_wrong_words_are_refused_before_any_work(words: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GraphOptions(**words)


@pytest.fixture
def forward(tmp_path: Path) -> Path:
    path = tmp_path / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


def test_a_python_caller_has_the_verified_graph(forward: Path, tmp_path: Path) -> None:
    made = sad_export.defend(forward, tmp_path / "sad.onnx", eta=0.05, normalization="rms")
    assert made.graph == tmp_path / "sad.onnx"
    assert made.bytes == made.graph.stat().st_size
    assert made.verification.slope_error < 0.05
    assert made.engine is None
    with pytest.raises(UserError, match="no normalization 'mean'"):
        sad_export.defend(forward, tmp_path / "other.onnx", eta=0.05, normalization="mean")
    assert not (tmp_path / "other.onnx").exists()


def test_a_python_caller_has_the_verified_gradient(
    forward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sad_export.write_gradient(str(forward), tmp_path / "gradient.onnx", conv_gradient="conv")
    graph = onnx.load(str(made.graph))
    assert [output.name for output in graph.graph.output] == ["logits", "gradient"]
    assert "ConvTranspose" not in {node.op_type for node in graph.graph.node}

    def wrong(*arguments: object, **options: object) -> ir.Model:
        model = ir.from_proto(graph)
        name, weight = next((n, v) for n, v in model.graph.initializers.items() if len(v.shape or ()) > 1)
        assert weight.const_value is not None
        weight.const_value = ir.tensor(-weight.const_value.numpy(), name=name)
        return model

    monkeypatch.setattr(sys.modules["sad_export.attributed"], "differentiated", wrong)
    with pytest.raises(sad_export.VerificationError, match="contradicts"):
        sad_export.write_gradient(forward, tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()
