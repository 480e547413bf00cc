"""Formulas that write nodes: ``dy * (y * (1 - y))`` is a Sub and two Muls at the end of a graph.

An :class:`Expr` is a value of the graph with Python's operators; what it is combined with may be another, a
number or an array, which becomes a constant of its element type. A :class:`Builder` collects the nodes: it
shares constants, names values and sets every static shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from .operators import BOOLEAN, BROADCASTING
from .values import Dim, Unsupported, broadcast, constant_array, dtype_of, ir_shape, shape_of, static, text_of

Array = np.ndarray[Any, Any]


class Builder:
    """Collects the nodes and constants of a part of a graph.

    Args:
        opset: Version of the default domain; decides the form of the few operators that changed.
        prefix: Put before the name of every value and node, for reading the graph in a viewer.

    Attributes:
        nodes: What was written, in order.
        crops_before_padding: Whether a Pad with negative amounts is written as a Slice and a Pad without.
    """

    crops_before_padding = True

    def __init__(self, *, opset: int, prefix: str = "backward") -> None:
        self.opset = opset
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def of(self, value: ir.Value) -> Expr:
        """A value of the graph, to be used in formulas."""
        return Expr(value, self)

    def op(
        self,
        op_type: str,
        *inputs: Operand | None,
        shape: Sequence[Dim] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> Expr:
        """Write one node with one output.

        Args:
            op_type: Operator of the default domain.
            *inputs: Its inputs; trailing ``None`` are dropped.
            shape: Shape of the output; if not given, that of the first input, or of all inputs
                broadcast for arithmetic and comparisons.
            dtype: Element type of the output; if not given, that of the first input (of what a Where
                chooses from), or bool for comparisons.
            **attributes: The operator's attributes.

        Returns:
            The output value, with shape and type set: TensorRT and onnxruntime's layout
            optimiser decide on them, and inference through a dynamic batch loses some.
        """
        operands = [each.value if isinstance(each, Expr) else each for each in inputs]
        while operands and operands[-1] is None:
            operands.pop()
        first = operands[0]
        assert first is not None, f"{op_type} needs a first input"
        if shape is None:
            read = [shape_of(value) for value in operands if value is not None]
            shape = broadcast(*read) if op_type in BROADCASTING else read[0]
        if dtype is None:
            chosen = operands[1] if op_type == "Where" else first
            assert chosen is not None
            dtype = ir.DataType.BOOL if op_type in BOOLEAN else dtype_of(chosen)
        name = f"{self.prefix}/{op_type}_{len(self.nodes)}"
        output = ir.Value(name=name, shape=ir_shape(shape), type=ir.TensorType(dtype))
        converted = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", op_type, operands, attributes=converted, outputs=[output], name=name))
        return self.of(output)

    def constant(self, array: Array) -> Expr:
        """An initializer, shared by value: the same numbers are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"{self.prefix}/constant_{len(self._constants)}"
            tensor = ir.tensor(array, name=name)
            self._constants[key] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.of(self._constants[key])

    def ints(self, *values: int) -> Expr:
        """A one-dimensional int64 constant: shapes, axes, pads."""
        return self.constant(np.array(values, dtype=np.int64))

    @property
    def constants(self) -> Mapping[str, ir.Value]:
        """The initializers by name."""
        return {str(value.name): value for value in self._constants.values()}

    def append_to(self, graph: ir.Graph) -> None:
        """Put the nodes and constants at the end of a graph."""
        for value in self._constants.values():
            graph.register_initializer(value)
        graph.extend(self.nodes)


