"""Let a growing Concat continue the one before it, as the layers of a DenseNet do.

1. Concat(a, b, c, …) whose inputs begin with all those of an earlier Concat(a, b) on the same axis becomes
   Concat(ab, c, …), of the longest such one.

The forward pass copies as much as before. The backward pass, which slices the gradient of a Concat into one
part an input, then has two slices a layer instead of one for every layer before it.
"""

from __future__ import annotations

import onnx_ir as ir

_Key = tuple[int, tuple[ir.Value | None, ...]]


class NestedConcatsPass(ir.passes.InPlacePass):
    """See the module; the graph must be in topological order."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        modified = False
        seen: dict[_Key, ir.Value] = {}
        for node in model.graph:
            if node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
                continue
            axis, inputs = _axis(node), tuple(node.inputs)
            for length in range(len(inputs) - 1, 1, -1):
                if earlier := seen.get((axis, inputs[:length])):
                    rest = inputs[length:]
                    node.resize_inputs(1 + len(rest))
                    for i, value in enumerate((earlier, *rest)):
                        node.replace_input_with(i, value)
                    modified = True
                    break
            seen.setdefault((axis, inputs), node.outputs[0])
        return ir.passes.PassResult(model, modified=modified)


def _axis(node: ir.Node) -> int:
    axis = node.attributes.get_int("axis", 0)
    shape = node.outputs[0].shape
    return axis + len(shape) if axis < 0 and shape is not None else axis
