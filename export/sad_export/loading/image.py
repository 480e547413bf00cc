"""The image input in one form: (N, C, H, W) of floats, H and W static.

1. A dimension of −1 or 0 is a dynamic one. Height and width that are dynamic become those that the caller
   names; channels that are, those of the weight that reads the image.
2. (N, H, W, C), as Keras has it, is read through a Transpose; where the graph transposes it back, neither
   is left.
3. Bytes (uint8) become float images in [0, 1], times 255.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ..graph.errors import GraphError
from ..graph.expression import Array
from ..graph.initializers import initializer
from ..graph.nodes import attribute

_CHANNELS = (1, 3, 4)
_MOVING = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
_LARGEST_BYTE = 255


@dataclasses.dataclass(frozen=True)
class FileForm:
    """How a file's own input and output differ from those of the graph that was read from it.

    Attributes:
        channels_last: It takes (N, H, W, C).
        bytes: It takes uint8.
        half: It computes in float16, the graph in float32.
        has_tail: It gives probabilities, the graph the logits before them.
    """

    channels_last: bool = False
    bytes: bool = False
    half: bool = False
    has_tail: bool = False

    @property
    def has_other_numbers(self) -> bool:
        """Whether the file cannot stand for the graph's logits as a function."""
        return self.bytes or self.half or self.has_tail

    def input_of(self, x: Array) -> Array:
        """What the file takes for (N, C, H, W) float images."""
        x = np.rint(x * _LARGEST_BYTE).astype(np.uint8) if self.bytes else x
        return x.transpose(_TO_LAST) if self.channels_last else x

    def taken_exactly(self, x: Array) -> Array:
        """Images near ``x`` that the file and the graph take alike: bytes hold nothing beyond 0 and 1."""
        return np.rint(np.clip(x, 0, 1) * _LARGEST_BYTE) / _LARGEST_BYTE if self.bytes else x


def normalise_image(
    graph: ir.Graph, image: ir.Value, size: tuple[int, int] | None, notices: list[str]
) -> tuple[ir.Value, FileForm]:
    """Rewrite the input of a graph in place, as far as it can be.

    Args:
        graph: Its initializers are no inputs any more.
        image: The input.
        size: Height and width for those that are dynamic.
        notices: Gets a line for everything that was changed unasked.

    Returns:
        The new input, and what was changed of it.

    Raises:
        GraphError: The graph's images have another size than the one given.
    """
    if image.shape is None or len(image.shape) != 4:
        return image, FileForm()
    dims: list[int | str | None] = [
        (dim if dim > 0 else None) if isinstance(dim, int) else dim.value for dim in image.shape
    ]
    last = _is_channels_last(image, dims)
    if size is not None:
        at = (1, 2) if last else (2, 3)
        for axis, length in zip(at, size, strict=True):
            if isinstance(dims[axis], int) and dims[axis] != length:
                height, width = (dims[i] for i in at)
                raise GraphError(
                    f"--image-size {size[0]},{size[1]}: the graph takes images of {height},{width}",
                    hint="leave --image-size out",
                )
            dims[axis] = length
    image.shape = ir.Shape(dims)
    if not last and not isinstance(dims[1], int) and (channels := _channels_of_weight(image)) is not None:
        image.shape = ir.Shape([dims[0], channels, *dims[2:]])
        notices.append(f"input {image.name!r} has {channels} channels, by the weight that reads it")
    bytes_ = image.dtype == ir.DataType.UINT8 and _is_cast(image)
    if last:
        image = _channels_first(graph, image)
        notices.append(
            f"input {image.name!r} is channels last, (N, H, W, C); what is written takes (N, C, H, W)"
        )
    if bytes_:
        image = _floats(graph, image)
        notices.append(f"input {image.name!r} takes bytes; what is written takes floats from 0 to 1")
    return image, FileForm(channels_last=last, bytes=bytes_)


def _is_channels_last(image: ir.Value, dims: list[int | str | None]) -> bool:
    """By its dimensions, unless a convolution reads it as it is."""
    if dims[3] not in _CHANNELS or dims[1] in _CHANNELS:
        return False
    return not any(node.op_type == "Conv" for node in _readers(image))


def _readers(image: ir.Value) -> Iterator[ir.Node]:
    return (use.node for use in image.uses())


def _channels_of_weight(image: ir.Value) -> int | None:
    for node in _readers(image):
        weight = node.inputs[1] if node.op_type == "Conv" and len(node.inputs) > 1 else None
        if weight is not None and weight.shape is not None and isinstance(weight.shape[1], int):
            return weight.shape[1] * int(attribute(node, "group", 1))
    return None


def _is_cast(value: ir.Value) -> bool:
    """Whether every way from a value leads to a Cast through nodes that only move elements."""
    for node in _readers(value):
        if node.op_type == "Cast":
            continue
        if node.op_type not in _MOVING or value is not node.inputs[0] or not _is_cast(node.outputs[0]):
            return False
    return not value.is_graph_output()


def _in_front(
    graph: ir.Graph,
    image: ir.Value,
    new: ir.Value,
    op_type: str,
    *others: ir.Value,
    **attributes: Sequence[int],
) -> ir.Value:
    """Let ``new`` be the input, and ``image`` what an operator makes of it."""
    name, image.name = image.name, f"{image.name}/{op_type}"
    new.name = name
    attrs = ir.convenience.convert_attributes(attributes)
    node = ir.Node("", op_type, [new, *others], attributes=attrs, name=f"{name}/{op_type}")
    output = node.outputs[0]
    output.name, output.shape, output.type = image.name, image.shape, image.type
    ir.convenience.replace_all_uses_with(image, output)
    graph.inputs[list(graph.inputs).index(image)] = new
    first = next(iter(graph), None)
    if first is None:
        graph.append(node)
    else:
        graph.insert_before(first, node)
    return output


def _channels_first(graph: ir.Graph, image: ir.Value) -> ir.Value:
    """(N, C, H, W) in the place of (N, H, W, C)."""
    assert image.shape is not None
    new = ir.Value(shape=ir.Shape([image.shape[i] for i in _TO_FIRST]), type=image.type)
    moved = _in_front(graph, image, new, "Transpose", perm=_TO_LAST)
    for use in list(moved.uses()):
        back = use.node
        if back.op_type == "Transpose" and tuple(attribute(back, "perm", ())) == _TO_FIRST:
            ir.convenience.replace_all_uses_with(back.outputs[0], new, replace_graph_outputs=False)
    return new


def _floats(graph: ir.Graph, image: ir.Value) -> ir.Value:
    """Float images in [0, 1] in the place of bytes."""
    new = ir.Value(shape=image.shape, type=ir.TensorType(ir.DataType.FLOAT))
    scale = initializer(graph, f"{image.name}/255", np.array(_LARGEST_BYTE, dtype=np.float32))
    scaled = _in_front(graph, image, new, "Mul", scale)
    waiting = [scaled]
    while waiting:  # what moves elements takes floats now too; the Casts have nothing to do
        value = waiting.pop()
        value.type = ir.TensorType(ir.DataType.FLOAT)
        waiting += [node.outputs[0] for node in _readers(value) if node.op_type in _MOVING]
    return new
