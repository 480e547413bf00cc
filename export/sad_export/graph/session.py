"""onnxruntime sessions on the CPU, for what a graph computes: checks, ranges, scales."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from .write import LARGEST_WEIGHTS, to_proto, weight_bytes


def cpu_session(graph: Path | ir.Model, *, fuses_integers: bool = True) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU.

    Args:
        graph: An ONNX file, or what one would hold; beyond 2 GiB it goes by way of a temporary file.
        fuses_integers: Whether layers between QuantizeLinear and DequantizeLinear run in integers, as in use,
            or in float32: with signed activations, as TensorRT wants them, integers take six times as long.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is an error is raised, too
    if not fuses_integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory() as folder:
        source = _source(graph, Path(folder))
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _source(graph: Path | ir.Model, folder: Path) -> str | bytes:
    if isinstance(graph, Path):
        return str(graph)
    if weight_bytes(graph) <= LARGEST_WEIGHTS:
        content: bytes = to_proto(graph).SerializeToString()
        return content
    ir.save(graph, folder / "model.onnx", external_data="model.data")
    return str(folder / "model.onnx")
