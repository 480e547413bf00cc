from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sad_runtime.errors import BundleError
from sad_runtime.manifest import (
    SCHEMA_VERSION,
    Color,
    Defence,
    Engine,
    ExifOrientation,
    Graph,
    InputSpace,
    Interpolation,
    Manifest,
    ModelSource,
    Normalization,
    Preprocessing,
    unsafe_name,
)

DIGEST = "0" * 64


def full_manifest() -> Manifest:
    return Manifest(
        model=ModelSource("resnet18", 2),
        classes=("Katze", "été 🦆"),
        preprocessing=Preprocessing(
            Color.GRAY, (33, 40), (32, 31), Interpolation.BICUBIC, ExifOrientation.IGNORE
        ),
        input_space=InputSpace((0.1,), (1 / 3,)),
        defence=Defence(0.8, Normalization.RMS, clip=True),
        calibration={
            "sweep": [{"eta": 0.5, "accuracy": None}, []],
            "paper": False,
            "seed": 2**60,
            "π": math.pi,
        },
        graphs=(Graph("model.onnx", "fp32", "auto", "portable", {"cosine": 1 - 2**-53}),),
        engines=(Engine("engines/a.plan", "engines/a.json", "model.onnx", "rtx", "fp32"),),
        files=dict.fromkeys(("model.onnx", "engines/a.plan", "engines/a.json"), DIGEST),
        created_by="sad-deploy 0",
    )


def plain() -> dict[str, Any]:
    return json.loads(full_manifest().to_json())


def refusal(values: Any) -> str:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(values if isinstance(values, (str, bytes)) else json.dumps(values))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_round_trip_is_exact() -> None:
    manifest = full_manifest()
    assert Manifest.from_json(manifest.to_json()) == manifest


@given(
    eta=st.floats(0, 1e308),
    std=st.floats(1e-300, 1e300),
    resize=st.integers(1, 10**6) | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    name=st.text(st.characters(exclude_categories=("Cs",))),
    calibration=st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",))),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=5,
        ),
        max_size=4,
    ),
)
def test_round_trip_is_exact_for_any_values(
    eta: float, std: float, resize: int | tuple[int, int], name: str, calibration: dict[str, Any]
) -> None:
    manifest = dataclasses.replace(
        full_manifest(),
        defence=Defence(eta),
        input_space=InputSpace((0.5,), (std,)),
        preprocessing=Preprocessing(Color.GRAY, resize, (32, 32)),
        classes=(name, name),
        calibration=calibration,
    )
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_newer_schema_is_refused_before_anything_else_is_judged() -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps({"schema": SCHEMA_VERSION + 1, "of the future": True}))
    assert (
        caught.value.message
        == f"written by a newer sad-deploy (schema 2, this one reads up to {SCHEMA_VERSION})"
    )
    assert "upgrade" in str(caught.value.hint)


@pytest.mark.parametrize("schema", [0, -1, "1", 1.0, True, None])
def test_unknown_schema_is_refused(schema: Any) -> None:
    assert "schema: must be" in refusal(plain() | {"schema": schema})


def test_everything_wrong_is_reported_at_once() -> None:
    values = plain()
    del values["model"]["name"]
    values["defence"]["eta"] = "0.8"
    values["defence"]["normalization"] = "l2"
    values["preprocessing"]["crop"] = [32]
    values["preprocessing"]["resize"] = 1.5
    values["graphs"][0]["verification"]["cosine"] = None
    values["extra"] = 1
    values["model"]["num_classes"] = True
    message = refusal(values)
    for part in (
        "model.name: missing",
        'defence.eta: must be a number, got "0.8"',
        'defence.normalization: must be one of none, rms, linf, sign, got "l2"',
        "preprocessing.crop: must be [an integer, an integer], got [32]",
        "preprocessing.resize: must be an integer or [an integer, an integer], got 1.5",
        "graphs[0].verification.cosine: must be a number, got null",
        "extra: unknown field",
        "model.num_classes: must be an integer, got true",
    ):
        assert part in message


def test_contradictions_are_reported_at_once() -> None:
    values = plain()
    values["classes"].append("a third")
    values["input_space"] = {"mean": [0, 0], "std": [1, 1]}
    message = refusal(values)
    assert "3 class names for 2 logits" in message
    assert "2 mean values for 1 channels" in message


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"a": 1,}', b"\xff\xfe", "[" * 100_000])
def test_broken_json_is_refused(text: str | bytes) -> None:
    assert "manifest.json" in refusal(text)


def test_name_given_twice_is_refused() -> None:
    assert "given twice: schema" in refusal('{"schema": 1, "schema": 1}')


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_number_that_is_not_finite_is_refused(number: str) -> None:
    text = full_manifest().to_json().replace('"eta": 0.8', f'"eta": {number}')
    message = refusal(text)
    assert "must be a finite number" in message or "is not JSON" in message


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan")])
def test_figure_that_is_not_finite_is_not_written(value: float) -> None:
    manifest = dataclasses.replace(full_manifest(), calibration={"sweep": [{"accuracy": value}]})
    with pytest.raises(BundleError, match=r"calibration\.sweep\[0\]\.accuracy: must be a finite number"):
        manifest.to_json()


def test_value_that_is_not_json_is_not_written() -> None:
    manifest = dataclasses.replace(full_manifest(), calibration={"mean": np.float32(0.5), "other": {1: 2}})
    with pytest.raises(
        BundleError, match=r"calibration\.mean: float32 .*calibration\.other\.1: a name must be"
    ):
        manifest.to_json()


def test_half_of_a_surrogate_pair_is_refused() -> None:
    values = plain()
    values["classes"][0] = "\ud800"
    assert "classes[0]: is not valid Unicode" in refusal(json.dumps(values))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../a",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        "C:a",
        "a\\b",
        "..",
        ".",
        "a\0b",
        "manifest.json",
        "Manifest.JSON",
    ],
)
def test_file_name_that_leaves_the_bundle_is_refused_wherever_it_stands(name: str) -> None:
    assert unsafe_name(name)
    places = [plain() for _ in range(4)]
    places[0]["graphs"][0]["file"] = name
    places[1]["engines"][0]["sidecar"] = name
    places[2]["engines"][0]["file"] = name
    places[3]["files"][name] = DIGEST
    for values in places:
        assert f"file name {name!r}" in refusal(values)


@pytest.mark.parametrize("name", ["model.onnx", "engines/a b.plan", "...", "é/x", "a..b/.c"])
def test_ordinary_file_name_is_allowed(name: str) -> None:
    assert unsafe_name(name) is None


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_digest_that_is_no_sha256_is_refused(digest: str) -> None:
    values = plain()
    values["files"]["model.onnx"] = digest
    assert "is not a SHA-256 of 'model.onnx'" in refusal(values)


def test_graph_without_a_digest_is_refused() -> None:
    values = plain()
    del values["files"]["model.onnx"]
    assert "'model.onnx' is used but has no SHA-256" in refusal(values)
