"""The gate of ``gradient --method``: each output that is not its equation is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from sad_export import VerificationError, attribution_graph, write_gradient
from sad_export.attribution import Attribution
from sad_export.gradient import Seed
from sad_export.loading import load_classifier
from sad_export.verify_attribution import verify_attribution
from tests.export.test_verify_gradient import with_factor
from tests.support.models import forward_onnx, small_cnn


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "forward.onnx"
    onnx.save(forward_onnx(small_cnn()), str(path))
    return path


CASES = [
    ("saliency", "gradient", {"at": "relu_1"}),
    ("gradcam", "heatmap", {"at": "relu_2"}),
    ("integrated", "attribution", {"steps": 4, "baseline": 0.5}),
    ("smoothgrad", "gradient", {"samples": 3}),
]


@pytest.mark.parametrize("of", ["largest", "label"])
@pytest.mark.parametrize(("method", "output", "settings"), CASES)
@pytest.mark.parametrize(("factor", "message"), [(1.0, None), (1.2, "error of the"), (np.nan, "not finite")])
def test_what_is_right_passes_and_what_is_not_is_refused(
    forward: Path,
    method: str,
    output: str,
    settings: dict[str, object],
    of: str,
    factor: float,
    message: str | None,
    tmp_path: Path,
) -> None:
    right = attribution_graph(forward, method, of=of, **settings)
    path = with_factor(right, output, factor, tmp_path / "g.onnx")
    attribution = Attribution(method, Seed.of(of), **settings)  # type: ignore[arg-type]
    assert Attribution.stated({p.key: p.value for p in right.metadata_props}).settings == attribution.settings
    if message is None:
        verify_attribution(path, forward, load_classifier(forward), attribution)
        return
    with pytest.raises(VerificationError, match=message) as caught:
        verify_attribution(path, forward, load_classifier(forward), attribution)
    assert ";" not in caught.value.message


def test_other_settings_are_another_map(forward: Path, tmp_path: Path) -> None:
    onnx.save(attribution_graph(forward, "integrated", steps=1), str(tmp_path / "g.onnx"))
    with pytest.raises(VerificationError, match="relative L2 error of the attribution"):
        verify_attribution(
            tmp_path / "g.onnx", forward, load_classifier(forward), Attribution("integrated", steps=32)
        )


@pytest.mark.parametrize(("method", "output", "settings"), CASES)
def test_what_is_written_names_its_outputs(
    forward: Path, method: str, output: str, settings: dict[str, object], tmp_path: Path
) -> None:
    made = write_gradient(forward, tmp_path / "g.onnx", method=method, **settings)  # type: ignore[arg-type]
    names = [value.name for value in onnx.load(str(made.graph)).graph.output]
    assert [line.split()[0] for line in made.outputs] == names
    assert names[-1] == output
