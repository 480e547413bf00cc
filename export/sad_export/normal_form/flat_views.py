"""Take away a Gather of flat indices that reads every element at its own place.

1. Gather(Reshape(v, [-1]), i) on axis 0, where v and the result are of one shape and i counts v's elements in
   order, becomes v.

PyTorch writes ``as_strided`` so, and an adaptive pooling to one position ends in one where its input is
channels last (Swin, ConvNeXt). Its indices are computed from the batch, so no rule takes them. What they
are is found by computing them for a few batches.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ..graph.session import cpu_session
from ..graph.values import Unsupported, constant_array, shape_of, static

_BATCHES = (1, 2, 5)
_MOST_NODES = 64


class FlatViewsPass(ir.passes.InPlacePass):
    """See the module; values must have their shapes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        modified = False
        for node in list(model.graph):
            source = _viewed(node)
            if source is not None and _counts(model, node.inputs[1], source):
                if node.outputs[0].is_graph_output():
                    continue
                node.outputs[0].replace_all_uses_with(source)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _viewed(node: ir.Node) -> ir.Value | None:
    """v of a Gather as the module has it, whatever its indices are."""
    if node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) != 0:
        return None
    flat = node.inputs[0].producer() if node.inputs[0] is not None else None
    if flat is None or flat.op_type != "Reshape" or flat.domain or flat.inputs[0] is None:
        return None
    target = constant_array(flat.inputs[1])
    source = flat.inputs[0]
    if target is None or target.tolist() != [-1]:
        return None
    try:
        same = shape_of(source) == shape_of(node.outputs[0])
    except Unsupported:
        return None
    return source if same else None


def _counts(model: ir.Model, indices: ir.Value | None, source: ir.Value) -> bool:
    """Whether the indices are 0, 1, 2, … in the shape of ``source``, at several batches."""
    if indices is None or len(model.graph.inputs) != 1 or (needed := _ancestors(indices)) is None:
        return False
    image, dims = model.graph.inputs[0], shape_of(source)
    if image.shape is None or image.dtype is None or not all(isinstance(n, int) for n in dims[1:]):
        return False
    batch = image.shape[0]
    chw = [side for side in image.shape[1:] if isinstance(side, int)]
    if len(chw) != 3:
        return False
    session = cpu_session(_extracted(model, image, indices, needed))
    for n in [batch] if isinstance(batch, int) else _BATCHES:
        images = np.zeros((n, *chw), dtype=image.dtype.numpy())
        (found,) = session.run(None, {str(image.name): images})
        shape = (n, *map(static, dims[1:]))
        if not np.array_equal(found, np.arange(math.prod(shape)).reshape(shape)):
            return False
    return True


def _ancestors(value: ir.Value) -> list[ir.Node] | None:
    """The nodes that it is computed by; None if they are many or branch: no matter of shapes alone."""
    found: dict[ir.Node, None] = {}
    values = [value]
    while values:
        producer = values.pop().producer()
        if producer is not None and producer not in found:
            found[producer] = None
            values += [each for each in producer.inputs if each is not None]
            if any(each.type == ir.AttributeType.GRAPH for each in producer.attributes.values()):
                return None
        if len(found) > _MOST_NODES:
            return None
    return list(found)


def _extracted(model: ir.Model, image: ir.Value, output: ir.Value, nodes: list[ir.Node]) -> ir.Model:
    """A copy of the nodes alone, image → output."""
    copies: dict[ir.Value, ir.Value] = {image: ir.Value(name=image.name, shape=image.shape, type=image.type)}
    initializers = []
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is None or value in copies:
                continue
            copies[value] = ir.Value(
                name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
            )
            if value.const_value is not None and value.producer() is None:
                initializers.append(copies[value])
    copied = [
        ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else copies[value] for value in node.inputs],
            attributes=list(node.attributes.values()),
            outputs=[copies[value] for value in node.outputs],
            name=node.name,
        )
        for node in nodes
    ]
    graph = ir.Graph(
        [copies[image]],
        [copies[output]],
        nodes=copied,
        initializers=initializers,
        opset_imports=dict(model.graph.opset_imports),
        name="indices",
    )
    graph.sort()
    return ir.Model(graph, ir_version=model.ir_version)
