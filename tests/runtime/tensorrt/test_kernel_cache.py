from __future__ import annotations

from pathlib import Path

import pytest

from sad_runtime.tensorrt.kernel_cache import KernelCache, cache_path, is_cache


class Kernels:
    """What TensorRT's cache object does with bytes."""

    def __init__(self, held: bytes = b"") -> None:
        self.held = held

    def deserialize(self, blob: bytes) -> bool:
        if blob.startswith(b"kernels"):
            self.held = bytes(blob)
        return blob.startswith(b"kernels")

    def serialize(self) -> memoryview:
        return memoryview(self.held)


def test_kernels_come_back_and_are_written_only_when_there_are_new_ones(tmp_path: Path) -> None:
    path = cache_path(tmp_path / "model.rtx.plan")
    assert path.name == "model.rtx.cache"
    first = Kernels()
    cache = KernelCache(first, path)
    cache.save()
    assert not path.exists()
    first.held = b"kernels 1"
    cache.save()
    assert path.read_bytes() == b"kernels 1"
    path.unlink()
    cache.save()  # nothing new
    assert not path.exists()
    path.write_bytes(b"kernels 2")
    second = Kernels()
    KernelCache(second, path).save()
    assert second.held == b"kernels 2"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("engines/model.rtx.cache", True),
        ("engines/.model.rtx.cache.0123abcd", True),
        ("engines/model.rtx.cache.0123abcd", False),
        ("engines/other.rtx.cache", False),
        ("model.rtx.cache", False),
        ("engines/model.rtx.plan", False),
        ("engines/.cache", False),
        ("engines/notes.txt", False),
    ],
)
def test_cache_of_an_engine_is_known_by_its_name(name: str, is_one: bool) -> None:
    assert is_cache(name, {"engines/model.rtx.plan", "engines/model.rtx.json", "model.onnx"}) == is_one
