"""One network of a node or two for every operator that has a gradient rule."""

from __future__ import annotations

import numpy as np
import onnx

from sad_export.graph.opset import MINIMUM_OPSET

from .differentiate import node

RNG = np.random.default_rng(41)
SHAPE = ["N", 4, 6, 6]
NEWEST = onnx.defs.onnx_opset_version()


def positive(*shape: int) -> np.ndarray:
    array: np.ndarray = RNG.uniform(0.5, 1.5, size=shape)
    return array


def ints(*values: int) -> np.ndarray:
    return np.array(values)


UNARY = (
    "Relu LeakyRelu Elu Selu Celu ThresholdedRelu Shrink Sigmoid HardSigmoid HardSwish Softplus Softsign Tanh"
)
UNARY += (
    " Erf Gelu Mish Swish Softmax LogSoftmax Abs Exp Log Sqrt Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh"
)
UNARY += " Asinh Acosh Atanh Neg Identity Dropout GlobalAveragePool GlobalMaxPool GlobalLpPool Trilu Flatten"
REDUCTIONS = "ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp ReduceProd"
REDUCTIONS += " ReduceMean"
AFFINE = {"s": positive(4), "b": positive(4)}

Case = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]
CASES: dict[str, Case] = {op_type: ([node(op_type)], {}) for op_type in UNARY.split()}
CASES |= {
    "Gelu, tanh": ([node("Gelu", approximate="tanh")], {}),
    "Clip": ([node("Clip", ["x", "low"])], {"low": np.array(0.7)}),
    "PRelu": ([node("PRelu", ["x", "s"])], {"s": positive(4, 1, 1)}),
    "Cast": ([node("Cast", to=1)], {}),
    "CastLike": ([node("CastLike", ["x", "s"])], {"s": positive(1)}),
    "CumSum": ([node("CumSum", ["x", "a"])], {"a": np.array(2)}),
    "Pow": ([node("Pow", ["x", "e"])], {"e": np.array([2.5])}),
    "Mod": ([node("Mod", ["x", "e"], fmod=1)], {"e": np.array([0.7])}),
    "Where": (
        [node("Greater", ["x", "s"], ["c"]), node("Sin", ["x"], ["z"]), node("Where", ["c", "x", "z"])],
        {"s": np.array([1.0])},
    ),
    "ReduceSum": ([node("ReduceSum", ["x", "a"], keepdims=0)], {"a": ints(2, 3)}),
    "Squeeze": ([node("Unsqueeze", ["x", "a"], ["u"]), node("Squeeze", ["u", "a"])], {"a": ints(1)}),
    "Reshape": ([node("Reshape", ["x", "t"])], {"t": ints(-1, 36)}),
    "Transpose": ([node("Transpose", perm=[0, 2, 3, 1])], {}),
    "Expand": ([node("Expand", ["x", "t"])], {"t": ints(2, 1, 1, 1, 1)}),
    "Tile": ([node("Tile", ["x", "t"])], {"t": ints(1, 2, 1, 3)}),
    "Concat": ([node("Sin", ["x"], ["s"]), node("Concat", ["x", "s"], axis=1)], {}),
    "DepthToSpace": ([node("DepthToSpace", blocksize=2, mode="CRD")], {}),
    "SpaceToDepth": ([node("SpaceToDepth", blocksize=2)], {}),
    "Gather": ([node("Gather", ["x", "i"], axis=2)], {"i": ints(2, 0, 5, 1, 3, 3, 0, 1)}),
    "GatherElements": (
        [node("ArgMax", ["x"], ["i"], axis=3, keepdims=1), node("GatherElements", ["x", "i"], axis=3)],
        {},
    ),
    "GatherND": (
        [node("Transpose", ["x"], ["t"], perm=[2, 3, 0, 1]), node("GatherND", ["t", "i"])],
        {"i": RNG.integers(0, 6, size=(5, 3, 2))},
    ),
    "Slice": (
        [node("Slice", ["x", "s", "e", "a", "t"])],
        {"s": ints(5, 1), "e": ints(-100, 6), "a": ints(3, 2), "t": ints(-2, 2)},
    ),
    "Split": (
        [node("Split", ["x", "n"], ["p", "q"], axis=1), node("Mul", ["p", "q"])],
        {"n": ints(2, 2)},
    ),
    "Einsum": ([node("Einsum", ["x", "w"], equation="nChw,Cd->ndhw")], {"w": positive(4, 5)}),
    "MatMul": ([node("MatMul", ["x", "w"])], {"w": positive(6)}),
    "Gemm": ([node("Flatten", ["x"], ["f"]), node("Gemm", ["f", "w"])], {"w": positive(144, 5)}),
    "Conv": ([node("Conv", ["x", "w"], strides=[2, 2])], {"w": positive(3, 4, 3, 3)}),
    "ConvTranspose": ([node("ConvTranspose", ["x", "w"], strides=[2, 2])], {"w": positive(4, 3, 3, 3)}),
    "MaxPool": ([node("MaxPool", kernel_shape=[3, 3], strides=[2, 2])], {}),
    "AveragePool": ([node("AveragePool", kernel_shape=[3, 3], strides=[2, 2])], {}),
    "LpPool": ([node("LpPool", kernel_shape=[3, 3], strides=[2, 2])], {}),
    "BatchNormalization": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"])],
        {**AFFINE, "m": positive(4), "v": positive(4)},
    ),
    "InstanceNormalization": ([node("InstanceNormalization", ["x", "s", "b"])], AFFINE),
    "GroupNormalization": ([node("GroupNormalization", ["x", "s", "b"], num_groups=2)], AFFINE),
    "LayerNormalization": ([node("LayerNormalization", ["x", "s"])], {"s": positive(6)}),
    "RMSNormalization": ([node("RMSNormalization", ["x", "s"])], {"s": positive(6)}),
    "LpNormalization": ([node("LpNormalization", axis=1)], {}),
    "LRN": ([node("LRN", size=3)], {}),
    "QuantizeLinear": (
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"])],
        {"s": np.array(0.02), "z": np.array(0, dtype=np.int8)},
    ),
}
CASES |= {op: ([node(op, ["x", "s"])], {"s": positive(4, 1, 1)}) for op in ("Add", "Sub", "Mul", "Div")}
CASES |= {op: ([node("Sin", ["x"], ["s"]), node(op, ["x", "s"])], {}) for op in ("Max", "Min", "Mean", "Sum")}
CASES |= {op: ([node(op, ["x", "a"], keepdims=0)], {"a": ints(2, 3)}) for op in REDUCTIONS.split()}
for mode in ("constant", "reflect", "edge", "wrap"):
    CASES[f"Pad, {mode}"] = ([node("Pad", ["x", "p"], mode=mode)], {"p": ints(0, 0, 2, 1, 0, 0, 1, 2)})
for mode in ("nearest", "linear", "cubic"):
    scales = np.array([1, 1, 2, 1.5], dtype=np.float32)
    CASES[f"Resize, {mode}"] = ([node("Resize", ["x", "", "s"], mode=mode)], {"s": scales})

EARLIEST = {
    "Swish": 24,
    "RMSNormalization": 23,
    "GroupNormalization": 21,
    "Gelu": 20,
    "Gelu, tanh": 20,
    "Mish": 18,
}
EARLIEST |= {"Pad, wrap": 19, "LayerNormalization": 17, "CastLike": 15, "HardSwish": 14, "Trilu": 14}
EARLIEST |= dict.fromkeys(REDUCTIONS.split(), 18)  # before, axes are an attribute: test_reduction


def opsets(case: str) -> tuple[int, int]:
    return max(MINIMUM_OPSET, EARLIEST.get(case, 0)), NEWEST
