"""ONNX in, ONNX and engines out: input gradient, two-pass graph, verification, TensorRT build.

May import onnx, onnx-ir, numpy and ``sad_runtime``; never torch.
"""

from .attack_graph import attack_graph
from .attributed import attribution_graph
from .defend import ForwardExport, defend
from .graph.errors import GraphError
from .input_gradient import input_gradient, unsupported_nodes
from .job import GraphOptions
from .tensorrt import BuildOptions, EngineCache, EngineInfo, EngineRequest, build_engine
from .two_pass import two_pass
from .verify import VerificationError
from .write_attack import write_attack
from .write_gradient import GradientExport, write_gradient

__all__ = [
    "BuildOptions",
    "EngineCache",
    "EngineInfo",
    "EngineRequest",
    "ForwardExport",
    "GradientExport",
    "GraphError",
    "GraphOptions",
    "VerificationError",
    "attack_graph",
    "attribution_graph",
    "build_engine",
    "defend",
    "input_gradient",
    "two_pass",
    "unsupported_nodes",
    "write_attack",
    "write_gradient",
]
