"""Writing a graph that was built: with what the file says of itself, checked, as one file."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from sad_runtime.graph_metadata import PREFIX

from .errors import GraphError

_P = ParamSpec("_P")

LARGEST_WEIGHTS = 2**31 - 2**24
"""Bytes of weights in one file: a protobuf message ends at 2 GiB, nodes and names included."""


def collects_graph_cycles(
    build: Callable[_P, onnx.ModelProto],
) -> Callable[_P, onnx.ModelProto]:
    """Decorate a function that loads a graph and serialises what became of it.

    Nodes and values of a graph refer to each other, so it would keep a second copy of all weights until
    Python next looks for cycles: a quarter of the memory at the peak, when the caller writes the file.
    """

    @functools.wraps(build)
    def wrapper(*arguments: _P.args, **options: _P.kwargs) -> onnx.ModelProto:
        proto = build(*arguments, **options)
        gc.collect()
        return proto

    return wrapper


def weight_bytes(model: ir.Model) -> int:
    """The size of all initializers."""
    weights = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in weights if tensor is not None)


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as protobuf, for a caller outside this package or a file."""
    proto: Any = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    return proto


def save_graph(model: ir.Model, path: Path) -> None:
    """Write a graph as one file.

    Raises:
        GraphError: It is beyond the 2 GiB of one ONNX file.
    """
    if weight_bytes(model) > LARGEST_WEIGHTS:
        raise GraphError(
            f"{path.name} would be beyond the 2 GiB of one ONNX file",
            hint="in Python, two_pass and input_gradient return the graph, and "
            "onnx.save(…, save_as_external_data=True) writes it as several files",
        )
    onnx.save(to_proto(model), str(path))


def label_and_check(model: ir.Model, *, what: str, metadata: Mapping[str, str] | None = None) -> None:
    """Finish a graph that we built, in place: what it says of itself, then ``onnx.checker`` in full.

    Args:
        model: The extended graph; nodes that no output needs are removed.
        what: For the producer string, for example ``"two-pass"``.
        metadata: What the file says of itself besides what the user's does.
    """
    common_passes.RemoveUnusedNodesPass()(model)
    # What the user's file says of itself, class names for example, but nothing of an earlier graph of ours.
    theirs = {key: text for key, text in model.metadata_props.items() if not key.startswith(PREFIX)}
    common_passes.ClearMetadataAndDocStringPass()(model)
    model.producer_name = f"sad-deploy {what}"
    model.metadata_props.clear()
    model.metadata_props.update(theirs | dict(metadata or {}))
    common_passes.CheckerPass(full_check=True)(model)
