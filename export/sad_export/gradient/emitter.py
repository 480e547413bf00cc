"""The emitter writes backward nodes: it shares constants, names values and knows every static shape.

Anything that two rules need is a method here or a function beside them, once.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from . import blocked
from .layout import BlockedLayout, is_concatenated
from .values import Dim, Unsupported, broadcast, dtype_of, ir_shape, shape_of, static, text_of

_BOOLEAN = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not"))
_BROADCASTING = _BOOLEAN | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"}


class Dgrad(enum.StrEnum):
    """How the gradient of a convolution's input is written.

    ``convtranspose``: ConvTranspose on the same initializer; weights stay shared in engines too.
    ``conv``: Conv on the flipped weight (computed in the graph, so the file stays small), sub-pixel
    Conv + interleave for strides; for bf16 and for kernels that TensorRT lacks.
    ``auto``: the faster or the only possible one for each convolution (see ``convolution.py``).
    ``auto-fp16``: the same for a graph that is lowered to fp16, where an engine shares a weight otherwise.
    """

    AUTO = "auto"
    AUTO_FP16 = "auto-fp16"
    CONVTRANSPOSE = "convtranspose"
    CONV = "conv"


class Target(enum.StrEnum):
    """What the graph is written for.

    ``portable``: every runtime and TensorRT; an engine keeps one copy of each weight.
    ``cpu``: onnxruntime on the CPU; the same results from operators that stay in its blocked layout
    (:mod:`.layout`). TensorRT builds it too, into an engine twice the size.
    ``int8``: what :mod:`sad_export.precision.int8` turns into integers for onnxruntime's CPU: convolutions
    instead of ConvTranspose, which has no integer kernel.
    """

    PORTABLE = "portable"
    CPU = "cpu"
    INT8 = "int8"


@dataclasses.dataclass(frozen=True)
class Interleaved:
    """What a value was interleaved from, for rules that do better with the phases (:mod:`.windows`).

    Attributes:
        grid: Length, stride and elements of a phase, along each axis. Where length < stride · elements, the
            end was cropped.
        phases: By their place.
        interleave: Puts phases in their places.
    """

    grid: tuple[tuple[int, int, int], ...]
    phases: Mapping[tuple[int, ...], ir.Value]
    interleave: Callable[[Mapping[tuple[int, ...], ir.Value]], ir.Value]


class Emitter:
    """Collects the nodes and constants of a backward graph.

    Args:
        opset: Version of the default domain; decides the form of the few operators that changed.
        dgrad: The chosen lowering of convolutions.
        target: What the graph is written for.
        prefix: Put before the name of every value and node, for reading the graph in a viewer.
    """

    def __init__(
        self,
        *,
        opset: int,
        dgrad: Dgrad = Dgrad.AUTO,
        target: Target = Target.PORTABLE,
        prefix: str = "backward",
    ) -> None:
        self.opset = opset
        self.dgrad = dgrad
        self.target = target
        self._layout = BlockedLayout()
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self.initializers: dict[tuple[Any, ...], ir.Value] = {}
        self.wanted: set[ir.Value] = set()
        self.interleaved: dict[ir.Value, Interleaved] = {}

    def wants(self, value: ir.Value | None) -> bool:
        """Whether the walk will use a gradient of this value; a rule need not write any other."""
        return value in self.wanted

    # Nodes

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        shape: Sequence[Dim] | None = None,
        dtype: ir.DataType | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Emit one node with one output.

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
        operands = list(inputs)
        while operands and operands[-1] is None:
            operands.pop()
        first = operands[0]
        assert first is not None, f"{op_type} needs a first input"
        if shape is None:
            read = [shape_of(value) for value in operands if value is not None]
            shape = broadcast(*read) if op_type in _BROADCASTING else read[0]
        if dtype is None:
            chosen = operands[1] if op_type == "Where" else first
            assert chosen is not None
            dtype = ir.DataType.BOOL if op_type in _BOOLEAN else dtype_of(chosen)
        index = len(self.nodes)
        output = ir.Value(
            name=f"{self.prefix}/{op_type}_{index}", shape=ir_shape(shape), type=ir.TensorType(dtype)
        )
        self.nodes.append(
            ir.Node(
                "",
                op_type,
                operands,
                attributes=ir.convenience.convert_attributes(attributes),
                outputs=[output],
                name=f"{self.prefix}/{op_type}_{index}",
            )
        )
        return output

    # Constants

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """An initializer, shared by value: the same numbers are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.initializers:
            name = f"{self.prefix}/constant_{len(self.initializers)}"
            tensor = ir.tensor(array, name=name)
            self.initializers[key] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.initializers[key]

    def ints(self, *values: int) -> ir.Value:
        """A one-dimensional int64 constant: shapes, axes, pads."""
        return self.constant(np.array(values, dtype=np.int64))

    def like(self, value: ir.Value, number: float | np.ndarray[Any, Any]) -> ir.Value:
        """A constant in the element type of ``value``; a plain number gets shape [1], not rank 0.

        Beside a value of rank 0 it stays rank 0, so that the shape of the result does.
        """
        array = np.asarray(number, dtype=dtype_of(value).numpy())
        return self.constant(np.atleast_1d(array) if shape_of(value) else array)

    # What many rules need

    def add(self, terms: Sequence[ir.Value], *, of: ir.Value | None = None) -> ir.Value:
        """The sum of gradients that reach one value, ``of``: fan-out in the forward graph."""
        terms = self._summed_by_phases(terms)
        held = [self.is_blocked(term) for term in terms]
        if any(held) and (all(held) or not is_concatenated(of)):
            terms = [blocked.enter(self, term) for term in terms]
        total = terms[0]
        for term in terms[1:]:
            total = self.op("Add", total, term)
        return total

    def _summed_by_phases(self, terms: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Interleaved terms summed phase by phase: no zeros are added, and only the sum is interleaved.

        As where a strided convolution and the strided shortcut beside it read the same value.
        """
        found = [term for term in terms if term in self.interleaved]
        if len(found) < 2 or len({self.interleaved[term].grid for term in found}) > 1:
            return terms
        phases: dict[tuple[int, ...], list[ir.Value]] = {}
        for term in found:
            for phase, value in self.interleaved[term].phases.items():
                phases.setdefault(phase, []).append(value)
        together = {phase: self.add(values) for phase, values in sorted(phases.items())}
        rest = [term for term in terms if term not in self.interleaved]
        return [self.interleaved[found[0]].interleave(together), *rest]

    def scale(self, value: ir.Value, factor: float) -> ir.Value:
        """``value · factor``, and nothing at all for a factor of one."""
        return value if factor == 1.0 else self.op("Mul", value, self.like(value, factor))

    def times(self, dy: ir.Value, factor: ir.Value) -> ir.Value:
        """``dy · factor``, where ``factor`` is broadcast; in the blocked layout if it has that."""
        if self.is_blocked(dy) and self.is_blocked(factor):
            factor = self.expand(factor, dy)
        elif shape_of(dy) == shape_of(factor) and self.is_blocked(factor):
            dy = blocked.enter(self, dy)
        return self.op("Mul", dy, factor)

    def where_positive(self, y: ir.Value, dy: ir.Value) -> ir.Value:
        """``dy · 1[y > 0]`` for y ≥ 0.

        A product with the cast comparison, which onnxruntime runs faster than ``Where``
        (benchmarks/lowerings.py); TensorRT fuses either.
        """
        if self.is_blocked(y):
            return self.op("Mul", blocked.enter(self, dy), blocked.step(self, y))
        return self.masked(dy, self.op("Greater", y, self.like(y, 0.0), dtype=ir.DataType.BOOL))

    def is_blocked(self, value: ir.Value) -> bool:
        """Whether this is for the CPU and ``value`` is in onnxruntime's blocked layout."""
        return self.target is Target.CPU and self._layout.holds(value)

    def masked(self, dy: ir.Value, condition: ir.Value) -> ir.Value:
        """``dy`` where a boolean of the same shape holds, else zero."""
        return self.op("Mul", dy, self.cast(condition, dy))

    def cast(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """``value`` in the element type of ``like``."""
        dtype = dtype_of(like)
        return value if value.dtype == dtype else self.op("Cast", value, dtype=dtype, to=int(dtype))

    def expand(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Broadcast to the shape of ``like``, whose symbolic dimensions ``value`` already has.

        A product with ones: unlike ``Expand`` it needs no shape computed from a dynamic batch.
        """
        have, shape = shape_of(value), shape_of(like)
        if any(m == 1 and isinstance(n, str) for m, n in zip(have, shape, strict=True)):
            raise Unsupported("it sums over the batch, and images are differentiated one by one")
        times = [n if isinstance(n, int) and m == 1 else 1 for m, n in zip(have, shape, strict=True)]
        if all(n == 1 for n in times):
            return value
        if self.is_blocked(like) and times[1] == 1:
            return blocked.repeat(self, blocked.enter(self, value), shape, times)
        return self.op("Mul", value, self.like(value, np.ones(times)), shape=shape)

    def reshape(self, value: ir.Value, shape: Sequence[Dim]) -> ir.Value:
        """Reshape to a shape with at most one symbolic dimension.

        It is written as 0 ("as in the input") where it stays in place, which shape inference can
        follow, and as −1 where it moves or is merged with others.
        """
        have = shape_of(value)
        if tuple(have) == tuple(shape):
            return value
        if sum(isinstance(n, str) for n in shape) > 1:
            raise Unsupported(f"it needs a shape of several dynamic dimensions, {text_of(shape)}")
        target = []
        for axis, n in enumerate(shape):
            if isinstance(n, int):
                target.append(n)
            else:
                target.append(0 if axis < len(have) and have[axis] == n else -1)
        return self.op("Reshape", value, self.ints(*target), shape=shape)

    def transpose(self, value: ir.Value, perm: Sequence[int]) -> ir.Value:
        """Transpose; the shape follows."""
        have = shape_of(value)
        if list(perm) == list(range(len(have))):
            return value
        return self.op("Transpose", value, perm=list(perm), shape=[have[axis] for axis in perm])

    def flip(self, value: ir.Value, axis: int) -> ir.Value:
        """``value[..., ::-1, ...]``."""
        begin, past_the_beginning = self.ints(-1), self.ints(-(2**63))
        return self.op("Slice", value, begin, past_the_beginning, self.ints(axis), self.ints(-1))

    def slice(
        self,
        value: ir.Value,
        axes: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        steps: Sequence[int],
    ) -> ir.Value:
        """``value[..., start:end:step, ...]`` over static axes, with 0 ≤ start < end ≤ size and step ≥ 1."""
        shape = list(shape_of(value))
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            shape[axis] = -(-(end - start) // step)
        if tuple(shape) == shape_of(value):
            return value
        return self.op(
            "Slice",
            value,
            self.ints(*starts),
            self.ints(*ends),
            self.ints(*axes),
            self.ints(*steps) if any(step != 1 for step in steps) else None,
            shape=shape,
        )

    def pad(
        self,
        value: ir.Value,
        axes: Sequence[int],
        begins: Sequence[int],
        ends: Sequence[int],
        fill: float = 0.0,
    ) -> ir.Value:
        """Constant padding of static axes; negative amounts crop.

        In one Pad for onnxruntime's CPU; elsewhere a Slice crops first, as negative amounts are rarely tried.
        """
        shape = list(shape_of(value))
        if self.target is Target.PORTABLE or max(*begins, *ends) <= 0:
            value, begins, ends = self._cropped(value, axes, begins, ends)
            shape = list(shape_of(value))
        if not any(begins) and not any(ends):
            return value
        before, after = [0] * len(shape), [0] * len(shape)
        for axis, begin, end in zip(axes, begins, ends, strict=True):
            before[axis], after[axis] = begin, end
            shape[axis] = static(shape[axis]) + begin + end
        # A rank-0 value is what the operator's specification asks for here.
        constant = self.constant(np.asarray(fill, dtype=dtype_of(value).numpy())) if fill else None
        return self.op("Pad", value, self.ints(*before, *after), constant, shape=shape)

    def _cropped(
        self, value: ir.Value, axes: Sequence[int], begins: Sequence[int], ends: Sequence[int]
    ) -> tuple[ir.Value, Sequence[int], Sequence[int]]:
        """``value`` with negative amounts cut off, and the amounts that are left."""
        shape = shape_of(value)
        crop = [(max(0, -begin), max(0, -end)) for begin, end in zip(begins, ends, strict=True)]
        if any(begin or end for begin, end in crop):
            sizes = [static(shape[axis]) for axis in axes]
            value = self.slice(
                value,
                axes,
                [begin for begin, _ in crop],
                [size - end for size, (_, end) in zip(sizes, crop, strict=True)],
                [1] * len(axes),
            )
        return value, [max(0, begin) for begin in begins], [max(0, end) for end in ends]

    def reduce(self, op_type: str, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """A reduction that keeps its axes as size 1.

        ReduceSum takes its axes as an input from opset 13 on, all the others from 18 on.
        """
        rank = len(shape_of(value))
        axes = sorted(axis % rank for axis in axes)
        shape = [1 if axis in axes else n for axis, n in enumerate(shape_of(value))]
        if op_type == "ReduceSum" or self.opset >= 18:
            return self.op(op_type, value, self.ints(*axes), shape=shape, keepdims=1)
        return self.op(op_type, value, shape=shape, keepdims=1, axes=axes)

    def unbroadcast(self, gradient: ir.Value, operand: ir.Value) -> ir.Value:
        """Undo broadcasting: sum the gradient over the axes along which ``operand`` was repeated."""
        have, want = shape_of(gradient), shape_of(operand)
        extra = len(have) - len(want)
        axes = [*range(extra), *(extra + i for i, n in enumerate(want) if n == 1 and have[extra + i] != 1)]
        if axes == [2, 3] and self.is_blocked(gradient):
            height, width = (static(n) for n in have[2:])
            return self.scale(self.op("GlobalAveragePool", gradient, shape=want), float(height * width))
        if axes:
            gradient = self.reduce("ReduceSum", gradient, axes)
        return self.reshape(gradient, want) if extra else gradient

    @property
    def constants(self) -> Mapping[str, ir.Value]:
        """The initializers by name."""
        return {str(value.name): value for value in self.initializers.values()}
