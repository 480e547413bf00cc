"""The small choices of the gradient rules, each against its alternative, in onnxruntime on one CPU thread.

    python benchmarks/lowerings.py

Process CPU time of graphs of a few nodes on ResNet-sized tensors, the alternatives interleaved; the ratio is
alternative / chosen, of the medians.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from measuring import machine, write_results
from onnx import TensorProto, helper, numpy_helper

N, C, H = 4, 64, 56
ROUNDS = 31
Array = np.ndarray[Any, Any]
node = helper.make_node


def session(
    nodes: list[onnx.NodeProto], inputs: dict[str, Array], constants: dict[str, Array]
) -> onnxruntime.InferenceSession:
    """A graph that ends in `y`, with a dynamic batch."""
    graph = helper.make_graph(
        nodes,
        "lowering",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *value.shape[1:]])
            for name, value in inputs.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def compare(
    forms: dict[str, list[onnx.NodeProto]], inputs: dict[str, Array], constants: dict[str, Array]
) -> dict[str, float]:
    """Median CPU milliseconds of each form; all must give the same result."""
    sessions = {name: session(nodes, inputs, constants) for name, nodes in forms.items()}
    results = [loaded.run(None, inputs)[0] for loaded in sessions.values()]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, loaded in sessions.items():
            started = time.process_time()
            loaded.run(None, inputs)
            times[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def relu_mask() -> dict[str, float]:
    """dy · 1[y > 0]."""
    rng = np.random.default_rng(0)
    inputs = {
        "dy": rng.normal(size=(N, C, 2 * H, 2 * H)).astype(np.float32),
        "r": np.maximum(rng.normal(size=(N, C, 2 * H, 2 * H)), 0).astype(np.float32),
    }
    mask = node("Greater", ["r", "zero"], ["m"])
    forms = {
        "Mul by Cast": [
            mask,
            node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
            node("Mul", ["dy", "f"], ["y"]),
        ],
        "Where": [mask, node("Where", ["m", "dy", "zero"], ["y"])],
    }
    return compare(forms, inputs, {"zero": np.zeros(1, np.float32)})


_PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))
_INTERLEAVING = {
    "thin": np.array([0, C, H, H, 1]),
    "row": np.array([0, C, H, 1, 2 * H]),
    "whole": np.array([0, C, 2 * H, 2 * H]),
}


def phases(rng: np.random.Generator) -> dict[str, Array]:
    """Four phases of an image of twice the size, by their places: ``p00`` to ``p11``."""
    return {f"p{i}{j}": rng.normal(size=(N, C, H, H)).astype(np.float32) for i, j in _PLACES}


def interleaved_as(name: str) -> list[onnx.NodeProto]:
    """The phases in their places, by Concat along one axis and then the other; reads _INTERLEAVING."""
    return [
        *(node("Reshape", [f"p{i}{j}", "thin"], [f"t{i}{j}"]) for i, j in _PLACES),
        *(node("Concat", [f"t{i}0", f"t{i}1"], [f"c{i}"], axis=4) for i in (0, 1)),
        *(node("Reshape", [f"c{i}", "row"], [f"r{i}"]) for i in (0, 1)),
        node("Concat", ["r0", "r1"], ["rows"], axis=3),
        node("Reshape", ["rows", "whole"], [name]),
    ]


def interleave() -> dict[str, float]:
    """Four phases into one image of twice the size, as after a stride of 2."""
    inputs = phases(np.random.default_rng(0))
    forms = {
        "Concat by axis": interleaved_as("y"),
        "DepthToSpace": [
            node("Concat", list(inputs), ["s"], axis=1),
            node("DepthToSpace", ["s"], ["y"], blocksize=2, mode="DCR"),
        ],
    }
    return compare(forms, inputs, _INTERLEAVING)


def shift() -> dict[str, float]:
    """One row and column in, one out: a tap of a max pool."""
    inputs = {"x": np.random.default_rng(0).normal(size=(N, C, H, H)).astype(np.float32)}
    forms = {
        "Pad by negative amounts": [node("Pad", ["x", "both"], ["y"])],
        "Slice and Pad": [
            node("Slice", ["x", "start", "end", "axes"], ["s"]),
            node("Pad", ["s", "begin"], ["y"]),
        ],
    }
    constants = {
        "both": np.array([0, 0, 1, 1, 0, 0, -1, -1]),
        "begin": np.array([0, 0, 1, 1, 0, 0, 0, 0]),
        "start": np.array([0, 0]),
        "end": np.array([H - 1, H - 1]),
        "axes": np.array([2, 3]),
    }
    return compare(forms, inputs, constants)


def spread() -> dict[str, float]:
    """Every element followed by a zero, along both axes: a stride of 2 on the way back."""
    inputs = {"x": np.random.default_rng(0).normal(size=(N, C, H, H)).astype(np.float32)}
    forms = {
        "1x1 ConvTranspose": [
            node("ConvTranspose", ["x", "ones"], ["y"], strides=[2, 2], output_padding=[1, 1], group=C)
        ],
        "Resize and Mul": [
            node(
                "Resize",
                ["x", "", "scales"],
                ["r"],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            ),
            node("Mul", ["r", "corner"], ["y"]),
        ],
    }
    constants = {
        "ones": np.ones((C, 1, 1, 1), np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "corner": np.tile(np.array([[1, 0], [0, 0]], np.float32), (1, 1, H, H)),
    }
    return compare(forms, inputs, constants)


def depthwise() -> dict[str, float]:
    """The gradient of a depthwise convolution at stride 1; a symmetric kernel need not be flipped."""
    inputs = {"x": np.random.default_rng(0).normal(size=(N, C, H, H)).astype(np.float32)}
    forms = {
        "Conv": [node("Conv", ["x", "w"], ["y"], pads=[1] * 4, group=C)],
        "ConvTranspose": [node("ConvTranspose", ["x", "w"], ["y"], pads=[1] * 4, group=C)],
    }
    return compare(forms, inputs, {"w": np.ones((C, 1, 3, 3), np.float32)})


def step() -> dict[str, float]:
    """1[y > 0] between two convolutions, which keep the blocked layout."""
    inputs = {"x": np.random.default_rng(0).normal(size=(N, C, H, H)).astype(np.float32)}
    before = node("Conv", ["x", "eye"], ["a"])
    relu = node("Relu", ["a"], ["r"])
    after = node("Conv", ["m", "eye"], ["y"])
    forms = {
        "Conv and Clip": [
            before,
            relu,
            node("Conv", ["r", "huge"], ["h"], group=C),
            node("Clip", ["h", "zero", "one"], ["m"]),
            after,
        ],
        "Greater and Cast": [
            before,
            relu,
            node("Greater", ["r", "zero"], ["g"]),
            node("Cast", ["g"], ["m"], to=TensorProto.FLOAT),
            after,
        ],
    }
    constants = {
        "eye": np.eye(C, dtype=np.float32).reshape(C, C, 1, 1),
        "huge": np.full((C, 1, 1, 1), 2.0**90, np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
    }
    return compare(forms, inputs, constants)


def every_stride() -> dict[str, float]:
    """Every second element along both axes, from the second one on, in the blocked layout: a pool's tap."""
    inputs = {"x": np.random.default_rng(0).normal(size=(N, C, 2 * H, 2 * H)).astype(np.float32)}
    before = node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1])
    forms = {
        "depthwise Conv": [before, node("Conv", ["a", "last"], ["y"], strides=[2, 2], group=C)],
        "Slice": [before, node("Slice", ["a", "start", "end", "axes", "steps"], ["y"])],
    }
    constants = {
        "last": np.tile(np.array([[0, 0], [0, 1]], np.float32), (C, 1, 1, 1)),
        "start": np.array([1, 1]),
        "end": np.array([2 * H, 2 * H]),
        "axes": np.array([2, 3]),
        "steps": np.array([2, 2]),
    }
    return compare(forms, inputs, constants)


