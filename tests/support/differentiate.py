"""Build small graphs and check their gradients, two ways that share nothing with the rules.

``check``: the emitted gradient (onnxruntime, float32) against central differences of the forward graph in
float64 (ONNX's reference evaluator), on random projections: ⟨dy, (f(x + hv) − f(x − hv)) / 2h⟩ = ⟨dx, v⟩.
Tests of operators that PyTorch has compare with its float64 autograd besides, element by element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from sad_export.gradient import reverse, without_rule
from sad_export.loading import normalise
from sad_export.lowering import Portable, lowering_for
from sad_runtime.choices import ConvGradient, Precision, Target

Array = np.ndarray[Any, Any]
OPSET = 20


def node(
    op_type: str, inputs: Sequence[str] = ("x",), outputs: Sequence[str] = ("y",), **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), list(outputs), **attributes)


def forward_model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: dict[str, Array] | None = None,
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """x → y through ``nodes``; constants become initializers, float64 in the model's type."""
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    initializers = [
        numpy_helper.from_array(array.astype(numpy_dtype) if array.dtype == np.float64 else array, name)
        for name, array in (constants or {}).items()
    ]
    graph = helper.make_graph(
        list(nodes),
        "forward",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return inferred


def graph_of(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str], constants: dict[str, Array] | None = None
) -> ir.Graph:
    """The graph of ``nodes`` in normal form."""
    model = ir.from_proto(forward_model(nodes, shape, constants))
    normalise(model)
    return model.graph


def gradient_model(
    forward: onnx.ModelProto, *, conv_gradient: str = "auto", target: str = "portable"
) -> onnx.ModelProto:
    """x, dy → y, dx.

    Args:
        forward: x → y.
        conv_gradient: As on the command line; or ``auto-fp16``, that of a graph that is lowered to fp16.
        target: Likewise; or ``int8``, that of a graph that is lowered to integers on the CPU.
    """
    model = ir.from_proto(forward)
    normalise(model)
    lowering = lowering_for(
        Target.CPU if target == "int8" else Target(target),
        ConvGradient(conv_gradient.removesuffix("-fp16")),
        precision={"int8": Precision.INT8}.get(target, Precision.FP32),
        saliency=Precision.FP16 if conv_gradient == "auto-fp16" else None,
    )
    lowering.prepare(model)
    graph = model.graph
    x, y = graph.inputs[0], graph.outputs[0]
    opset = graph.opset_imports[""]
    assert without_rule(Portable(opset=opset), list(graph), x, y) == []
    dy = ir.Value(name="dy", shape=y.shape, type=y.type)
    graph.inputs.append(dy)
    g = lowering.writer(opset=opset)
    dx = reverse(g, list(graph), {y: g.of(dy)}, x)
    g.append_to(graph)
    graph.outputs.append(dx)
    lowering.complete(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def run(model: onnx.ModelProto, **feeds: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def gradient(
    nodes: Sequence[onnx.NodeProto],
    x: Array,
    dy: Array,
    constants: dict[str, Array] | None = None,
    **options: Any,
) -> Array:
    """dx of ``nodes``, with the batch dynamic."""
    form = {name: options.pop(name) for name in ("conv_gradient", "target") if name in options}
    model = gradient_model(forward_model(nodes, ["N", *x.shape[1:]], constants, **options), **form)
    return run(model, x=x.astype(np.float32), dy=dy.astype(np.float32))[1]


def check(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    constants: dict[str, Array] | None = None,
    *,
    seed: int = 0,
    x: Array | None = None,
    **options: Any,
) -> None:
    """Assert that dx agrees with central differences on four random directions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) if x is None else x
    x = x.astype(np.float32).astype(np.float64)
    opset = options.get("opset", OPSET)
    reference = ReferenceEvaluator(
        forward_model(nodes, ["N", *shape[1:]], constants, dtype=TensorProto.DOUBLE, opset=opset)
    )

    def f(at: Array) -> Array:
        value: Array = reference.run(None, {"x": at})[0]
        return value

    y = f(x)
    dy = rng.normal(size=y.shape).astype(np.float32)
    dx = gradient(nodes, x, dy, constants, **options).astype(np.float64)
    assert dx.shape == x.shape
    h = 1e-6
    scale = np.linalg.norm(dx) + 1e-6
    for _ in range(4):
        v = rng.normal(size=x.shape)
        v /= np.linalg.norm(v)
        numeric = float((dy * (f(x + h * v) - f(x - h * v))).sum() / (2 * h))
        assert abs(numeric - float((dx * v).sum())) <= 2e-5 * scale, (numeric, float((dx * v).sum()))


def cosines(got: Array, want: Array) -> Array:
    """Cosine of the angle between two arrays, by image."""
    a, b = got.reshape(len(got), -1), want.reshape(len(want), -1)
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))
