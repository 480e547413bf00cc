"""``config.pbtxt``: what Triton reads of a model (its ``ModelConfig``), in protobuf's text form.

A message is a dict, a repeated field a list, an enum a :class:`Word`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sad_runtime.backends.protocol import INPUT, LOGITS, PLAIN_LOGITS, SALIENCY
from sad_runtime.choices import TritonBackend, TritonDevice, TritonInput

MARK = "# Written by sad-deploy"
"""How a file that may be replaced begins."""

LABELS = "labels.txt"
BYTES = "bytes"
"""Name of the ensemble's input: image files."""

_DELAY_MICROSECONDS = 2000
_PLATFORMS = {
    TritonBackend.ONNXRUNTIME: ("backend", "onnxruntime", "model.onnx"),
    TritonBackend.OPENVINO: ("backend", "openvino", "model.onnx"),
    TritonBackend.TENSORRT: ("platform", "tensorrt_plan", "model.plan"),
}


class Word(str):
    """An enum's value, written without quotes."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Served:
    """A graph or engine as Triton serves it.

    Attributes:
        name: Of the model.
        backend: What runs it.
        device: Where.
        input: What its images are.
        shape: (C, H, W).
        classes: K.
        batch: Best and largest.
        instances: How many run at once, on each device.
    """

    name: str
    backend: TritonBackend
    device: TritonDevice
    input: TritonInput
    shape: tuple[int, int, int]
    classes: int
    batch: tuple[int, int]
    instances: int

    @property
    def file(self) -> str:
        """Name of its file in a version's folder."""
        return _PLATFORMS[self.backend][2]

    def text(self) -> str:
        """Its ``config.pbtxt``."""
        key, value, file = _PLATFORMS[self.backend]
        best, largest = self.batch
        channels, height, width = self.shape
        is_float = self.input is TritonInput.FLOAT
        dims = [channels, height, width] if is_float else [height, width, channels]
        kind = Word("TYPE_FP32" if is_float else "TYPE_UINT8")
        warm_up = {"data_type": kind, "dims": dims, "random_data": True}
        return text_of(
            {
                "name": self.name,
                key: value,
                "default_model_filename": file,
                "max_batch_size": largest,
                "input": [{"name": INPUT, "data_type": kind, "dims": dims}],
                "output": _outputs(self.classes, self.shape),
                "version_policy": {"latest": {"num_versions": 1}},
                "dynamic_batching": {
                    "preferred_batch_size": sorted({best, largest}),
                    "max_queue_delay_microseconds": _DELAY_MICROSECONDS,
                },
                "instance_group": [
                    {"count": self.instances, "kind": Word(f"KIND_{self.device.value.upper()}")}
                ],
                "model_warmup": [
                    {"name": f"batch of {n}", "batch_size": n, "inputs": {"key": INPUT, "value": warm_up}}
                    for n in sorted({1, best})
                ],
            }
        )


def preprocessing_text(name: str, shape: Sequence[int], largest: int, instances: int) -> str:
    """``config.pbtxt`` of the model that turns image files into the graph's input, in Triton's Python."""
    return text_of(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": largest,
            "input": [{"name": BYTES, "data_type": Word("TYPE_STRING"), "dims": [1]}],
            "output": [{"name": INPUT, "data_type": Word("TYPE_FP32"), "dims": list(shape)}],
            "version_policy": {"latest": {"num_versions": 1}},
            "dynamic_batching": {},
            "instance_group": [{"count": instances, "kind": Word("KIND_CPU")}],
        }
    )


def ensemble_text(name: str, preprocessing: str, served: Served) -> str:
    """``config.pbtxt`` of both in a row: image files in, answers out."""
    outputs = _outputs(served.classes, served.shape)
    names = {each["name"]: each["name"] for each in outputs}
    return text_of(
        {
            "name": name,
            "platform": "ensemble",
            "max_batch_size": served.batch[1],
            "input": [{"name": BYTES, "data_type": Word("TYPE_STRING"), "dims": [1]}],
            "output": outputs,
            "ensemble_scheduling": {
                "step": [
                    _step(preprocessing, {BYTES: BYTES}, {INPUT: "prepared"}),
                    _step(served.name, {INPUT: "prepared"}, names),
                ]
            },
        }
    )


def _outputs(classes: int, shape: Sequence[int]) -> list[dict[str, Any]]:
    rows = {"data_type": Word("TYPE_FP32"), "dims": [classes], "label_filename": LABELS}
    return [
        {"name": LOGITS, **rows},
        {"name": PLAIN_LOGITS, **rows},
        {"name": SALIENCY, "data_type": Word("TYPE_FP32"), "dims": list(shape)},
    ]


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


def text_of(message: Mapping[str, Any]) -> str:
    """A message in protobuf's text form, marked as ours."""
    return "\n".join([MARK, *_lines(message, ""), ""])


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in message.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield f"{indent}{key} {{"
                yield from _lines(each, f"{indent}  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(each)}"


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    return json.dumps(value)  # strings quoted and escaped, numbers, true and false
