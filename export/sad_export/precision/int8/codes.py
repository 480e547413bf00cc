"""Write nodes on codes, channels last.

onnxruntime's integer convolutions work on (N, H, W, C), and its Transposes cancel where all between two of
them is in that order. So codes of rank 4 are kept channels last throughout, and every convolution stands
between two Transposes that vanish when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...graph.expression import Array
from ...graph.initializers import initializer
from .grid import Grid, weight_codes

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class CodesWriter:
    """Collects the nodes of a graph in which some values are codes.

    Args:
        graph: Gets the constants.
        grids: The grid of every value that may be held as codes.
    """

    def __init__(self, graph: ir.Graph, grids: Mapping[ir.Value, Grid]) -> None:
        self.graph = graph
        self.grids = grids
        self.nodes: list[ir.Node] = []
        self._codes: dict[ir.Value, ir.Value] = {}
        self._conditions: dict[ir.Value, ir.Value] = {}
        self._reals: dict[ir.Value, ir.Value] = {}
        self._weights: dict[tuple[str, int], tuple[list[ir.Value], Array]] = {}
        self._written_as_codes: set[ir.Value] = set()

    # Nodes and constants

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        like: ir.Value,
        shape: ir.Shape | Sequence[Any] | None = None,
        dtype: ir.DataType | None = None,
        attributes: Mapping[str, Any] | None = None,
        copied: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        """Write a node with one output.

        Args:
            op_type: Of the default domain.
            inputs: Its inputs.
            like: The value that it is about; its name, and its shape and type where none are given.
            shape: Of the output.
            dtype: Of the output.
            attributes: New ones.
            copied: Those of a node that it stands for.
        """
        name = f"{like.name}/{op_type}_{len(self.nodes)}"
        wanted = like.shape if shape is None else shape if isinstance(shape, ir.Shape) else ir.Shape(shape)
        output = ir.Value(name=name, shape=wanted, type=ir.TensorType(dtype or ir.DataType.FLOAT))
        attrs = [*copied, *ir.convenience.convert_attributes(attributes or {})]
        self.nodes.append(ir.Node("", op_type, list(inputs), attrs, outputs=[output], name=name))
        return output

    def adopt(self, node: ir.Node) -> None:
        """Take over a node, on floats."""
        for i, value in enumerate(list(node.inputs)):
            if value is not None:
                node.replace_input_with(i, self.real(value))
        self.graph.remove(node)
        self.nodes.append(node)

    def constant(self, array: Array, name: str) -> ir.Value:
        """An initializer, once a name."""
        return initializer(self.graph, name, array)

    def ints(self, *numbers: int) -> ir.Value:
        """A list of int64, shared by value."""
        array = np.array(numbers, dtype=np.int64)
        return self.constant(array, "codes/ints" + "".join(f"_{number}" for number in numbers))

    # Codes

    def has_codes(self, value: ir.Value | None) -> bool:
        """Whether a value was written as codes; no float of it is computed then."""
        return value in self._written_as_codes

    def keep(self, value: ir.Value, codes: ir.Value) -> None:
        """``codes``, channels last, are those of ``value`` from now on."""
        self._codes[value] = codes
        self._written_as_codes.add(value)

    def keep_plain(self, value: ir.Value, codes: ir.Value) -> None:
        """The same for codes in the order of ``value``."""
        self.keep(value, self._channels_last(value, codes))

    def codes(self, value: ir.Value) -> ir.Value:
        """Codes, channels last; a float is quantised once."""
        if value not in self._codes:
            quantized = self.quantize(value, value)
            self._codes[value] = self._channels_last(value, quantized)
        return self._codes[value]

    def plain_codes(self, value: ir.Value) -> ir.Value:
        """Codes in the order of the value itself."""
        codes = self.codes(value)
        if len(value.shape or ()) != 4:
            return codes
        return self.emit("Transpose", [codes], like=value, dtype=codes.dtype, attributes={"perm": _TO_FIRST})

    def quantize(self, real: ir.Value, value: ir.Value) -> ir.Value:
        """``real``, which may be in any order, on the grid of ``value``."""
        grid = self.grids[value]
        return self.emit(
            "QuantizeLinear", [real, *self.parameters(grid)], like=value, shape=real.shape, dtype=grid.dtype
        )

    def dequantized(self, value: ir.Value, *, channels_last: bool = False) -> ir.Value:
        """Floats of the codes: a node of their own for each reader, as onnxruntime fuses them."""
        codes = self.codes(value) if channels_last else self.plain_codes(value)
        return self.emit(
            "DequantizeLinear", [codes, *self.parameters(self.grids[value])], like=value, shape=codes.shape
        )

    def real(self, value: ir.Value) -> ir.Value:
        """A value as floats in its own order; itself, if it is no codes."""
        if not self.has_codes(value):
            return value
        if value not in self._reals:
            self._reals[value] = self.dequantized(value)
        return self._reals[value]

    def parameters(self, grid: Grid) -> list[ir.Value]:
        """Scale and zero of a grid."""
        zero = np.array(grid.zero, dtype=grid.dtype.numpy())
        scale = np.array(grid.scale, dtype=np.float32)
        return [
            self.constant(scale, f"codes/scale_{grid.scale!r}"),
            self.constant(zero, f"codes/{grid.dtype.name.lower()}_{grid.zero}"),
        ]

    def code(self, grid: Grid, code: int) -> ir.Value:
        """One code as a constant."""
        return self.constant(
            np.array(code, dtype=grid.dtype.numpy()), f"codes/{grid.dtype.name.lower()}_{code}"
        )

    def weight(self, name: str, array: Array, axis: int) -> tuple[ir.Value, Array]:
        """A constant weight behind a DequantizeLinear of its codes, and its scales along ``axis``."""
        key = (name, axis)
        if key not in self._weights:
            codes, scales = weight_codes(array, axis)
            stored = [
                self.constant(codes, f"{name}/codes_{axis}"),
                self.constant(scales, f"{name}/scales_{axis}"),
                self.constant(np.zeros(len(scales), dtype=np.int8), f"codes/zeros_{len(scales)}"),
            ]
            self._weights[key] = (stored, scales)
        stored, scales = self._weights[key]
        return self.emit("DequantizeLinear", stored, like=stored[0], attributes={"axis": axis}), scales

    def bias(self, name: str, array: Array, scales: Array) -> ir.Value:
        """A constant bias behind a DequantizeLinear of its int32 codes, on the grid of the products."""
        limits = np.iinfo(np.int32)
        codes = np.clip(np.rint(array / scales.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        stored = [
            self.constant(codes, f"{name}/bias_codes"),
            self.constant(scales, f"{name}/bias_scales"),
            self.constant(np.zeros(len(codes), dtype=np.int32), f"codes/zeros_int32_{len(codes)}"),
        ]
        return self.emit("DequantizeLinear", stored, like=stored[0], attributes={"axis": 0})

    # Conditions

    def has_condition(self, value: ir.Value | None) -> bool:
        """Whether a boolean was written channels last."""
        return value in self._conditions

    def keep_condition(self, value: ir.Value, condition: ir.Value) -> None:
        """``condition``, channels last, is ``value`` from now on."""
        self._conditions[value] = condition

    def condition(self, value: ir.Value) -> ir.Value:
        """A boolean, channels last."""
        if value not in self._conditions:
            self._conditions[value] = self._channels_last(value, value)
        return self._conditions[value]

    # Order and parts

    def last(self, value: ir.Value) -> ir.Shape:
        """The shape of a value in its own order, channels last."""
        assert value.shape is not None
        shape = list(value.shape)
        return ir.Shape([shape[i] for i in _TO_LAST] if len(shape) == 4 else shape)

    def _channels_last(self, value: ir.Value, plain: ir.Value) -> ir.Value:
        if len(value.shape or ()) != 4:
            return plain
        return self.emit(
            "Transpose",
            [plain],
            like=value,
            shape=self.last(plain),
            dtype=plain.dtype,
            attributes={"perm": _TO_LAST},
        )

    def sliced(self, codes: ir.Value, output: ir.Value, axis: int, start: int, end: int) -> ir.Value:
        """A stretch of an axis, channels last, of codes: those of ``output``."""
        places = [self.ints(start), self.ints(end), self.ints(axis)]
        return self.emit("Slice", [codes, *places], like=output, shape=self.last(output), dtype=codes.dtype)
