"""The undefended classifier, cut out of a two-pass graph: what the defence's cost is measured against."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.utils

from sad_runtime.backends.protocol import INPUT, PLAIN_LOGITS

from .graph.errors import GraphError


def first_pass(model: onnx.ModelProto | str | Path) -> onnx.ModelProto:
    """Cut out the nodes that lead from ``image`` to ``plain_logits``, the input normalisation among them.

    Args:
        model: A two-pass graph; not modified.

    Returns:
        ``image`` (N, C, H, W) → ``plain_logits`` (N, K), the same operators on the same weights.

    Raises:
        GraphError: It has no such input or output.
    """
    loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))
    inputs = {value.name for value in loaded.graph.input}
    outputs = {value.name for value in loaded.graph.output}
    if INPUT not in inputs or PLAIN_LOGITS not in outputs:
        raise GraphError(
            f"not a two-pass graph: it must lead from {INPUT!r} to {PLAIN_LOGITS!r}, and has "
            f"{', '.join(sorted(inputs)) or 'nothing'} → {', '.join(sorted(outputs)) or 'nothing'}",
            hint="write one with: sad-deploy export",
        )
    return onnx.utils.Extractor(loaded).extract_model([INPUT], [PLAIN_LOGITS])
