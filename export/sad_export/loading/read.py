"""Read an ONNX file or model into a private copy, with its weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from sad_runtime.errors import UserError

from ..graph.errors import GraphError


def read(model: onnx.ModelProto | str | Path) -> ir.Model:
    """The model, to be changed at will.

    Raises:
        GraphError: There is no such file, it cannot be read, or weights are missing.
    """
    try:
        if isinstance(model, onnx.ModelProto):
            copied = onnx.ModelProto()  # a tensor of onnx-ir writes a new name into the message that it is of
            copied.CopyFrom(model)
            return ir.from_proto(copied)
        path = Path(model)
        if not path.is_file():
            raise GraphError(f"there is no ONNX file {path}")
        loaded = ir.load(path)
        _check_external_data(loaded, path.parent)
        # What is made of the graph is one file of its own, wherever it is written.
        ir.external_data.load_to_model(loaded)
    except UserError:
        raise
    except Exception as error:  # protobuf and onnx-ir raise their own kinds on broken files
        raise GraphError(f"{name_of(model)} is not a readable ONNX model: {error}") from error
    return loaded


def name_of(model: onnx.ModelProto | str | Path) -> str:
    """What messages call it."""
    return f"graph {model.graph.name!r}" if isinstance(model, onnx.ModelProto) else str(model)


def _check_external_data(model: ir.Model, folder: Path) -> None:
    """Refuse weights that are missing or lie outside the model's folder."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            path = (folder / str(tensor.location)).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise GraphError(f"weight {value.name!r} lies outside the model's folder: {tensor.location}")
            if not path.is_file():
                raise GraphError(f"weight {value.name!r} is missing: there is no file {path}")
