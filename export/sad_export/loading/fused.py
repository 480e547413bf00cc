"""Operators that onnxruntime's optimiser writes, as the standard operators that it fused.

A graph saved after optimisation holds operators of the domain ``com.microsoft``. Those of a classifier are an
operator of the standard with an activation, or stand for a formula:

1. FusedConv: Conv, the sum with Z if there is one, then the activation. FusedGemm: Gemm and the activation.
2. FusedMatMul: α · A·B, each transposed or not.
3. Gelu: x·½(1 + erf(x/√2)). BiasGelu: that of A + B. QuickGelu: x·σ(αx).
   FastGelu: x·½(1 + tanh(√(2/π)·(x + 0.044715·x³))), of x + bias.
4. QuantizeLinear, DequantizeLinear and Pad are those of the standard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.errors import GraphError
from ..graph.initializers import initializer
from ..graph.nodes import attribute, operand

_DOMAIN = "com.microsoft"
_LAYOUT = "com.microsoft.nchwc"
_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}
"""The attributes of activations, in the order of ``activation_params``; a Clip has inputs."""


def write_out_fused(graph: ir.Graph) -> list[str]:
    """Replace fused operators in place.

    Returns:
        The names of the operators that were replaced.

    Raises:
        GraphError: Some have no standard form here.
    """
    fused = [node for node in graph if node.domain in (_DOMAIN, _LAYOUT)]
    unknown = {node.op_type for node in fused if node.domain == _LAYOUT or node.op_type not in _FORMS}
    if unknown:
        raise GraphError(
            f"the graph is a copy that onnxruntime optimised, with operators of its own "
            f"({', '.join(sorted(unknown))})",
            hint="give the file that it was made from",
        )
    for node in fused:
        output = node.outputs[0]
        name, result = output.name, _FORMS[node.op_type](_Writer(graph, node))
        output.name = f"{name}/fused"
        ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
        result.name, result.shape, result.type = name, output.shape, output.type
        graph.remove(node, safe=True)
    return sorted({node.op_type for node in fused})


class _Writer:
    """Writes standard nodes in front of a fused one."""

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self.graph, self.node = graph, node
        self._count = 0

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The fused node's inputs, without those that it lacks."""
        return tuple(value for value in self.node.inputs if value is not None)

    def op(self, op_type: str, *inputs: ir.Value, attributes: Sequence[ir.Attr] = (), **new: Any) -> ir.Value:
        """Write a node with one output."""
        name = f"{self.node.name}/{op_type}_{self._count}"
        self._count += 1
        attrs = [*attributes, *ir.convenience.convert_attributes(new)]
        made = ir.Node("", op_type, list(inputs), attributes=attrs, name=name)
        made.outputs[0].name = name
        self.graph.insert_before(self.node, made)
        return made.outputs[0]

    def number(self, value: float) -> ir.Value:
        """A constant."""
        return initializer(self.graph, f"fused/{value!r}", np.array(value, dtype=np.float32))

    def own(self) -> list[ir.Attr]:
        """The fused node's attributes, but for those of its activation."""
        return [each for key, each in self.node.attributes.items() if not key.startswith("activation")]

    def activated(self, x: ir.Value) -> ir.Value:
        """The fused node's activation of ``x``."""
        kind = attribute(self.node, "activation", "")
        given = attribute(self.node, "activation_params", ())
        if kind == "Clip":
            return self.op("Clip", x, *(self.number(each) for each in given))
        names = _PARAMETERS.get(kind, ())
        apart = [attribute(self.node, f"activation_{name}", None) for name in names]
        values = given or [each for each in apart if each is not None]
        return self.op(kind, x, **dict(zip(names, values, strict=False))) if kind else x


def _conv(w: _Writer) -> ir.Value:
    x, weight, *rest = w.node.inputs
    bias, summed = (*rest, None, None)[:2]
    y = w.op("Conv", *(v for v in (x, weight, bias) if v is not None), attributes=w.own())
    return w.activated(w.op("Add", y, summed) if summed is not None else y)


def _gemm(w: _Writer) -> ir.Value:
    return w.activated(w.op("Gemm", *w.inputs, attributes=w.own()))


def _matmul(w: _Writer) -> ir.Value:
    a, b = w.inputs
    if attribute(w.node, "transBatchA", 0) or attribute(w.node, "transBatchB", 0):
        raise GraphError(
            f"{w.node.op_type} {w.node.name!r} transposes the batch", hint="give the original file"
        )
    factors = [
        _transposed(w, value) if attribute(w.node, flag, 0) else value
        for value, flag in ((a, "transA"), (b, "transB"))
    ]
    product = w.op("MatMul", *factors)
    alpha = attribute(w.node, "alpha", 1.0)
    return product if alpha == 1.0 else w.op("Mul", product, w.number(alpha))


def _transposed(w: _Writer, value: ir.Value) -> ir.Value:
    if value.shape is None:
        raise GraphError(f"the rank of {value.name!r} is not known", hint="give the original file")
    *front, rows, columns = range(len(value.shape))
    return w.op("Transpose", value, perm=[*front, columns, rows])


def _gelu(w: _Writer) -> ir.Value:
    x = _with_bias(w)
    return _gated(w, x, w.op("Erf", w.op("Div", x, w.number(math.sqrt(2)))))


def _fast_gelu(w: _Writer) -> ir.Value:
    x = _with_bias(w)
    cube = w.op("Mul", w.op("Mul", x, x), w.op("Mul", x, w.number(0.044715)))
    scaled = w.op("Mul", w.op("Add", x, cube), w.number(math.sqrt(2 / math.pi)))
    return _gated(w, x, w.op("Tanh", scaled))


def _with_bias(w: _Writer) -> ir.Value:
    return w.op("Add", *w.inputs) if len(w.inputs) == 2 else operand(w.node, 0)


def _gated(w: _Writer, x: ir.Value, gate: ir.Value) -> ir.Value:
    """x·½(1 + gate)."""
    return w.op("Mul", x, w.op("Mul", w.op("Add", gate, w.number(1.0)), w.number(0.5)))


def _quick_gelu(w: _Writer) -> ir.Value:
    x = operand(w.node, 0)
    return w.op("Mul", x, w.op("Sigmoid", w.op("Mul", x, w.number(attribute(w.node, "alpha", 1.702)))))


def _standard(w: _Writer) -> ir.Value:
    return w.op(w.node.op_type, *w.inputs, attributes=w.own())


_FORMS: dict[str, Callable[[_Writer], ir.Value]] = {
    "BiasGelu": _gelu,
    "DequantizeLinear": _standard,
    "FastGelu": _fast_gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "Pad": _standard,
    "QuantizeLinear": _standard,
    "QuickGelu": _quick_gelu,
}
