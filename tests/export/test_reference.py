"""The forward graph as a function: what is read from a file is held against the file itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from sad_export.loading import FileForm
from sad_export.reference import reference
from sad_export.verify import VerificationError

IMAGES = np.random.default_rng(0).random((2, 3, 3, 3))


def saved_linear(path: Path, size: float) -> Path:
    """Logits = W·x, W of about ``size``, for (N, 3, 3, 3), which is its own channels-last shape."""
    weight = np.random.default_rng(1).standard_normal((27, 4)) * size
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 3, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_file_that_gives_something_else_than_what_was_read_is_refused(tmp_path: Path, size: float) -> None:
    """However small its logits are: the difference counts as a part of the largest."""
    path = saved_linear(tmp_path / "forward.onnx", size)
    taken = reference(path, IMAGES, logits=None, form=FileForm(half=True))
    assert np.abs(taken(IMAGES)).max() > size
    with pytest.raises(VerificationError, match="gives something else than the graph read from it"):
        reference(path, IMAGES, logits=None, form=FileForm(half=True, channels_last=True))