class Expr:
    """A value with Python's operators: arithmetic, comparisons, and & | ^ ~ on booleans.

    A product with a boolean is one with 0 or 1: the mask of a gradient. A product with the number 1 is the
    value itself.

    Attributes:
        value: The value.
        g: Where nodes go.
    """

    __array_ufunc__ = None  # an array on the left leaves the operator to this class
    __slots__ = ("g", "value")

    def __init__(self, value: ir.Value, g: Builder) -> None:
        self.value = value
        self.g = g

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Its shape; symbolic dimensions as their names.

        Raises:
            Unsupported: It is not known.
        """
        return shape_of(self.value)

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def dtype(self) -> ir.DataType:
        """Its element type."""
        return dtype_of(self.value)

    @property
    def numbers(self) -> Array | None:
        """The numbers of a constant, None for what is computed in the graph."""
        return constant_array(self.value)

    def known(self, what: str) -> Array:
        """The numbers of a constant.

        Args:
            what: What they are, for the message: ``scales``.

        Raises:
            Unsupported: They are computed in the graph.
        """
        if (array := self.numbers) is None:
            raise Unsupported(f"its {what} are computed in the graph")
        return array

    def op(self, op_type: str, *others: Operand | None, **options: Any) -> Expr:
        """Write a node of which this is the first input; see :meth:`Builder.op`."""
        return self.g.op(op_type, self, *others, **options)

    def like(self, number: Number) -> Expr:
        """A constant in this element type; a plain number gets shape [1], not rank 0.

        Beside a value of rank 0 it stays rank 0, so that the shape of the result does.
        """
        array = np.asarray(number, dtype=self.dtype.numpy())
        return self.g.constant(np.atleast_1d(array) if self.shape else array)

    def _operand(self, other: Expr | Number) -> Expr:
        return other if isinstance(other, Expr) else self.like(other)

    # Arithmetic

    def __add__(self, other: Expr | Number) -> Expr:
        return self.op("Add", self._operand(other))

    def __sub__(self, other: Expr | Number) -> Expr:
        return self.op("Sub", self._operand(other))

    def __mul__(self, other: Expr | Number) -> Expr:
        if isinstance(other, (int, float)) and other == 1:
            return self
        if isinstance(other, Expr) and other.dtype == ir.DataType.BOOL:
            other = other.cast(self)
        return self.op("Mul", self._operand(other))

    def __truediv__(self, other: Expr | Number) -> Expr:
        return self.op("Div", self._operand(other))

    def __pow__(self, other: Expr | Number) -> Expr:
        return self.op("Pow", self._operand(other))

    def __neg__(self) -> Expr:
        return self.op("Neg")

    def __radd__(self, other: Number) -> Expr:
        return self.like(other) + self

    def __rsub__(self, other: Number) -> Expr:
        return self.like(other) - self

    def __rmul__(self, other: Number) -> Expr:
        return self * other

    def __rtruediv__(self, other: Number) -> Expr:
        return self.like(other) / self

    # Comparisons and logic; mypy takes x > y for y < x of the other's type, which is the same here

    def __gt__(self, other: Expr | Number) -> Expr:  # type: ignore[misc]
        return self.op("Greater", self._operand(other))

    def __lt__(self, other: Expr | Number) -> Expr:  # type: ignore[misc]
        return self.op("Less", self._operand(other))

    def __ge__(self, other: Expr | Number) -> Expr:  # type: ignore[misc]
        return self.op("GreaterOrEqual", self._operand(other))

    def __le__(self, other: Expr | Number) -> Expr:  # type: ignore[misc]
        return self.op("LessOrEqual", self._operand(other))

    def __and__(self, other: Expr) -> Expr:
        return self.op("And", other)

    def __or__(self, other: Expr) -> Expr:
        return self.op("Or", other)

    def __xor__(self, other: Expr) -> Expr:
        return self.op("Xor", other)

    def __invert__(self) -> Expr:
        return self.op("Not")

    # What moves elements, or changes their type

    def cast(self, like: Expr) -> Expr:
        """In the element type of another value."""
        dtype = like.dtype
        return self if self.value.dtype == dtype else self.op("Cast", dtype=dtype, to=int(dtype))

    def reshape(self, shape: Sequence[Dim]) -> Expr:
        """Reshape to a shape with at most one symbolic dimension.

        It is written as 0 ("as in the input") where it stays in place, which shape inference can
        follow, and as −1 where it moves or is merged with others.
        """
        have = self.shape
        if tuple(have) == tuple(shape):
            return self
        if sum(isinstance(n, str) for n in shape) > 1:
            raise Unsupported(f"it needs a shape of several dynamic dimensions, {text_of(shape)}")
        target = []
        for axis, n in enumerate(shape):
            if isinstance(n, int):
                target.append(n)
            else:
                target.append(0 if axis < len(have) and have[axis] == n else -1)
        return self.op("Reshape", self.g.ints(*target), shape=shape)

    def transpose(self, perm: Sequence[int]) -> Expr:
        """Transpose; the shape follows."""
        have = self.shape
        if list(perm) == list(range(len(have))):
            return self
        return self.op("Transpose", perm=list(perm), shape=[have[axis] for axis in perm])

    def flip(self, axis: int) -> Expr:
        """``value[..., ::-1, ...]``."""
        begin, past_the_beginning = self.g.ints(-1), self.g.ints(-(2**63))
        return self.op("Slice", begin, past_the_beginning, self.g.ints(axis), self.g.ints(-1))

    def slice(
        self,
        axes: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        steps: Sequence[int] | None = None,
    ) -> Expr:
        """``value[..., start:end:step, ...]`` over static axes, with 0 ≤ start < end ≤ size and step ≥ 1."""
        steps = steps or [1] * len(axes)
        shape = list(self.shape)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            shape[axis] = -(-(end - start) // step)
        if tuple(shape) == self.shape:
            return self
        g = self.g
        stepped = g.ints(*steps) if any(step != 1 for step in steps) else None
        return self.op("Slice", g.ints(*starts), g.ints(*ends), g.ints(*axes), stepped, shape=shape)

    def pad(self, axes: Sequence[int], begins: Sequence[int], ends: Sequence[int], fill: float = 0.0) -> Expr:
        """Constant padding of static axes; negative amounts crop."""
        value = self
        if self.g.crops_before_padding or max((*begins, *ends), default=0) <= 0:
            value = self._cropped(axes, begins, ends)
            begins, ends = ([max(0, n) for n in amounts] for amounts in (begins, ends))
        if not any(begins) and not any(ends):
            return value
        shape = list(value.shape)
        before, after = [0] * len(shape), [0] * len(shape)
        for axis, begin, end in zip(axes, begins, ends, strict=True):
            before[axis], after[axis] = begin, end
            shape[axis] = static(shape[axis]) + begin + end
        # A rank-0 value is what the operator's specification asks for here.
        constant = self.g.constant(np.asarray(fill, dtype=value.dtype.numpy())) if fill else None
        return value.op("Pad", self.g.ints(*before, *after), constant, shape=shape)

    def _cropped(self, axes: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> Expr:
        """Without what negative amounts cut off."""
        crop = [(max(0, -begin), max(0, -end)) for begin, end in zip(begins, ends, strict=True)]
        if not any(begin or end for begin, end in crop):
            return self
        sizes = [static(self.shape[axis]) for axis in axes]
        return self.slice(
            axes,
            [begin for begin, _ in crop],
            [size - end for size, (_, end) in zip(sizes, crop, strict=True)],
        )

    # What reduces

    def reduce(self, op_type: str, axes: Sequence[int]) -> Expr:
        """A reduction that keeps its axes as size 1.

        ReduceSum takes its axes as an input from opset 13 on, all the others from 18 on.
        """
        axes = sorted(axis % self.rank for axis in axes)
        shape = [1 if axis in axes else n for axis, n in enumerate(self.shape)]
        if op_type == "ReduceSum" or self.g.opset >= 18:
            return self.op(op_type, self.g.ints(*axes), shape=shape, keepdims=1)
        return self.op(op_type, shape=shape, keepdims=1, axes=axes)

    def sum(self, axes: Sequence[int]) -> Expr:
        """Σ over some axes, kept at size 1."""
        return self.reduce("ReduceSum", axes)

    def mean(self, axes: Sequence[int]) -> Expr:
        """The mean over some axes, kept at size 1."""
        return self.reduce("ReduceMean", axes)


Operand: TypeAlias = Expr | ir.Value
Number: TypeAlias = float | Array
