"""Give a square weight that is read as it is and transposed as well a value of its own for the latter.

1. ConvTranspose(dy, W) becomes ConvTranspose(dy, Max(W, W)), where a Conv reads W too.
2. Transpose(W) becomes Transpose(Max(W, W)), where a MatMul reads W too; likewise a Gemm on Wᵀ.

Max(W, W) is W. OpenVINO up to 2026.4 packs such a weight once for both readers, which want it packed
differently, and the gradient is wrong without a word (docs/portability.md). Every runtime computes the
maximum once, as it loads the graph; TensorRT finds the two equal and keeps one (benchmarks/engine_size.py).
"""

from __future__ import annotations

import itertools

import onnx_ir as ir

from ..graph.nodes import attribute
from ..parts import mark_like, part_of


class SquareWeightsPass(ir.passes.InPlacePass):
    """See the module; on a graph in topological order. The forward pass, which comes first, keeps W."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place."""
        readers = _readers_by_weight(model.graph)
        for weight, found in readers.items():
            (_, as_forward), *_ = found
            others = [node for node, transposes in found if transposes is not as_forward]
            # A value belongs to the part that reads it, which may be in another precision.
            for part in dict.fromkeys(map(part_of, others)):
                _give_a_copy(model.graph, weight, [node for node in others if part_of(node) is part])
        return ir.passes.PassResult(model, modified=bool(readers))


def _readers_by_weight(graph: ir.Graph) -> dict[ir.Value, list[tuple[ir.Node, bool]]]:
    """Who reads each constant that is read both ways, and whether transposed, in the graph's order."""
    found: dict[ir.Value, list[tuple[ir.Node, bool]]] = {}
    for node in graph:
        for value in set(node.inputs):
            if value is not None and value.is_initializer():
                transposes = _transposes(node, value)
                if transposes is not None:
                    found.setdefault(value, []).append((node, transposes))
    return {value: readers for value, readers in found.items() if len({t for _, t in readers}) == 2}


def _transposes(node: ir.Node, weight: ir.Value) -> bool | None:
    """Whether a node takes a square weight transposed; None where it is no weight of it, or not square."""
    shape = [] if weight.shape is None else list(weight.shape.numpy())
    if node.domain != "" or len(shape) < 2:
        return None
    if node.op_type in ("Conv", "ConvTranspose"):
        is_square = node.inputs[1] is weight and shape[0] == shape[1] * attribute(node, "group", 1)
        return node.op_type == "ConvTranspose" if is_square else None
    if shape[-1] != shape[-2]:
        return None
    if node.op_type == "Gemm" and node.inputs[1] is weight:
        return bool(attribute(node, "transB", 0))
    return {"MatMul": False, "Transpose": True}.get(node.op_type)


def _give_a_copy(graph: ir.Graph, weight: ir.Value, readers: list[ir.Node]) -> None:
    """Let nodes, in the graph's order, read Max(W, W)."""
    first = readers[0]
    # A graph of ours that is differentiated once more has such names already.
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    name = next(
        name
        for name in (f"{weight.name}/transposed{n or ''}/{first.name}" for n in itertools.count())
        if name not in taken
    )
    copied = ir.Value(name=name, shape=weight.shape, type=weight.type)
    maximum = ir.Node("", "Max", [weight, weight], outputs=[copied], name=copied.name)
    mark_like(maximum, first)
    for node in readers:
        for i, value in enumerate(node.inputs):
            if value is weight:
                node.replace_input_with(i, copied)
    graph.insert_before(first, maximum)
