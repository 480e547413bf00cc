"""``evaluation.json``: a result and everything that it depends on, for programs and for the bundle."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sad_runtime.bundle.robustness import EVALUATION

from .data import Labelled
from .evaluate import Evaluation, FileRow, Result
from .outcome import Outcome, Row

NAME = EVALUATION
SCHEMA = 1

_VERSIONS = ("sad-deploy", "numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "onnx", "torch")
UPPER_BOUND = "An upper bound: a better attack can only lower it."


def record(
    evaluation: Evaluation,
    data: Labelled,
    *,
    model: str,
    files: Mapping[str, str],
    defence: Mapping[str, Any],
    backend: str,
) -> dict[str, Any]:
    """As JSON values.

    Args:
        evaluation: What was found.
        data: On what.
        model: Its name.
        files: SHA-256 of every file that was judged.
        defence: η, normalisation and clip; empty for a classifier without a defence.
        backend: What ran the judged file.
    """
    return {
        "schema": SCHEMA,
        "statement": UPPER_BOUND,
        "model": model,
        "data": data.as_dict(),
        "defence": dict(defence),
        "files": dict(files),
        "backend": backend,
        "results": [_result(each, model, data, defence) for each in evaluation.results],
        "effort": dataclasses.asdict(evaluation.effort),
        "left_out": list(evaluation.left_out),
        "cpu_seconds": round(evaluation.seconds, 1),
        "seed": evaluation.seed,
        "versions": _versions(),
        "machine": platform.processor() or platform.machine(),
    }


def _result(result: Result, model: str, data: Labelled, defence: Mapping[str, Any]) -> dict[str, Any]:
    outcome, other, paired = result.defended, result.undefended, result.paired
    return {
        "threat_model": {
            "norm": str(outcome.threat.norm),
            "epsilon": outcome.threat.epsilon,
            "space": "pixels in [0, 1]",
            "goal": "integrity violation: untargeted misclassification",
            "capability": "test-time evasion, every pixel",
            "knowledge": "white-box, and black-box by labels and by scores",
            "integer_pixels": False,
        },
        "worst_case": outcome.worst_case.as_dict(),
        "clean": outcome.clean_accuracy.as_dict(),
        "rounded_to_8_bits": outcome.rounded_worst_case.as_dict(),
        "non_finite_answers": outcome.non_finite,
        "attacks": [_row(row) for row in outcome.rows],
        "undefended": None
        if other is None
        else {
            "worst_case": other.worst_case.as_dict(),
            "clean": other.clean_accuracy.as_dict(),
            "attacks": [_row(row) for row in other.rows],
        },
        "paired": None if paired is None else paired.as_dict(),
        "matrix": [_file(each) for each in result.files],
        "checks": [dataclasses.asdict(each) for each in result.checks],
        "robustbench": robustbench(result, model, data, passes=2 if defence else 1),
        "images": _per_image(outcome, data),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "way": row.stage.way,
        "knows": row.stage.knows,
        "name": row.stage.name,
        "attacks": [dataclasses.asdict(each) for each in row.stage.attacks],
        "survivors_only": row.stage.survivors,
        "alone": None if row.alone is None else row.alone.as_dict(),
        "worst_so_far": row.worst.as_dict(),
        "forward_passes": row.counts.forward,
        "gradients": row.counts.backward,
        "zero_gradients": row.counts.zero_gradients,
        "cpu_seconds": round(row.seconds, 2),
    }


def _file(each: FileRow) -> dict[str, Any]:
    return {
        "file": each.file,
        "attacked_itself": None if each.direct is None else each.direct.as_dict(),
        "replayed": each.replayed.as_dict(),
        "worst": each.worst.as_dict(),
        "label_agreement": each.agreement,
    }


def robustbench(result: Result, model: str, data: Labelled, *, passes: int) -> dict[str, str]:
    """The fields of RobustBench's model_info files; there, numbers are strings."""
    outcome = result.defended
    masked = any(not each.passed and each.id.startswith("masking") for each in result.checks)
    norm = {"linf": "Linf", "l2": "L2"}[str(outcome.threat.norm)]
    forward = "; two forward passes and one backward at inference" if passes == 2 else ""
    return {
        "link": "",
        "name": model,
        "authors": "",
        "additional_data": "unknown",
        "number_forward_passes": str(passes),
        "dataset": data.source,
        "venue": "",
        "architecture": model,
        "eps": f"{outcome.threat.epsilon:.6g} ({norm})",
        "clean_acc": f"{outcome.clean_accuracy.percent:.2f}",
        "reported": f"{outcome.worst_case.percent:.2f}",
        "external": f"{outcome.worst_case.percent:.2f}",
        "unreliable": str(masked).lower(),
        "footnote": f"worst case over {len(outcome.rows)} attacks on {len(data.images)} images{forward}",
    }


def _per_image(outcome: Outcome, data: Labelled) -> list[dict[str, Any]]:
    distances = outcome.threat.distance(outcome.adversarial, data.images.pixels)
    found = []
    for i, label in enumerate(data.images.labels):
        broken_by = next(
            (f"{row.stage.name}: {row.stage.way}" for row in outcome.rows if row.broken[i]), None
        )
        found.append(
            {
                "image": data.names[i] if data.names else i,
                "label": int(label),
                "clean": bool(outcome.clean[i]),
                "robust": bool(outcome.robust[i]),
                "first_broken_by": broken_by,
                "distance": round(float(distances[i]), 6) if broken_by else None,
            }
        )
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
