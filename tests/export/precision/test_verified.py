"""The gate in lower precision: what is inaccurate is refused with its figure, or kept if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sad_export import GraphOptions
from sad_export.graph.write import save_graph
from sad_export.precision import Variant, lower, write_verified
from sad_export.verify import VerificationError, run_graph
from tests.support.last_weight import with_last_weight
from tests.support.models import forward_onnx, small_cnn, two_pass_graph

IMAGES = np.random.default_rng(1).random((11, 3, 16, 16), dtype=np.float32)
Array = np.ndarray[Any, Any]
CONV = GraphOptions("bf16", conv_gradient="conv")
"""A form that may be lowered to bf16 and to fp16."""


@pytest.fixture(scope="module")
def forward() -> onnx.ModelProto:
    return forward_onnx(small_cnn())


@pytest.fixture(scope="module")
def graph(forward: onnx.ModelProto) -> ir.Model:
    return two_pass_graph(forward, CONV, eta=0.3)


def in_float32(graph: ir.Model, folder: Path) -> dict[str, Array]:
    save_graph(graph, folder / "fp32.onnx")
    return run_graph(folder / "fp32.onnx", IMAGES)


@pytest.mark.parametrize(
    ("words", "cosine"), [(("fp16",), 0.995), (("bf16",), 0.98), (("fp32", "fp16"), 0.995)]
)
def test_a_right_graph_passes_and_nothing_is_left_beside_it(
    graph: ir.Model, tmp_path: Path, words: tuple[str, ...], cosine: float
) -> None:
    reference = in_float32(graph, tmp_path)
    figures = write_verified(graph, tmp_path / "m.onnx", Variant.of(*words), IMAGES, reference)
    assert figures.label_agreement == 1
    assert cosine <= figures.saliency_cosine_median < 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp32.onnx", "m.onnx"]


def wrong(reference: dict[str, Array]) -> dict[str, Array]:
    """The saliency of the images in another order."""
    return {**reference, "saliency": reference["saliency"][::-1]}


def test_a_wrong_saliency_is_refused_though_all_logits_agree(graph: ir.Model, tmp_path: Path) -> None:
    reference = wrong(in_float32(graph, tmp_path))
    with pytest.raises(VerificationError, match=r": median saliency cosine -?0\.\d+ < 0\.995") as caught:
        write_verified(graph, tmp_path / "m.onnx", Variant.of("fp16"), IMAGES, reference)
    assert "--allow-inaccurate" in str(caught.value.hint)


def test_an_inaccurate_graph_is_kept_if_asked_for(graph: ir.Model, tmp_path: Path) -> None:
    reference = wrong(in_float32(graph, tmp_path))
    variant = Variant.of("bf16")
    figures = write_verified(graph, tmp_path / "m.onnx", variant, IMAGES, reference, allow_inaccurate=True)
    assert figures.saliency_cosine_median < 0.9
    assert (tmp_path / "m.onnx").is_file()


def test_values_beyond_fp16_are_refused_even_then_and_bf16_holds_them(
    forward: onnx.ModelProto, tmp_path: Path
) -> None:
    """Activations of about 10⁶, from weights that all fit."""
    large = with_last_weight(forward, lambda weight: weight * np.float32(3e4) / abs(weight).max())
    graph = two_pass_graph(large, CONV, eta=1e-9)
    for name, value in graph.graph.initializers.items():
        array = value.const_value.numpy()
        if array.ndim == 4 and array.dtype == np.float32:
            value.const_value = ir.tensor(array * np.float32(3), name=name)
    reference = in_float32(graph, tmp_path)
    assert abs(reference["logits"]).max() > 65504
    with pytest.raises(VerificationError, match="relative L2 error of the first pass inf") as caught:
        write_verified(
            graph, tmp_path / "m.onnx", Variant.of("fp16"), IMAGES, reference, allow_inaccurate=True
        )
    assert "bf16" in str(caught.value.hint)
    write_verified(graph, tmp_path / "m.onnx", Variant.of("bf16"), IMAGES, reference)


def test_gradients_too_small_for_fp16_are_scaled_and_unscaled(
    forward: onnx.ModelProto, tmp_path: Path
) -> None:
    tiny = with_last_weight(forward, lambda weight: weight * np.float32(1e-8))
    graph = two_pass_graph(tiny, CONV, eta=0.3)
    reference = in_float32(graph, tmp_path)
    assert abs(reference["saliency"]).max() < 2**-24
    figures = write_verified(graph, tmp_path / "m.onnx", Variant.of("fp16"), IMAGES, reference)
    assert figures.saliency_cosine_median >= 0.999
    got = run_graph(tmp_path / "m.onnx", IMAGES)["saliency"]
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(reference["saliency"]), rel=1e-2)
    save_graph(lower(graph, Variant.of("fp16")).emulation, tmp_path / "unscaled.onnx")
    assert not run_graph(tmp_path / "unscaled.onnx", IMAGES)["saliency"].any()
