"""Make a fixed batch dynamic, and prove by running that nothing else has changed.

Exporters fix the batch unless they are asked not to. Most graphs do not mind: it stands in the shape of the
input, in the targets of Reshapes and the sizes of Resizes. Which do mind, running tells most surely.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graph.expression import Array
from ..graph.initializers import initializer
from ..graph.session import cpu_session
from ..graph.values import constant_array
from ..trial_images import smooth_noise

_BATCHES = (1, 3, 8)
_TOLERANCE = 1e-3
_NAME = "N"


def with_dynamic_batch(model: ir.Model) -> ir.Model | None:
    """The model with a dynamic batch; None where it does not give the same then.

    Args:
        model: With one image input (N, C, H, W) of static shape, floats; not modified. Its constants are
            initializers.
    """
    (image,) = model.graph.inputs
    assert image.shape is not None
    batch, *chw = (int(dim) for dim in image.shape)  # type: ignore[arg-type]
    candidate = model.clone()
    _open(candidate.graph, batch)
    count = -(-max(_BATCHES) // batch) * batch
    x = smooth_noise(count, *chw).astype(image.dtype.numpy())  # type: ignore[union-attr]
    try:
        want = _rows(model, [x[i : i + batch] for i in range(0, count, batch)])
        got = _rows(candidate, [x[:n] for n in _BATCHES])
    except Exception:  # onnxruntime has classes of its own, derived from nothing nearer
        return None
    want = np.concatenate([want[:n] for n in _BATCHES])
    scale = max(float(np.abs(want).max()), 1e-30)
    same = got.shape == want.shape and float(np.abs(got - want).max()) <= _TOLERANCE * scale
    return candidate if same else None


def _rows(model: ir.Model, batches: Sequence[Array]) -> Array:
    """A row for each image of all batches: the outputs side by side."""
    session = cpu_session(model)
    name = session.get_inputs()[0].name
    made = [
        np.concatenate([out.reshape(len(x), -1) for out in session.run(None, {name: x})], axis=1)
        for x in batches
    ]
    return np.concatenate(made).astype(np.float64)


def _open(graph: ir.Graph, batch: int) -> None:
    """Take the batch out of everything that states it."""
    image = graph.inputs[0]
    assert image.shape is not None
    for node in graph:
        if node.domain == "" and node.op_type == "Reshape":
            _open_target(graph, node, batch)
        elif node.domain == "" and node.op_type == "Resize":
            _open_sizes(graph, node, batch)
    for value in [*graph.outputs, *(value for node in graph for value in node.outputs)]:
        if value.shape is not None and value.is_graph_output() and value.shape and value.shape[0] == batch:
            value.shape = ir.Shape([_NAME, *value.shape[1:]])
        else:
            value.shape = None
    image.shape = ir.Shape([_NAME, *image.shape[1:]])


def _open_target(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    """0 in a Reshape's target is the dimension as it is."""
    target = constant_array(node.inputs[1])
    if target is None or not target.size or target[0] != batch or node.attributes.get_int("allowzero", 0):
        return
    opened = np.array([0, *target[1:]], dtype=np.int64)
    node.replace_input_with(1, initializer(graph, f"{node.name}/any batch", opened))


def _open_sizes(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    """Sizes as scales, which do not name the batch."""
    x = node.inputs[0]
    sizes = constant_array(node.inputs[3]) if len(node.inputs) > 3 else None
    if sizes is None or sizes[0] != batch or x is None or x.shape is None or "axes" in node.attributes:
        return
    lengths = [dim for dim in x.shape if isinstance(dim, int)]
    if len(lengths) == len(sizes):
        node.replace_input_with(3, None)
        scales = [1.0, *(size / length for size, length in zip(sizes[1:], lengths[1:], strict=True))]
        opened = initializer(graph, f"{node.name}/any batch", np.array(scales, dtype=np.float32))
        node.replace_input_with(2, opened)
