"""Where the walk starts: the gradient of an objective with respect to the logits.

For S = ∂Φ_i*/∂x with i* = argmax_i Φ_i(x), and for the logit of any other class, it is one-hot. When the
logits come straight from a linear layer, the first step is known: the gradient of its input is row i* of the
weight. A Gather then replaces a one-hot vector and a matrix product.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from sad_runtime.choices import Objective, choose
from sad_runtime.errors import UserError

from ..graph.expression import Builder, Expr
from ..graph.nodes import attribute, operand
from ..graph.values import constant_array, dtype_of, shape_of, static


@dataclasses.dataclass(frozen=True)
class Seed:
    """What the gradient is one of.

    Attributes:
        objective: The kind.
        index: The class, for ``Objective.CLASS``.
    """

    objective: Objective = Objective.LARGEST
    index: int = 0

    @classmethod
    def of(cls, word: str | int) -> Seed:
        """From a word of :class:`~sad_runtime.choices.Objective`, or the number of a class.

        Raises:
            UserError: Neither.
        """
        if isinstance(word, int) or word.isdecimal():
            return cls(Objective.CLASS, int(word))
        if word == Objective.CLASS:
            raise UserError("the class is a number", hint="0 for the first one")
        return cls(choose(Objective, word, "objective"))

    @property
    def word(self) -> str:
        """The word that :meth:`of` makes this seed of."""
        return str(self.index) if self.objective is Objective.CLASS else self.objective.value

    @property
    def input_name(self) -> str | None:
        """Name of the further input that the graph has for it; None if it has none."""
        names = {Objective.LABEL: "label", Objective.LOSS: "label", Objective.COTANGENT: "cotangent"}
        return names.get(self.objective)

    def new_input(self, logits: ir.Value) -> ir.Value | None:
        """The further input: ``label`` (N,) of int64, or ``cotangent``, shaped as the logits."""
        if self.input_name is None:
            return None
        batch, classes = shape_of(logits)
        is_label = self.input_name == "label"
        dtype = ir.DataType.INT64 if is_label else dtype_of(logits)
        shape = ir.Shape([batch] if is_label else [batch, classes])
        return ir.Value(name=self.input_name, shape=shape, type=ir.TensorType(dtype))

    def write(self, g: Builder, logits: ir.Value, given: ir.Value | None) -> dict[ir.Value, Expr]:
        """Write where the walk starts.

        Args:
            g: Where the nodes go.
            logits: (N, K).
            given: :meth:`new_input`.

        Returns:
            Forward value → gradient: the logits themselves, or the input of the linear layer before them.
        """
        if self.objective is Objective.COTANGENT and given is not None:
            return {logits: g.of(given)}
        if self.objective is Objective.LOSS and given is not None:
            return {logits: g.op("Softmax", logits, axis=1) - _one_hot(g, g.of(given), logits)}
        if given is not None:
            return _seeds(g, g.of(given), logits)
        # Ties go to the first maximum.
        (batch, _) = shape_of(logits)
        index = g.op("ArgMax", logits, axis=1, keepdims=0, shape=(batch,), dtype=ir.DataType.INT64)
        if self.objective is Objective.CLASS:
            index = index.op("Mul", g.ints(0)).op("Add", g.ints(self.index))  # as many as there are images
        return _seeds(g, index, logits)


LARGEST = Seed()
"""S of the paper."""


def _seeds(g: Builder, index: Expr, logits: ir.Value) -> dict[ir.Value, Expr]:
    """Of the logit of one class an image."""
    node = logits.producer()
    if node is not None and _is_linear(node):
        features, weight = operand(node, 0), g.of(operand(node, 1))
        if not attribute(node, "transB", 0):
            weight = weight.transpose([1, 0])
        row = weight.op("Gather", index, axis=0, shape=shape_of(features))
        return {features: row * attribute(node, "alpha", 1.0)}
    return {logits: _one_hot(g, index, logits)}


def _one_hot(g: Builder, index: Expr, logits: ir.Value) -> Expr:
    batch, classes = shape_of(logits)
    dtype = dtype_of(logits)
    # onnxruntime has kernels of OneHot for these types alone.
    written = dtype if dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) else ir.DataType.FLOAT
    values = g.constant(np.array([0, 1], dtype=written.numpy()))
    depth = g.ints(static(classes))
    return index.op("OneHot", depth, values, axis=1, shape=(batch, classes), dtype=written).cast(g.of(logits))


def _is_linear(node: ir.Node) -> bool:
    """Whether the logits are features · W + b with constant W and b."""
    if node.op_type not in ("Gemm", "MatMul") or node.domain or attribute(node, "transA", 0):
        return False
    plain = len(shape_of(operand(node, 0))) == 2
    return plain and all(constant_array(value) is not None for value in node.inputs[1:] if value is not None)
