"""The repository in the real Triton: only what the wheel has no backend for is swapped."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from PIL import Image

from sad_deploy.triton import TritonRequest, write_repository
from sad_runtime import Classifier
from sad_runtime.bundle import Bundle
from sad_runtime.choices import TritonImages, TritonInput
from sad_runtime.given import preprocess
from tests.support.tiny_bundle import linear_model, write_tiny_bundle
from tests.support.triton_server import Address, serving, swapped, why_missing

pytestmark = [
    pytest.mark.skipif(why_missing() is not None, reason=str(why_missing())),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", linear_model()))


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("triton")
    for request in (
        TritonRequest(work / "written", images=TritonImages.SERVER),
        TritonRequest(work / "written", name="tiny_bytes", input=TritonInput.UINT8),
    ):
        write_repository(bundle, request)
    swapped(work / "written", work / "served")
    return work


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Address]:
    with serving(folder / "served", folder) as address:
        yield address


@pytest.fixture(scope="module")
def local(bundle: Bundle) -> Iterator[Classifier]:
    with Classifier.load(bundle, backend="cpu") as classifier:
        yield classifier


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_answers_are_those_of_the_bundle(server: Address, local: Classifier) -> None:
    pixels = pictures(5)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    want = local.backend.run(floats, ["logits", "saliency"])
    for module, address in ((grpc, server.grpc), (http, server.http)):
        client = module.InferenceServerClient(address)
        for name, images, kind in (("tiny", floats, "FP32"), ("tiny_bytes", pixels, "UINT8")):
            given = module.InferInput("image", list(images.shape), kind)
            given.set_data_from_numpy(images)
            outputs = [module.InferRequestedOutput(each) for each in want]
            answer = client.infer(name, [given], outputs=outputs)
            for output, expected in want.items():
                np.testing.assert_allclose(answer.as_numpy(output), expected, rtol=1e-4, atol=1e-5)


def test_classes_by_their_labels(server: Address, local: Classifier) -> None:
    images = pictures(2).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    client = grpc.InferenceServerClient(server.grpc)
    given = grpc.InferInput("image", list(images.shape), "FP32")
    given.set_data_from_numpy(images)
    asked = [grpc.InferRequestedOutput("logits", class_count=1)]
    rows = client.infer("tiny", [given], outputs=asked).as_numpy("logits")
    best = local.backend.run(images, ["logits"])["logits"].argmax(1)
    names = [row[0].decode().split(":", 2)[2] for row in rows]
    assert names == [local.manifest.classes[i] for i in best]


def test_image_files_are_prepared_on_the_server_and_a_bad_one_fails_alone(
    server: Address, local: Classifier
) -> None:
    client = grpc.InferenceServerClient(server.grpc)

    def ask(data: bytes) -> np.ndarray:
        given = grpc.InferInput("bytes", [1, 1], "BYTES")
        given.set_data_from_numpy(np.array([[data]], dtype=object))
        answer = client.infer("tiny_images", [given], outputs=[grpc.InferRequestedOutput("logits")])
        logits: np.ndarray = answer.as_numpy("logits")
        return logits

    files = []
    for i in range(6):
        file = io.BytesIO()
        picture = np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(picture).save(file, "PNG")
        files.append(file.getvalue())
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(ask, file) for file in files]
        bad = [pool.submit(ask, data) for data in (b"", b"no image", files[0][:60])]
        for file, future in zip(files, good, strict=True):
            want = local.backend.run(preprocess(file, local.manifest.preprocessing)[None], ["logits"])[
                "logits"
            ]
            np.testing.assert_allclose(future.result(), want, rtol=1e-4, atol=1e-5)
        for future, code in zip(bad, ("empty", "not-an-image", "truncated"), strict=True):
            with pytest.raises(Exception, match=code):
                future.result()


def test_single_images_are_batched_and_wrong_shapes_refused(server: Address, folder: Path) -> None:
    log = folder / "served" / "tiny" / "batches.log"
    before = len(log.read_text().splitlines())
    client = grpc.InferenceServerClient(server.grpc)
    images = pictures(64, seed=3).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)

    def ask(image: np.ndarray) -> None:
        given = grpc.InferInput("image", list(image.shape), "FP32")
        given.set_data_from_numpy(image)
        client.infer("tiny", [given], outputs=[grpc.InferRequestedOutput("logits")])

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, np.split(images, 64)))
    runs = [list(map(int, line.split())) for line in log.read_text().splitlines()[before:]]
    assert sum(images for _, images in runs) == 64
    assert len(runs) < 64
    with pytest.raises(grpc.InferenceServerException, match="shape"):
        ask(images[:1, :, :4])
