"""Windows whose number ONNX's shape inference counts otherwise than runtimes do, written without ambiguity.

onnxruntime, PyTorch and the operator specification from opset 22 on agree on the first two; the inference of
older opsets does not, and a gradient built on its shapes would not run.

1. ``ceil_mode``: no window begins beyond the input and the padding before it; inference adds it.
   Becomes ``ceil_mode=0`` with as much padding after the input as the last window reads.
2. ``auto_pad`` SAME with ``ceil_mode``: ⌈size/stride⌉ windows; inference rounds up twice.
   Becomes ``ceil_mode=0``.
3. ConvTranspose with ``auto_pad`` SAME and ``output_padding``: size·stride, in which the output padding is
   contained; inference adds it. Becomes explicit ``pads``.

Where inference is right the node stays as it is. Two cannot be written out, and have no gradient rule:
padding that an average counts, and padding of a whole kernel or more, which onnxruntime refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

_POOLS = ("MaxPool", "AveragePool", "LpPool")
WINDOWED = frozenset((*_POOLS, "ConvTranspose"))
"""Operators that :func:`write_out_windows` knows."""

_SAME = ("SAME_UPPER", "SAME_LOWER")


def write_out_windows(node: ir.Node, sizes: Sequence[int], kernel: Sequence[int]) -> bool:
    """Rewrite a pool or ConvTranspose if its number of windows is ambiguous.

    Args:
        node: Changed in place.
        sizes: Spatial shape of its input.
        kernel: Spatial shape of its windows.

    Returns:
        Whether it was changed.
    """
    if node.op_type == "ConvTranspose":
        return _write_out_transposed(node, sizes, kernel)
    if node.op_type not in _POOLS or not node.attributes.get_int("ceil_mode", 0):
        return False
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad in _SAME:
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
        return True
    rank = len(sizes)
    strides, dilations = (_numbers(node, name, rank) for name in ("strides", "dilations"))
    pads = _numbers(node, "pads", 2 * rank, 0) if auto_pad == "NOTSET" else [0] * 2 * rank
    ends, is_ambiguous = [], False
    for size, k, s, d, begin, end in zip(
        sizes, kernel, strides, dilations, pads[:rank], pads[rank:], strict=True
    ):
        extent = (k - 1) * d + 1
        windows = -(-(size + begin + end - extent) // s) + 1
        if (windows - 1) * s >= size + begin:
            windows -= 1
            is_ambiguous = True
        ends.append(max(0, (windows - 1) * s + extent - size - begin))
    counts_padding = node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad", 0) == 1
    is_counted = counts_padding and any(p > q for p, q in zip(ends, pads[rank:], strict=True))
    if not is_ambiguous or is_counted or any(p >= k for p, k in zip(ends, kernel, strict=True)):
        return False
    for attribute in (
        ir.AttrInt64("ceil_mode", 0),
        ir.AttrString("auto_pad", "NOTSET"),
        ir.AttrInt64s("pads", [*pads[:rank], *ends]),
    ):
        node.attributes[attribute.name] = attribute
    return True


def _write_out_transposed(node: ir.Node, sizes: Sequence[int], kernel: Sequence[int]) -> bool:
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    rank = len(sizes)
    padding = _numbers(node, "output_padding", rank, 0)
    if auto_pad not in _SAME or not any(padding) or "output_shape" in node.attributes:
        return False
    strides, dilations = (_numbers(node, name, rank) for name in ("strides", "dilations"))
    begins, ends = [], []
    for size, k, s, d, p in zip(sizes, kernel, strides, dilations, padding, strict=True):
        total = (size - 1) * s + p + (k - 1) * d + 1 - size * s
        if total < 0:
            return False
        begins.append(total // 2 if auto_pad == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begins, *ends])
    return True


def _numbers(node: ir.Node, name: str, count: int, default: int = 1) -> list[int]:
    return list(node.attributes.get_ints(name, [default] * count) or [default] * count)
