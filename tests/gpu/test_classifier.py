"""The whole way from a bundle on a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sad_export.tensorrt import build_engine
from sad_runtime import Classifier
from sad_runtime.bundle import Bundle, write_bundle
from sad_runtime.errors import UserError
from sad_runtime.manifest import Engine
from tests.support.tiny_bundle import linear_model, two_pass_graph, write_tiny_bundle

from .conftest import Built

pytestmark = pytest.mark.gpu

OUTPUTS = ("logits", "saliency", "plain_logits")


def test_auto_takes_the_gpu_for_a_graph(tmp_path: Path) -> None:
    model = linear_model()
    batch = np.random.default_rng(0).random((33, 3, 8, 8), dtype=np.float32)
    try:
        loaded = Classifier.load(write_tiny_bundle(tmp_path / "b", model), backend="cuda")
    except UserError as error:
        pytest.skip(error.message)
    with loaded as classifier:
        prediction = classifier.predict(batch, outputs=OUTPUTS)
    np.testing.assert_allclose(prediction.logits, model.two_pass(batch)[0], rtol=1e-3, atol=1e-3)
    with Classifier.load(tmp_path / "b") as classifier:
        assert classifier.backend_name == "cuda"


def test_auto_prefers_an_engine_and_the_bundle_stays_whole(tmp_path: Path, built: Built) -> None:
    model = linear_model()
    folder = write_tiny_bundle(tmp_path / "b", model)
    bundle = Bundle.open(folder)
    plan, sidecar = "engines/model.plan", "engines/model.json"
    with write_bundle(folder) as draft:
        draft.keep(bundle, *bundle.manifest.files)
        info = build_engine(
            folder / "model.onnx", draft.path(plan), flavor=built.flavor.value, batch=(1, 4, 8)
        )
        engine = Engine(plan, sidecar, "model.onnx", built.flavor.value, "fp32")
        draft.manifest = dataclasses.replace(bundle.manifest, files={}, engines=(engine,))
    batch = np.random.default_rng(0).random((33, 3, 8, 8), dtype=np.float32)
    tolerance = 1e-1 if info.tf32 else 1e-3
    for _ in range(2):  # the second time with the kernels of the first
        with Classifier.load(folder, tf32=info.tf32) as classifier:
            assert classifier.backend_name == built.flavor.value
            prediction = classifier.predict(batch, outputs=OUTPUTS)
        np.testing.assert_allclose(
            prediction.logits, model.two_pass(batch)[0], rtol=tolerance, atol=tolerance
        )
        Bundle.open(folder).verify()


def test_engine_of_a_graph_that_was_replaced_is_refused(tmp_path: Path, built: Built) -> None:
    model = linear_model()
    folder = write_tiny_bundle(tmp_path / "b", model)
    bundle = Bundle.open(folder)
    other = tmp_path / "other.onnx"
    other.write_bytes(two_pass_graph(linear_model(seed=1)).SerializeToString())
    with write_bundle(folder) as draft:
        draft.keep(bundle, *bundle.manifest.files)
        plan = draft.path("engines/model.plan")
        info = build_engine(other, plan, flavor=built.flavor.value, batch=(1, 4, 8))
        engine = Engine("engines/model.plan", "engines/model.json", "model.onnx", info.flavor, "fp32")
        draft.manifest = dataclasses.replace(bundle.manifest, files={}, engines=(engine,))
    with pytest.raises(UserError, match=r"it is stale: model\.onnx is not the graph that it was built from"):
        Classifier.load(folder, backend=info.flavor, tf32=info.tf32)