def affine() -> dict[str, float]:
    """A BatchNorm behind a Concat, left as an affine of each channel, and its ReLU."""
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(N, C // 2, H, H)).astype(np.float32)}
    before = [
        node("Conv", ["x", "first"], ["half"]),
        node("Conv", ["half", "second"], ["other"]),
        node("Concat", ["half", "other"], ["a"], axis=1),
    ]
    after = [node("Relu", ["b"], ["r"]), node("Conv", ["r", "eye"], ["y"])]
    forms = {
        "depthwise Conv": [*before, node("Conv", ["a", "weight", "bias"], ["b"], group=C), *after],
        "Mul and Add": [
            *before,
            node("Mul", ["a", "scale"], ["m"]),
            node("Add", ["m", "offset"], ["b"]),
            *after,
        ],
    }
    scale, bias = rng.normal(size=C).astype(np.float32), rng.normal(size=C).astype(np.float32)
    half = np.eye(C // 2, dtype=np.float32).reshape(C // 2, C // 2, 1, 1)
    constants = {
        "eye": np.eye(C, dtype=np.float32).reshape(C, C, 1, 1),
        "first": half,
        "second": 2 * half,
        "weight": scale.reshape(C, 1, 1, 1),
        "bias": bias,
        "scale": scale.reshape(1, C, 1, 1),
        "offset": bias.reshape(1, C, 1, 1),
    }
    return compare(forms, inputs, constants)


def groups() -> dict[str, float]:
    """A 3x3 convolution in groups of 8 channels, between two of 1x1."""
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(N, C, H, H)).astype(np.float32)}
    narrow = rng.normal(size=(C, 8, 3, 3)).astype(np.float32) / 10
    wide = np.zeros((C, 16, 3, 3), np.float32)
    for channel in range(C):
        at = channel % 16 // 8 * 8
        wide[channel, at : at + 8] = narrow[channel]
    before, after = node("Conv", ["x", "eye"], ["a"]), node("Conv", ["b", "eye"], ["y"])
    forms = {
        "groups of 16, half zeros": [
            before,
            node("Conv", ["a", "wide"], ["b"], group=C // 16, pads=[1] * 4),
            after,
        ],
        "groups of 8": [before, node("Conv", ["a", "narrow"], ["b"], group=C // 8, pads=[1] * 4), after],
    }
    eye = np.eye(C, dtype=np.float32).reshape(C, C, 1, 1)
    return compare(forms, inputs, {"eye": eye, "narrow": narrow, "wide": wide})


def stem() -> dict[str, float]:
    """The gradient of a 7x7 convolution with stride 2, of 3 channels, at four phases of its output's."""
    rng = np.random.default_rng(0)
    inputs = phases(rng)
    apart = [
        node(
            "ConvTranspose",
            [f"p{i}{j}", "w"],
            [f"d{i}{j}"],
            strides=[4, 4],
            pads=[3 - 2 * i, 3 - 2 * j, 2 * i, 2 * j],
        )
        for i, j in _PLACES
    ]
    forms = {
        "each phase by itself": [
            *apart,
            node("Add", ["d00", "d01"], ["s0"]),
            node("Add", ["s0", "d10"], ["s1"]),
            node("Add", ["s1", "d11"], ["y"]),
        ],
        "interleaved": [
            *interleaved_as("a"),
            node("ConvTranspose", ["a", "w"], ["y"], strides=[2, 2], pads=[3] * 4, output_padding=[1, 1]),
        ],
    }
    w = rng.normal(size=(C, 3, 7, 7)).astype(np.float32) / 10
    return compare(forms, inputs, {**_INTERLEAVING, "w": w})


def main() -> None:
    """Print and write all comparisons."""
    rows = {
        "ReLU mask": relu_mask(),
        "blocked step": step(),
        "interleave": interleave(),
        "shift": shift(),
        "spread": spread(),
        "depthwise": depthwise(),
        "every stride": every_stride(),
        "affine": affine(),
        "groups": groups(),
        "stem": stem(),
    }
    for what, times in rows.items():
        (chosen, best), (other, worse) = times.items()
        print(f"{what:<14}{chosen:<26}{best:6.2f} ms   {other:<18}{worse:6.2f} ms   × {worse / best:.2f}")
    write_results(
        Path(__file__).parent / "results" / "lowerings.json",
        {"machine": machine(), "shape": [N, C, H, H], "milliseconds": rows},
    )


if __name__ == "__main__":
    main()
