"""The version of the standard operators that a graph is written in, and bringing an older graph up to one."""

from __future__ import annotations

import onnx.version_converter
import onnx_ir as ir

from .errors import GraphError
from .write import to_proto

MINIMUM_OPSET = 13
"""ReduceSum and Squeeze take their axes as inputs from here on, and so do the gradients."""

INITIALIZERS_ALONE = 4
"""The version of ONNX's format from which on an initializer need not be an input."""

BF16_OPSET = 22
"""Conv, the pools and most activations take bf16 from here on."""


def brought_to(model: ir.Model, least: int) -> ir.Model:
    """The same model in opset ``least``, or as it is where its opset is no older, by onnx's own converter.

    Args:
        model: Without functions of its own: the converter does not look into them.
        least: Version of the default domain.

    Raises:
        GraphError: The converter refuses.
    """
    have = model.graph.opset_imports.get("", 0)
    if have >= least:
        return model
    # Before it, every initializer is an input; onnxruntime reads files where they are not all the same.
    model.ir_version = max(model.ir_version, INITIALIZERS_ALONE)
    try:
        return ir.from_proto(onnx.version_converter.convert_version(to_proto(model), least))
    except Exception as error:  # a plain RuntimeError out of the converter's C++
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise GraphError(
            f"the graph is of opset {have} and cannot be brought to opset {least}: {reason}",
            hint=f"export the classifier with opset {least} or newer",
        ) from error
