"""Ifs whose condition is a constant: the branch that is taken stands in their place.

Exporters write an If where the code asks for a shape, for example whether there is a dimension of length 1 to
squeeze. Once shapes are known, so is the answer.
"""

from __future__ import annotations

import onnx_ir as ir

from ..graph.values import constant_array


def inline_constant_ifs(graph: ir.Graph) -> bool:
    """Put the branch in the place of every If whose condition is known; whether there was one."""
    found = [(node, constant_array(node.inputs[0])) for node in graph if node.op_type == "If"]
    known = [(node, bool(array.reshape(-1)[0])) for node, array in found if array is not None and array.size]
    for node, condition in known:
        _inline(graph, node, "then_branch" if condition else "else_branch")
    return bool(known)


def control_flow(graph: ir.Graph) -> list[str]:
    """The operators of control flow in a graph, in order of their names."""
    return sorted({node.op_type for node in graph if node.op_type in ("If", "Loop", "Scan")})


def _inline(graph: ir.Graph, node: ir.Node, branch_name: str) -> None:
    branch = node.attributes[branch_name].as_graph()
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        value.name = f"{node.name}/{value.name}"
        graph.register_initializer(value)
    results = list(branch.outputs)
    branch.outputs.clear()
    inner = list(branch)
    branch.remove(inner)
    for each in inner:
        each.name = f"{node.name}/{each.name}"
        for output in each.outputs:
            output.name = f"{node.name}/{output.name}" if output.name else output.name
    graph.insert_before(node, inner)
    for output, result in zip(node.outputs, results, strict=True):
        if output.is_graph_output():  # its name is the graph's own
            copy = ir.Node("", "Identity", [result], name=f"{node.name}/output")
            copy.outputs[0].name, output.name = output.name, f"{node.name}/unused"
            copy.outputs[0].type, copy.outputs[0].shape = result.type, result.shape
            graph.insert_before(node, copy)
            result = copy.outputs[0]
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    node.replace_input_with(0, None)
    graph.remove(node)
