"""What onnxruntime's integer kernels do on the processor that runs the tests."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime


def kernels_saturate() -> bool:
    """Whether onnxruntime adds products of unsigned and signed 8 bits in 16 bits here, as without VNNI."""
    product = onnx.helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = onnx.helper.make_graph(
        [product],
        "probe",
        [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [4, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [4, 16])],
        [onnx.numpy_helper.from_array(np.full((64, 16), 127, np.int8), "b")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"a": np.full((4, 64), 255, np.uint8)})
    return bool((y != 64 * 127 * 255).any())
