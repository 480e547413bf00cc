"""An ONNX graph evaluated in float64: what its rules compute, without float32's rounding.

onnxruntime's CPU has no float64 convolution, so the graph runs in ONNX's own reference evaluator, with its
slow loops (convolutions, pools, products, erf) handed to PyTorch in float64. Weights and constants stay the
float32 numbers of the file, widened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

Array = np.ndarray[Any, Any]


class Float64Graph:
    """A float32 graph of which every float is a float64.

    Args:
        model: Its casts to float32 become casts to float64, in place.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to":
                    attribute.i = TensorProto.DOUBLE if attribute.i == TensorProto.FLOAT else attribute.i
        own = [Conv, ConvTranspose, Pad, MaxPool, AveragePool, MatMul, Einsum, Erf]
        evaluator: Any = ReferenceEvaluator(model, new_ops=own)
        self._nodes: list[OpRun] = evaluator.rt_nodes_
        self._constants: dict[str, Array] = evaluator.rt_inits_

    def run(self, outputs: list[str], feeds: dict[str, Array]) -> list[Array]:
        """Evaluate what the outputs depend on.

        Args:
            outputs: Names of any values.
            feeds: Name → array, floats widened: the inputs, and any other values that are to be as given
                instead of computed.

        Returns:
            One array an output, in order.
        """
        needed = _needed(self._nodes, outputs, set(feeds))
        last_use = {name: i for i, node in enumerate(needed) for name in node.input}
        kept = {"", *outputs, *feeds, *self._constants}
        values: dict[str, Any] = {"": None, **self._constants, **feeds}
        for i, node in enumerate(needed):
            # Weights are widened one at a time: all of them at once would fill the memory.
            arrays = (_widened(values[name]) for name in node.input)
            results = node.run(*arrays)  # type: ignore[no-untyped-call]
            values.update((k, v) for k, v in zip(node.output, results, strict=False) if k not in feeds)
            for name in {*node.input, *node.output} - kept:
                if last_use.get(name, i) == i:
                    del values[name]
        return [_widened(values[name]) for name in outputs]


def _needed(nodes: list[OpRun], outputs: list[str], given: set[str]) -> list[OpRun]:
    """The nodes that the outputs depend on, in order."""
    wanted = set(outputs) - given
    needed = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(set(node.input) - given)
    return needed[::-1]


class Conv(OpRun):
    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        spatial = x.ndim - 2
        padded = F.pad(_tensor(x), _torch_pads(attributes["pads"], spatial))
        y = torch.conv2d(
            padded,
            _tensor(w),
            None if b is None else _tensor(b),
            stride=_each(attributes["strides"], spatial, 1),
            dilation=_each(attributes["dilations"], spatial, 1),
            groups=attributes["group"],
        )
        return (y.numpy(),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        spatial = x.ndim - 2
        y = torch.conv_transpose2d(
            _tensor(x),
            _tensor(w),
            None if b is None else _tensor(b),
            stride=_each(attributes["strides"], spatial, 1),
            dilation=_each(attributes["dilations"], spatial, 1),
            groups=attributes["group"],
            output_padding=0,
        )
        # Output padding adds rows at the end, which nothing has written to but the bias; pads take rows off.
        extra = _each(attributes["output_padding"], spatial, 0)
        before_after = _torch_pads(attributes["pads"], spatial)
        y = F.pad(y, [n for size in reversed(extra) for n in (0, size)])
        return (F.pad(y, [-n for n in before_after]).numpy(),)


class Pad(OpRun):
    op_domain = ""

    def _run(
        self, x: Array, pads: Array, fill: Array | None = None, axes: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        # The evaluator's own takes no negative amounts, which crop.
        along = range(x.ndim) if axes is None else axes.tolist()
        before, after = np.zeros((2, x.ndim), dtype=int)
        for i, axis in enumerate(along):
            before[axis], after[axis] = pads[i], pads[i + len(along)]
        cropped = x[
            tuple(slice(max(0, -a), n - max(0, -b)) for n, a, b in zip(x.shape, before, after, strict=True))
        ]
        amounts = list(zip(np.maximum(before, 0), np.maximum(after, 0), strict=True))
        if attributes["mode"] != "constant":
            return (np.pad(cropped, amounts, mode=attributes["mode"]),)
        return (np.pad(cropped, amounts, constant_values=0.0 if fill is None else fill.item()),)


class MaxPool(OpRun):
    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        dilation = _each(attributes["dilations"], 2, 1)
        return (F.max_pool2d(_tensor(x), **_window(attributes), dilation=dilation).numpy(),)


class AveragePool(OpRun):
    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        include = bool(attributes["count_include_pad"])
        return (F.avg_pool2d(_tensor(x), **_window(attributes), count_include_pad=include).numpy(),)


class MatMul(OpRun):
    op_domain = ""

    def _run(self, a: Array, b: Array) -> tuple[Array]:
        return (torch.matmul(_tensor(a), _tensor(b)).numpy(),)


class Erf(OpRun):
    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (torch.erf(_tensor(x)).numpy(),)


class Einsum(OpRun):
    op_domain = ""

    def _run(self, *operands: Array, equation: str) -> tuple[Array]:
        return (torch.einsum(equation, *map(_tensor, operands)).numpy(),)


def _window(attributes: dict[str, Any]) -> dict[str, Any]:
    """A pool's attributes as PyTorch's arguments, which pad both ends alike."""
    top, left, bottom, right = attributes["pads"] or (0, 0, 0, 0)
    if (top, left) != (bottom, right):
        raise NotImplementedError(f"a pool padded unevenly: {attributes['pads']}")
    return {
        "kernel_size": attributes["kernel_shape"],
        "stride": _each(attributes["strides"], 2, 1),
        "padding": (top, left),
        "ceil_mode": bool(attributes["ceil_mode"]),
    }


def _torch_pads(pads: Sequence[int] | None, spatial: int) -> list[int]:
    """ONNX's (all starts, all ends) as PyTorch's (start, end) from the last axis on."""
    pads = pads or [0] * 2 * spatial
    return [n for axis in reversed(range(spatial)) for n in (pads[axis], pads[axis + spatial])]


def _each(values: Sequence[int] | None, spatial: int, default: int) -> list[int]:
    return list(values) if values else [default] * spatial


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _widened(array: Any) -> Any:
    return array.astype(np.float64) if array is not None and array.dtype == np.float32 else array
