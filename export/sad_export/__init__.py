"""ONNX in, ONNX and engines out: input gradient, two-pass graph, verification, TensorRT build.

May import onnx, onnx-ir, numpy and ``sad_runtime``; never torch.
"""

from .input_gradient import input_gradient, unsupported_nodes
from .model import GraphError
from .tensorrt import EngineInfo, build_engine
from .two_pass import two_pass

__all__ = ["EngineInfo", "GraphError", "build_engine", "input_gradient", "two_pass", "unsupported_nodes"]
