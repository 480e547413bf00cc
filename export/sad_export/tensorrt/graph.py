"""What the ONNX file says that TensorRT does not: its precision, where its weights are, its nodes' names."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path

import onnx

from ..precision import PRECISION_KEY

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}


@dataclasses.dataclass(frozen=True)
class GraphFacts:
    """What an engine's description and its place in the cache need of a graph.

    Attributes:
        precision: What the graph says of itself, else the type that most weight elements have.
        external: Whether weights lie in files of their own.
    """

    precision: str
    external: bool

    @classmethod
    def of(cls, path: Path) -> GraphFacts:
        """Read them from a file."""
        model = onnx.load(str(path), load_external_data=False)
        tensors = model.graph.initializer
        external = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)
        stated = [str(entry.value) for entry in model.metadata_props if entry.key == PRECISION_KEY]
        elements: collections.Counter[int] = collections.Counter()
        for tensor in tensors:
            elements[tensor.data_type] += math.prod(tensor.dims)
        ((kind, _),) = elements.most_common(1) or [(onnx.TensorProto.FLOAT, 0)]
        return cls(stated[0] if stated else _TYPES.get(kind, "int8"), external)


def failing_node(path: Path, errors: Sequence[str]) -> onnx.NodeProto | None:
    """The node that TensorRT's complaints speak of first; None if they name none.

    Its layers have the names of their nodes; a ``ForeignNode[first...last]`` names the ends of what was
    compiled together, which say nothing.
    """
    text = re.sub(r"ForeignNode\[[^\]]*\]", "", " ".join(errors))
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    found = []
    for node in nodes:
        match = re.search(rf"(?<![\w/.]){re.escape(node.name)}(?![\w/])", text) if node.name else None
        if match:
            found.append((match.start(), -len(node.name), node))
    return min(found, key=lambda each: each[:2])[2] if found else None
