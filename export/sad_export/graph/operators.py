"""Everything that is known of operators, by name: what they compute, and what types and layouts they keep.

Each operator that a rule or lowering writes is of one kind. It moves or selects elements (:data:`EXACT`,
:data:`PLACING`, :data:`MAXIMA`), computes them one by one (:data:`POINTWISE`), sums a few products
(:data:`LINEAR`) or many elements (:data:`SUMS`), gives booleans or indices (:data:`DISCRETE`), or exists for
float32 only. An operator that is in none of these stays float32 when a graph is lowered.
"""

from __future__ import annotations

# Kinds

SUMS = frozenset(
    {
        *("Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "CumSum", "GlobalAveragePool", "GlobalLpPool"),
        *("LpPool", "LpNormalization", "LayerNormalization", "RMSNormalization", "InstanceNormalization"),
        *("GroupNormalization", "MeanVarianceNormalization", "LRN"),
    }
)
"""Sums over many elements."""

FLOAT32_ONLY = frozenset(
    {
        *(
            "QuantizeLinear",
            "DequantizeLinear",
            "DynamicQuantizeLinear",
            "ConstantOfShape",
            "Celu",
            "EyeLike",
        ),
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        "RandomUniformLike",
    }
)
"""Only for float32 in the standard, or typed by an attribute, or by a scale that must stay fine."""

POINTWISE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Sum", "Mean", "PRelu", "BatchNormalization", "Cast"),
        *("CastLike", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Sin", "Sinh", "Tan"),
        *("Tanh", "Exp", "Log", "Sqrt", "Reciprocal", "Erf", "Sigmoid", "HardSigmoid", "HardSwish", "Elu"),
        *("Selu", "Gelu", "LeakyRelu", "Mish", "Shrink", "Softplus", "Softsign", "Swish", "ThresholdedRelu"),
        *("Floor", "Ceil", "Round", "Hardmax"),
    }
)
"""Compute each element from those at its place, rounded as they are stored."""

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "AveragePool", "Resize", "Upsample"})
"""Sums of products, which runtimes add up in float32."""

DISCRETE = frozenset(
    {
        *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or"),
        *("Xor", "ArgMax", "ArgMin", "NonZero", "Shape", "Size"),
    }
)
"""Give booleans, indices or sizes."""

# Types

NOT_IN_BF16 = frozenset(
    {
        *("ConvTranspose", "HardSwish", "Mish"),
        *("Compress", "Einsum", "OneHot", "ReverseSequence", "Scatter", "Shrink", "TopK", "Upsample"),
    }
)
"""TensorRT has no bf16 kernels for the first three, the standard no bf16 in the others (in TopK from 24)."""

PLACING = frozenset(
    {"Compress", "OneHot", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND", "Trilu"}
)
"""Move or select elements as well; that their outputs are rounded again changes nothing."""

MAXIMA = frozenset({"GlobalMaxPool", "MaxPool", "Max", "Min", "ReduceMax", "ReduceMin", "TopK"})
"""Choose one of their inputs' elements, which a gradient then has to find again."""

EXACT = frozenset(
    {
        *("Abs", "ArgMax", "Clip", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather"),
        *("GatherElements", "GatherND", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "Relu", "Reshape"),
        *("Sign", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze"),
        "Where",
    }
)
"""Give rounded outputs for rounded inputs: they move, select or compare."""

# Places of inputs

WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Add their third input to sums of products."""

FLOAT32_INPUTS_FROM = {"Resize": 1, "Upsample": 1}
"""Inputs from this one on are float32 whatever the first one is."""

BOOLEAN = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "And", "Or", "Xor", "Not"})
"""Comparisons and logic."""

BROADCASTING = BOOLEAN | {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where"}
"""Broadcast their inputs."""

# Layouts of integers, and of onnxruntime's convolutions

MOVING_CODES = frozenset(
    {
        *("Concat", "DepthToSpace", "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice"),
        *("SpaceToDepth", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
"""Move 8-bit codes as they move numbers."""

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""Have integer kernels with weights."""

AVERAGES = frozenset({"AveragePool", "GlobalAveragePool"})
"""Have integer kernels without."""

ENTERING_NCHWC = frozenset({"Conv", "MaxPool", "AveragePool"})
"""Enter onnxruntime's NCHWc layout by themselves; its NchwcTransformer, as of 1.31."""

KEEPING_NCHWC = frozenset(
    {
        *("Add", "Sum", "Mul", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "BatchNormalization"),
        *("Concat", "GlobalAveragePool", "Resize"),
    }
)
"""Keep the layout, if all their inputs have it."""

# Values that are not to be computed beforehand

RANDOM = frozenset(
    {
        *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"),
        "Bernoulli",
    }
)
"""Give other numbers each time."""

CLASSIFIED = SUMS | FLOAT32_ONLY | EXACT | PLACING | MAXIMA | POINTWISE | LINEAR | DISCRETE
"""All whose kind is known."""
