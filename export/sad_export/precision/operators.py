"""What the operators allow and need, by name."""

from __future__ import annotations

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

NOT_IN_BF16 = frozenset(
    {
        *("ConvTranspose", "HardSwish", "Mish"),
        *("Compress", "Einsum", "OneHot", "ReverseSequence", "Scatter", "Shrink", "TopK", "Upsample"),
    }
)
"""TensorRT has no bf16 kernels for the first three, the standard no bf16 in the others (in TopK from 24)."""

MAXIMA = frozenset({"MaxPool", "Max", "Min", "ReduceMax", "ReduceMin", "TopK"})
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

WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Add their third input to sums of products."""

FLOAT32_INPUTS_FROM = {"Resize": 1, "Upsample": 1}
"""Inputs from this one on are float32 whatever the first one is."""
