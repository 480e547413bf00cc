"""An engine that was built is not built again; what is damaged, stale or not ours is."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import onnx
import pytest

from sad_export.tensorrt import BuildOptions, EngineCache, build_engine
from sad_export.tensorrt.build import Timing
from sad_export.tensorrt.cache import cache_key, default_folder
from sad_runtime.bundle.read import sha256
from sad_runtime.tensorrt import EngineInfo, error_log, read_sidecar

trt = pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx; the test install has it")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cache(tmp_path: Path, said: list[str]) -> EngineCache:
    return EngineCache(tmp_path / "engines", on_message=said.append)


def build(graph: Path, plan: Path, cache: EngineCache | None, **options: object) -> EngineInfo:
    return build_engine(
        graph, plan, flavor="rtx", batch=(1, 2, 4), options=BuildOptions(**options), cache=cache
    )  # type: ignore[arg-type]


def test_the_second_build_of_a_graph_is_the_first_ones_engine(
    graph_path: Path, tmp_path: Path, cache: EngineCache
) -> None:
    first = build(graph_path, tmp_path / "a.plan", cache)
    again = build(graph_path, tmp_path / "b.plan", cache)
    assert (tmp_path / "a.plan").read_bytes() == (tmp_path / "b.plan").read_bytes()
    assert again == dataclasses.replace(first, from_cache=True)
    assert not first.from_cache
    assert read_sidecar(tmp_path / "b.json") == again
    assert build(graph_path, tmp_path / "c.plan", None).from_cache is False


def test_another_graph_profile_or_option_is_another_engine(
    graph_path: Path, tmp_path: Path, cache: EngineCache
) -> None:
    build(graph_path, tmp_path / "a.plan", cache)
    other = onnx.load(str(graph_path))
    other.producer_version = "another"
    onnx.save(other, str(tmp_path / "other.onnx"))
    assert not build(tmp_path / "other.onnx", tmp_path / "b.plan", cache).from_cache
    assert not build_engine(graph_path, tmp_path / "b.plan", flavor="rtx", cache=cache).from_cache
    for option in ({"tf32": True}, {"optimization_level": 1}, {"targets": ("sm_89",)}):
        assert not build(graph_path, tmp_path / "b.plan", cache, **option).from_cache


def test_the_key_is_of_every_ingredient() -> None:
    ingredients = {"onnx": "a", "version": "1", "batch": (1, 8, 64)}
    keys = {cache_key(ingredients | changed) for changed in ({}, {"onnx": "b"}, {"version": "2"})}
    assert len(keys) == 3
    assert cache_key(dict(reversed(ingredients.items()))) in keys


@pytest.mark.parametrize("suffix", ["plan", "json"])
def test_a_damaged_entry_is_built_again(
    suffix: str, graph_path: Path, tmp_path: Path, cache: EngineCache, said: list[str]
) -> None:
    build(graph_path, tmp_path / "a.plan", cache)
    (entry,) = cache.folder.glob(f"*.{suffix}")
    entry.write_bytes(entry.read_bytes()[:-10])
    info = build(graph_path, tmp_path / "b.plan", cache)
    assert not info.from_cache
    assert sha256(tmp_path / "b.plan") == info.engine_sha256
    assert "is damaged, and built again" in said[0]
    assert build(graph_path, tmp_path / "c.plan", cache).from_cache


def test_weights_in_files_of_their_own_are_not_looked_up(
    graph_path: Path, tmp_path: Path, cache: EngineCache
) -> None:
    """The graph's hash does not cover them."""
    external = tmp_path / "external.onnx"
    onnx.save(
        onnx.load(str(graph_path)), str(external), save_as_external_data=True, location="w", size_threshold=64
    )
    for _ in range(2):
        assert not build(external, tmp_path / "a.plan", cache).from_cache


def test_a_folder_that_others_can_write_to_is_not_used(
    graph_path: Path, tmp_path: Path, cache: EngineCache, said: list[str]
) -> None:
    build(graph_path, tmp_path / "a.plan", cache)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o777)
    assert not build(graph_path, tmp_path / "b.plan", cache).from_cache
    assert "others can write to it" in said[0]


def test_a_cache_that_cannot_be_written_keeps_nothing_from_being_built(
    graph_path: Path, tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    info = build(
        graph_path, tmp_path / "a.plan", EngineCache(tmp_path / "file" / "c", on_message=said.append)
    )
    assert sha256(tmp_path / "a.plan") == info.engine_sha256
    assert "is not kept in" in said[0]


def test_the_least_recently_used_go_beyond_the_limit(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", limit_bytes=2500)
    info = EngineInfo(
        "rtx", "1", "fp32", (), "none", 3, False, (1, 1, 1), (1, 1, 1), (), 1000, 0.0, "", "", "test"
    )
    for age, key in enumerate(("old", "middle", "new")):
        plan = tmp_path / f"{key}.plan"
        plan.write_bytes(os.urandom(1000))
        cache.put(key, plan, dataclasses.replace(info, engine_sha256=sha256(plan)))
        os.utime(cache.folder / f"{key}.plan", (age, age)) if key != "new" else None
        if key == "middle":
            assert cache.take("old", tmp_path / "taken.plan") is not None  # which makes it the youngest
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        "new.json",
        "new.plan",
        "old.json",
        "old.plan",
    ]


def test_what_a_killed_process_left_behind_is_removed(
    graph_path: Path, tmp_path: Path, cache: EngineCache
) -> None:
    cache.folder.mkdir(mode=0o700)
    for name, age in ((".dead", 0), (".alive", None)):
        (cache.folder / name).write_bytes(b"half")
        if age is not None:
            os.utime(cache.folder / name, (age, age))
    build(graph_path, tmp_path / "a.plan", cache)
    assert sorted(path.name for path in cache.folder.glob(".*")) == [".alive"]


def test_measured_kernels_are_kept_for_the_next_build(tmp_path: Path, cache: EngineCache) -> None:
    """With the RTX package, whose timing cache has the same interface and does nothing."""
    builder = trt.Builder(error_log(trt))
    config = builder.create_builder_config()
    timing = Timing(cache, trt, ("a GPU",))
    with pytest.warns(DeprecationWarning, match="no-ops in TensorRT-RTX"):
        timing.load(config)
        timing.keep(config)
    (kept,) = cache.folder.glob("*.timing")
    assert cache.read_timing(kept.stem) == kept.read_bytes()
    assert Timing(cache, trt, ("another GPU",)).name != timing.name


def test_the_folder_lies_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sad-deploy" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path.home() / ".cache" / "sad-deploy" / "engines"


def test_a_sidecar_says_where_its_engine_came_from(
    graph_path: Path, tmp_path: Path, cache: EngineCache
) -> None:
    for name, expected in (("a", False), ("b", True)):
        build(graph_path, tmp_path / f"{name}.plan", cache)
        assert json.loads((tmp_path / f"{name}.json").read_text())["from_cache"] is expected
