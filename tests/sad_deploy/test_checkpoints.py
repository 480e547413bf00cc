from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from networks import changed, small_network, state
from torch import nn

from sad_deploy.checkpoints import load_weights, read_state_dict
from sad_runtime.errors import UserError


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_safetensors_and_torch_files_give_the_same_state_dict(tmp_path):
    expected = small_network().state_dict()
    safetensors.torch.save_file(expected, tmp_path / "a.safetensors")
    safetensors.torch.save_file(expected, tmp_path / "renamed.bin")
    torch.save(expected, tmp_path / "b.pt")
    torch.save(expected, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    for file in tmp_path.iterdir():
        found = read_state_dict(file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), file.name


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_a_state_dict_inside_a_checkpoint_is_found(tmp_path, key):
    torch.save({"epoch": 3, key: small_network().state_dict()}, tmp_path / "c.pt")
    assert read_state_dict(tmp_path / "c.pt").keys() == small_network().state_dict().keys()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_removed(tmp_path, prefix):
    expected = small_network().state_dict()
    torch.save({prefix + name: value for name, value in expected.items()}, tmp_path / "c.pt")
    assert read_state_dict(tmp_path / "c.pt").keys() == expected.keys()


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "c.pt")
    assert set(read_state_dict(tmp_path / "c.pt")) == {"module.a", "b"}


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, legacy):
    trap = tmp_path / "ran"
    torch.save({"state_dict": Bomb(trap)}, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds more than tensors") as error:
        read_state_dict(tmp_path / "c.pt")
    assert "torch.save(model.state_dict()" in str(error.value.hint)
    assert not trap.exists()


def test_a_bare_pickle_with_code_does_not_run(tmp_path):
    trap = tmp_path / "ran"
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UserError):
        read_state_dict(tmp_path / "c.pkl")
    assert not trap.exists()


def test_a_whole_pickled_model_is_refused_with_the_way_to_convert_it(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds more than tensors"):
        read_state_dict(tmp_path / "model.pt")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(UserError) as error:
        read_state_dict(tmp_path / "model.pt")
    assert "torch.save(model.state_dict()" in str(error.value.hint)


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"PK\x03\x04", b"\x80\x02", b"\xff" * 8 + b"{}"]
)
def test_rubbish_is_one_clear_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"not readable|holds more than tensors|holds no state dict"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_cut_short_is_one_clear_error(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        torch.save(small_network().state_dict(), whole)
    else:
        safetensors.torch.save_file(small_network().state_dict(), whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(UserError, match="not readable"):
        read_state_dict(cut)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, {1: torch.ones(1)}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tmp_path / "c.pt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no weights file"):
        read_state_dict(tmp_path / "absent.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "c.pt")
    (tmp_path / "c.pt").chmod(0)
    with pytest.raises(UserError, match="not readable"):
        read_state_dict(tmp_path / "c.pt")


def load(model, weights):
    load_weights(model, weights, source="weights.pt", num_classes=5)


def test_weights_are_copied_and_missing_counters_forgiven():
    model, other = small_network(seed=0), small_network(seed=1)
    weights = {k: v for k, v in state(other).items() if not k.endswith("num_batches_tracked")}
    load(model, weights)
    assert changed(state(other), model) == set()


def test_all_that_does_not_fit_is_said_at_once_and_nothing_is_copied():
    model = small_network()
    before, weights = state(model), state(small_network(seed=1))
    del weights["0.weight"]
    weights |= {"extra": torch.ones(1), "6.bias": torch.ones(13)}
    weights["9.bias"] = torch.full((5,), float("nan"))
    with pytest.raises(UserError) as error:
        load(model, weights)
    for part in (
        "1 missing: 0.weight",
        "1 unexpected: extra",
        r"6.bias (13,) instead of (12,)",
        "not finite: 9.bias",
    ):
        assert part in error.value.message
    assert changed(before, model) == set()


def test_long_lists_are_shortened():
    with pytest.raises(UserError, match=r"missing: .* and 9 more"):
        load(small_network(), {})


def test_another_class_count_is_said_plainly():
    with pytest.raises(UserError, match=r"weights.pt has 7 classes, but 5 are needed"):
        load(small_network(classes=5), state(small_network(classes=7)))


def test_ignored_keys_are_left_out():
    model = small_network()
    weights = state(small_network(seed=1)) | {"aux1.weight": torch.ones(1)}
    load_weights(model, weights, source="weights.pt", num_classes=5, ignore=("aux1.",))
    assert changed(state(small_network(seed=1)), model) == set()
