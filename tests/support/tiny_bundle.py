"""A real bundle small enough for every test: a linear classifier as a two-pass graph, and in numpy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sad_runtime.bundle import Bundle, Draft, write_bundle
from sad_runtime.manifest import (
    Color,
    Defence,
    Graph,
    InputSpace,
    Manifest,
    ModelSource,
    Preprocessing,
)
from sad_runtime.verification.references import REFERENCES, write_references
from sad_runtime.verification.samples import SAMPLES

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class LinearModel:
    """Logits W x + b of the flattened network input; its saliency is the winning row of W."""

    weight: Array  # (K, C, H, W)
    bias: Array  # (K,)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eta: float

    def network_input(self, images: Array) -> npt.NDArray[np.float64]:
        mean = np.array(self.mean)[:, None, None]
        return (images - mean) / np.array(self.std)[:, None, None]

    def logits(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.einsum("nchw,kchw->nk", x, self.weight.astype(np.float64)) + self.bias

    def two_pass(self, images: Array) -> tuple[npt.NDArray[np.float64], ...]:
        """(logits, saliency, plain_logits), in float64."""
        x = self.network_input(images)
        plain = self.logits(x)
        saliency = self.weight[plain.argmax(axis=1)].astype(np.float64)
        return self.logits(x + self.eta * saliency), saliency, plain


def linear_model(shape: tuple[int, int, int] = (3, 8, 8), classes: int = 4, *, seed: int = 0) -> LinearModel:
    rng = np.random.default_rng(seed)
    channels = shape[0]
    return LinearModel(
        weight=rng.normal(size=(classes, *shape)).astype(np.float32),
        bias=rng.normal(size=classes).astype(np.float32),
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        eta=0.3,
    )


def two_pass_graph(model: LinearModel, *, nan_on_black: bool = False) -> onnx.ModelProto:
    """The graph of ``contract``: image → logits, saliency, plain_logits.

    With ``nan_on_black`` an image without any light has NaN logits: 0 · log(brightest pixel).
    """
    classes, channels, height, width = model.weight.shape
    per_channel = (1, channels, 1, 1)
    constants = {
        "mean": np.array(model.mean, np.float32).reshape(per_channel),
        "std": np.array(model.std, np.float32).reshape(per_channel),
        "weight": model.weight.reshape(classes, -1),
        "bias": model.bias,
        "eta": np.array([model.eta], np.float32),
        "flat": np.array([0, -1], np.int64),
        "deep": np.array([0, channels, height, width], np.int64),
        "zero": np.array([0], np.float32),
    }
    node = helper.make_node
    first_logits = "plain_logits"
    nodes = [
        node("Sub", ["image", "mean"], ["centred"]),
        node("Div", ["centred", "std"], ["x"]),
        node("Reshape", ["x", "flat"], ["x_flat"]),
        node("Gemm", ["x_flat", "weight", "bias"], [first_logits], transB=1),
        node("ArgMax", [first_logits], ["winner"], axis=1, keepdims=0),
        node("Gather", ["weight", "winner"], ["s_flat"], axis=0),
        node("Reshape", ["s_flat", "deep"], ["saliency"]),
        node("Mul", ["s_flat", "eta"], ["step"]),
        node("Add", ["x_flat", "step"], ["x2"]),
        node("Gemm", ["x2", "weight", "bias"], ["clean"], transB=1),
    ]
    if nan_on_black:
        nodes += [
            node("ReduceMax", ["image"], ["brightest"], axes=[1, 2, 3], keepdims=0),
            node("Log", ["brightest"], ["log"]),
            node("Mul", ["log", "zero"], ["poison"]),
            node("Unsqueeze", ["poison", "axis"], ["column"]),
            node("Add", ["clean", "column"], ["logits"]),
        ]
        constants["axis"] = np.array([1], np.int64)
    else:
        nodes.append(node("Identity", ["clean"], ["logits"]))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "two_pass",
        [info("image", TensorProto.FLOAT, ["N", channels, height, width])],
        [
            info("logits", TensorProto.FLOAT, ["N", classes]),
            info("saliency", TensorProto.FLOAT, ["N", channels, height, width]),
            info("plain_logits", TensorProto.FLOAT, ["N", classes]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(onnx_model)
    return onnx_model


def manifest_of(model: LinearModel, *, graphs: tuple[Graph, ...] = ()) -> Manifest:
    classes, channels, height, width = model.weight.shape
    return Manifest(
        model=ModelSource("tests.linear", classes),
        classes=tuple(f"class {k}" for k in range(classes)),
        preprocessing=Preprocessing(
            color=Color.RGB if channels == 3 else Color.GRAY, resize=min(height, width), crop=(height, width)
        ),
        input_space=InputSpace(model.mean, model.std),
        defence=Defence(model.eta),
        calibration={"samples": 64, "clean_accuracy": {"before": 0.75, "after": 0.7}},
        graphs=graphs,
    )


def write_tiny_bundle(
    folder: Path,
    model: LinearModel,
    *,
    exported: bool = True,
    nan_on_black: bool = False,
    references: int = 0,
    graph: onnx.ModelProto | None = None,
) -> Path:
    """Write a bundle, with its graph unless ``exported`` is false; returns its folder.

    With ``references`` images and what the model, computed in numpy, says of them; ``graph`` is another one
    than the model's.
    """
    with write_bundle(folder) as draft:
        draft.path("weights.safetensors").write_bytes(model.weight.tobytes())
        graphs: tuple[Graph, ...] = ()
        if exported:
            graph = graph or two_pass_graph(model, nan_on_black=nan_on_black)
            onnx.save(graph, draft.path("model.onnx"))
            graphs = (Graph("model.onnx", "fp32", "auto", "portable", {"label_agreement": 1.0}),)
        if references:
            images = sample_images(model, references)
            np.savez_compressed(draft.path(SAMPLES), images=images)
            outputs = model.two_pass(images.astype(np.float32) / np.float32(255))
            named = dict(zip(("logits", "saliency", "plain_logits"), outputs, strict=True))
            write_references(draft.path(REFERENCES), named)
        draft.manifest = manifest_of(model, graphs=graphs)
    return folder


def sample_images(model: LinearModel, count: int) -> npt.NDArray[np.uint8]:
    """Noise of which the model says something else of every few images."""
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (count, *model.weight.shape[1:]), dtype=np.uint8)


@contextlib.contextmanager
def changed(folder: Path, **fields: object) -> Iterator[Draft]:
    """A bundle written again with all its files, and some fields of its manifest; more files may be added."""
    bundle = Bundle.open(folder)
    with write_bundle(folder) as draft:
        draft.keep(bundle, *bundle.manifest.files)
        draft.manifest = dataclasses.replace(bundle.manifest, files={}, **fields)  # type: ignore[arg-type]
        yield draft
