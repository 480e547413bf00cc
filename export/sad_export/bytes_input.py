"""A graph of float images as one of bytes: for clients that send pictures as they are decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from sad_runtime.backends.protocol import INPUT

from .graph.errors import GraphError
from .graph.expression import Builder
from .graph.session import cpu_session
from .graph.values import shape_of
from .graph.write import save_graph
from .verify import REPORT, VerificationError

_WHITE = 255
_TOLERANCE = 1e-5
_TRIED = 3


def write_with_bytes_input(graph: Path, out: Path) -> None:
    """Write a two-pass graph with (N, H, W, C) bytes in place of (N, C, H, W) floats in [0, 1].

    It is run beside the graph on random bytes, and kept if it gives the same.

    Args:
        graph: The file of a bundle.
        out: Where the other goes.

    Raises:
        GraphError: The graph is beyond the 2 GiB of one file.
        VerificationError: It does not run here, or gives something else.
    """
    model = ir.load(graph)
    ir.external_data.load_to_model(model)
    _prepend(model)
    save_graph(model, out)
    _compare(graph, out)


def _prepend(model: ir.Model) -> None:
    """Bytes / 255, channels first, before everything else, in place."""
    floats = model.graph.inputs[0]
    if len(model.graph.inputs) != 1 or floats.name != INPUT or floats.dtype != ir.DataType.FLOAT:
        raise GraphError(f"input {floats.name!r} is not {INPUT!r} of float32")
    batch, channels, height, width = shape_of(floats)
    readers = [(use.node, use.idx) for use in floats.uses()]
    floats.name = f"{INPUT}/floats"
    given = ir.Value(
        name=INPUT,
        shape=ir.Shape([batch, height, width, channels]),
        type=ir.TensorType(ir.DataType.UINT8),
    )
    g = Builder(opset=model.graph.opset_imports[""], prefix="bytes")
    numbers = g.of(given).op("Cast", to=int(ir.DataType.FLOAT), dtype=ir.DataType.FLOAT)
    image = (numbers / float(_WHITE)).transpose([0, 3, 1, 2]).value
    g.append_to(model.graph)
    for node, index in readers:
        node.replace_input_with(index, image)
    model.graph.inputs[0] = given
    model.graph.sort()


def _compare(graph: Path, out: Path) -> None:
    """Raise unless both give the same on random bytes."""
    try:
        given, floats = cpu_session(out), cpu_session(graph)
        _, height, width, channels = given.get_inputs()[0].shape
        x = np.random.default_rng(0).integers(0, _WHITE + 1, (_TRIED, height, width, channels), np.uint8)
        names = [output.name for output in floats.get_outputs()]
        got = given.run(names, {INPUT: x})
        want = floats.run(names, {INPUT: (x.transpose(0, 3, 1, 2) / np.float32(_WHITE)).astype(np.float32)})
    except Exception as error:  # onnxruntime has classes of its own, derived from nothing nearer
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise VerificationError(
            f"{graph.name} with an input of bytes cannot be checked in onnxruntime on this CPU: {reason}",
            hint="--triton-input float takes the graph as it is",
        ) from error
    for name, ours, theirs in zip(names, got, want, strict=True):
        scale = max(float(np.abs(theirs).max()), 1e-30)
        if not float(np.abs(ours - theirs).max()) <= _TOLERANCE * scale:
            raise VerificationError(f"{graph.name} with an input of bytes gives other {name}", hint=REPORT)
