from __future__ import annotations

import argparse
import collections
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sad_deploy.checkpoints import load_weights, read_checkpoint, read_state_dict
from sad_runtime.errors import UserError
from tests.support.networks import changed, small_network, state


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
    model = small_network(seed=1)
    (note,) = load_weights(model, read_state_dict(tmp_path / "c.pt"), source="c.pt", num_classes=5)
    assert note == f"the names in c.pt begin with {prefix}, which was taken off"
    assert changed(expected, model) == set()


def test_a_network_of_its_own_called_module_keeps_its_names(tmp_path):
    """What a wrapper's prefix looks like is here the name of an attribute."""
    model = nn.ModuleDict({"module": small_network()})
    torch.save(model.state_dict(), tmp_path / "c.pt")
    other = nn.ModuleDict({"module": small_network(seed=1)})
    load_weights(other, read_state_dict(tmp_path / "c.pt"), source="c.pt", num_classes=5)
    assert changed(state(model), other) == set()


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "c.pt")
    assert set(read_state_dict(tmp_path / "c.pt")) == {"module.a", "b"}


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path, legacy):
    trap = tmp_path / "ran"
    torch.save({"state_dict": Bomb(trap)}, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="holds more than tensors") as error:
        read_state_dict(tmp_path / "c.pt")
    assert "torch.save(model['state_dict'], 'c.state.pt')" in str(error.value.hint)
    assert not trap.exists()


def test_a_bare_pickle_with_code_does_not_run(tmp_path):
    trap = tmp_path / "ran"
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(UserError):
        read_state_dict(tmp_path / "c.pkl")
    assert not trap.exists()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_whole_pickled_model_is_refused_with_the_two_lines_that_convert_it(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(2, 2), "model.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="is a whole pickled model and holds more than tensors") as error:
        read_state_dict(Path("model.pt"))
    lines = str(error.value.hint).splitlines()[1:]
    assert len(lines) == 2
    exec("import torch\n" + "\n".join(line.strip() for line in lines))
    assert read_state_dict(Path("model.state.pt")).keys() == {"weight", "bias"}


def test_a_torchscript_archive_is_refused_with_the_two_lines_that_convert_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "model.pt")
    with pytest.raises(UserError, match="TorchScript archive") as error:
        read_state_dict(Path("model.pt"))
    lines = str(error.value.hint).splitlines()[1:]
    exec("import torch\n" + "\n".join(line.strip() for line in lines))
    assert read_state_dict(Path("model.state.pt")).keys() == {"weight", "bias"}


def test_an_exported_program_is_refused_with_the_option_that_takes_it(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "model.pt2")
    with pytest.raises(UserError, match="is an exported program") as error:
        read_state_dict(tmp_path / "model.pt2")
    assert "--model " in str(error.value.hint)


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
@pytest.mark.parametrize(
    ("content", "message", "advice"),
    [
        (b"", "it is empty", "download"),
        (
            b"\n<!DOCTYPE html><html>Sign in</html>",
            "is a web page, saved under a checkpoint's name",
            "log in",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a git-lfs pointer",
            "git lfs pull",
        ),
        (b"\x1f\x8b\x08\x00" + bytes(50), "is a gzip archive", "unpack it"),
    ],
)
def test_what_only_has_a_checkpoints_name_is_named(tmp_path, name, content, message, advice):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(tmp_path / name)
    assert advice in str(error.value.hint) and "\n" not in error.value.message


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def test_a_file_of_a_newer_torch_is_named_as_such(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "c.pt")
    rewritten(
        tmp_path / "c.pt", tmp_path / "version.pt",
        lambda name, data: b"99\n" if name.count("/") == 1 and name.endswith("/version") else data,
    )  # fmt: skip
    rewritten(
        tmp_path / "c.pt", tmp_path / "type.pt",
        lambda name, data: data.replace(b"FloatStorage", b"FloatStorag9"),
    )  # fmt: skip
    for name in ("version.pt", "type.pt"):
        with pytest.raises(UserError, match="was written by a newer PyTorch than this one") as error:
            read_state_dict(tmp_path / name)
        assert "upgrade torch" in str(error.value.hint)


def test_all_types_that_are_refused_are_named_at_once(tmp_path):
    content = {"state_dict": {"w": torch.ones(1)}, "a": nn.ReLU(), "b": collections.deque()}
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"more than tensors \(collections\.deque, torch.*ReLU\)"):
        read_state_dict(tmp_path / "c.pt")


def test_numbers_of_numpy_beside_the_weights_are_fine(tmp_path):
    content = {
        "model": {"w": torch.ones(1)},
        "best": np.float64(0.5),
        "loss": np.mean(np.ones(3, np.float32)),
    }
    torch.save(content, tmp_path / "c.pt")
    assert read_state_dict(tmp_path / "c.pt").keys() == {"w"}


def test_averaged_weights_are_taken_where_there_are_no_raw_ones(tmp_path):
    torch.save({"ema": {"w": torch.ones(1)}, "critic": {"v": torch.ones(1)}}, tmp_path / "c.pt")
    checkpoint = read_checkpoint(tmp_path / "c.pt")
    assert (checkpoint.key, checkpoint.others) == ("ema", ("critic",))


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b"PK\x03\x04", b"\x80\x02", b"\xff" * 8 + b"{}"]
)
def test_rubbish_is_one_clear_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"not readable|holds no state dict"):
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
    with pytest.raises(UserError, match=r"not readable.*: it is cut off"):
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
    return load_weights(model, weights, source="weights.pt", num_classes=5)


def test_weights_are_copied_and_missing_counters_forgiven():
    model, other = small_network(seed=0), small_network(seed=1)
    weights = {k: v for k, v in state(other).items() if not k.endswith("num_batches_tracked")}
    assert load(model, weights) == ()
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
        load(small_network(), {"other.weight": torch.ones(1)})


def test_another_class_count_is_said_plainly():
    with pytest.raises(
        UserError, match=r"weights.pt has 7 classes, the model 5: 9.weight \(7, 12\) instead of \(5, 12\)"
    ):
        load(small_network(classes=5), state(small_network(classes=7)))


def test_ignored_keys_are_left_out():
    model = small_network()
    weights = state(small_network(seed=1)) | {"aux1.weight": torch.ones(1)}
    load_weights(model, weights, source="weights.pt", num_classes=5, ignore=("aux1.",))
    assert changed(state(small_network(seed=1)), model) == set()


def two_states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return state(small_network(seed=0)), state(small_network(seed=1))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def prefixed(prefix: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in weights.items()}


@pytest.mark.parametrize(
    ("raw_key", "averaged_key"),
    [
        ("state_dict", "state_dict_ema"),  # timm
        ("model", "model_ema"),  # torchvision
        ("model", "ema"),
        ("state_dict", "ema_state_dict"),  # mmengine
        ("model_state_dict", "swa_model"),
        ("net", "current_model_state"),
        ("state_dict", "model"),
    ],
)
def test_raw_weights_are_taken_and_the_averaged_ones_named(tmp_path, raw_key, averaged_key):
    raw, averaged = two_states()
    file = tmp_path / "c.pt"
    torch.save({"epoch": 3, averaged_key: averaged, raw_key: raw, "loss": {"train": torch.tensor(0.1)}}, file)
    checkpoint = read_checkpoint(file)
    assert (checkpoint.key, checkpoint.others) == (raw_key, (averaged_key,))
    assert same(checkpoint.state, raw)
    assert same(read_state_dict(file), raw)
    chosen = read_checkpoint(file, key=averaged_key)
    assert (chosen.key, chosen.others) == (averaged_key, (raw_key,))
    assert same(chosen.state, averaged)


@pytest.mark.parametrize("key", ["ema", "ema.state_dict"])
def test_weights_deeper_in_the_file_are_named_and_chosen_by_their_path(tmp_path, key):
    raw, averaged = two_states()
    ema = {"decay": 0.999, "state_dict": averaged}
    torch.save({"model": {"state_dict": raw, "arch": "x"}, "ema": ema}, tmp_path / "c.pt")
    checkpoint = read_checkpoint(tmp_path / "c.pt")
    assert (checkpoint.key, checkpoint.others) == ("model.state_dict", ("ema.state_dict",))
    assert same(checkpoint.state, raw)
    chosen = read_checkpoint(tmp_path / "c.pt", key=key)
    assert chosen.others == ("model.state_dict",)
    assert same(chosen.state, averaged)


def test_any_place_in_the_file_can_be_chosen_also_by_names_with_dots(tmp_path):
    raw, averaged = two_states()
    callbacks = {"Averaging{'a': 0.5}": {"average": averaged, "scores": {"a.ckpt": torch.tensor(0.5)}}}
    torch.save({"state_dict": raw, "callbacks": callbacks}, tmp_path / "c.pt")
    assert read_checkpoint(tmp_path / "c.pt").others == ()
    chosen = read_checkpoint(tmp_path / "c.pt", key="callbacks.Averaging{'a': 0.5}.average")
    assert same(chosen.state, averaged)
    assert chosen.others == ("state_dict",)


def test_a_file_that_is_a_state_dict_has_no_key(tmp_path):
    torch.save(small_network().state_dict(), tmp_path / "c.pt")
    safetensors.torch.save_file(small_network().state_dict(), tmp_path / "c.safetensors")
    for file in tmp_path.iterdir():
        checkpoint = read_checkpoint(file)
        assert (checkpoint.key, checkpoint.others) == (None, ())


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    raw, averaged = two_states()
    torch.save({"model": raw, "model_ema": averaged, "epoch": 3}, tmp_path / "c.pt")
    for key in ("ema", "model.ema", "model_ema.x", "epoch", ""):
        with pytest.raises(UserError, match="holds no weights under") as error:
            read_checkpoint(tmp_path / "c.pt", key=key)
        assert "model, model_ema" in str(error.value.hint)
    safetensors.torch.save_file(
        prefixed("net.", raw) | prefixed("ema.", averaged), tmp_path / "c.safetensors"
    )
    with pytest.raises(UserError, match="it is one state dict") as error:
        read_checkpoint(tmp_path / "c.safetensors", key="swa")
    assert "net" in str(error.value.hint) and "ema" in str(error.value.hint)


def test_the_only_weights_of_a_file_are_taken_whatever_their_name(tmp_path):
    raw, _ = two_states()
    torch.save({"params": raw, "epoch": 3}, tmp_path / "c.pt")
    checkpoint = read_checkpoint(tmp_path / "c.pt")
    assert (checkpoint.key, checkpoint.others) == ("params", ())
    assert same(checkpoint.state, raw)


@pytest.mark.parametrize(
    "content",
    [
        {"teacher": {"w": torch.ones(1)}, "student": {"w": torch.ones(1)}},
        {"model": {"w": torch.ones(1), "version": 2}, "teacher": {"w": torch.ones(1)}},
    ],
)
def test_weights_that_may_not_be_meant_are_not_taken_but_named(tmp_path, content):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"holds no state dict under .*; there is .*teacher") as error:
        read_checkpoint(tmp_path / "c.pt")
    assert "--weights-key teacher" in str(error.value.hint)
    assert read_checkpoint(tmp_path / "c.pt", key="teacher").state.keys() == {"w"}


def averaged_model(model: nn.Module) -> nn.Module:
    return AveragedModel(model)


@pytest.mark.parametrize(
    "wrap",
    [
        averaged_model,
        lambda model: nn.DataParallel(averaged_model(model)),
        lambda model: averaged_model(nn.DataParallel(model)),
        lambda model: averaged_model(torch.compile(model)),
    ],
)
def test_averaged_models_of_torch_load_as_the_model_they_average(tmp_path, wrap):
    source, target = small_network(seed=0), small_network(seed=1)
    names = {"model": state(target), "model_ema": wrap(source).state_dict()}
    assert any(name.endswith("n_averaged") for name in names["model_ema"])
    torch.save(names, tmp_path / "c.pt")
    torch.save(names["model_ema"], tmp_path / "bare.pt")
    for weights in (
        read_checkpoint(tmp_path / "c.pt", key="model_ema").state,
        read_checkpoint(tmp_path / "bare.pt").state,
    ):
        target = small_network(seed=1)
        (note,) = load(target, weights)
        assert "module." in note and "was taken off" in note
        assert changed(state(source), target) == set()


# Names with a prefix, as Lightning writes them


def test_a_network_is_found_among_the_weights_of_what_it_was_a_part_of():
    model, other = small_network(seed=0), state(small_network(seed=1))
    (note,) = load(model, prefixed("model.", other) | {"criterion.weight": torch.ones(5)})
    assert "begin with model. were taken" in note
    assert "left out: criterion.weight" in note
    assert changed(other, model) == set()
    (note,) = load(small_network(), prefixed("backbone._orig_mod.", other))
    assert "backbone._orig_mod." in note and "left out" not in note


def test_names_that_fit_are_taken_as_they_are():
    model, other = small_network(seed=0), state(small_network(seed=1))
    assert load(model, other) == ()
    with pytest.raises(UserError, match=r"12 unexpected: ema\.0\.weight"):
        load(model, other | {f"ema.{name}": value for name, value in list(other.items())[:12]})


def test_of_two_networks_of_the_same_names_the_other_is_named_and_can_be_chosen(tmp_path):
    raw, averaged = two_states()
    content = prefixed("ema_model.", averaged) | prefixed("model.", raw) | {"loss.w": torch.ones(2)}
    torch.save({"state_dict": content}, tmp_path / "c.ckpt")
    model = small_network(seed=2)
    notes = load(model, read_checkpoint(tmp_path / "c.ckpt").state)
    assert changed(raw, model) == set()
    assert len(notes) == 2
    assert "begin with model. were taken; left out: loss.w" in notes[0]
    assert "--weights-key ema_model " in notes[1]
    for key in ("ema_model", "state_dict.ema_model"):
        assert load(model, read_checkpoint(tmp_path / "c.ckpt", key=key).state) == ()
        assert changed(averaged, model) == set()


def test_of_two_networks_of_the_same_names_the_one_whose_shapes_fit_is_taken():
    model, other = small_network(seed=0), state(small_network(seed=1))
    notes = load(model, prefixed("model.", state(small_network(classes=7))) | prefixed("head.", other))
    assert changed(other, model) == set()
    assert len(notes) == 1 and "begin with head." in notes[0]


def test_a_prefix_does_not_hide_what_is_wrong():
    model = small_network()
    before, other = state(model), prefixed("model.", state(small_network(seed=1)))
    with pytest.raises(UserError, match=r"1 unexpected: more\.weight"):
        load(model, other | {"model.more.weight": torch.ones(1)})
    with pytest.raises(UserError, match="7 classes, the model 5"):
        load(model, prefixed("model.", state(small_network(classes=7))))
    del other["model.0.weight"]
    with pytest.raises(UserError, match=r"missing: 0.weight.*unexpected: model"):
        load(model, other)
    assert changed(before, model) == set()


def test_ignored_keys_and_missing_counters_are_so_behind_a_prefix_too():
    model, other = small_network(seed=0), state(small_network(seed=1))
    weights = {k: v for k, v in other.items() if not k.endswith("num_batches_tracked")}
    weights = prefixed("net.", weights | {"aux1.weight": torch.ones(1)})
    notes = load_weights(model, weights, source="w.pt", num_classes=5, ignore=("aux1.",))
    assert len(notes) == 1
    assert changed(other, model) == set()


def test_arguments_of_a_training_script_beside_the_weights_are_fine(tmp_path):
    path = tmp_path / "last.pth.tar"
    arguments = argparse.Namespace(lr=0.1, output=Path("runs"), nested=argparse.Namespace(epochs=3))
    torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2)}, "args": arguments}, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.state["w"].tolist() == [1, 1]
    assert checkpoint.notes(path.name) == ()


def test_a_refused_type_is_named(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}, "model": torch.nn.Linear(2, 2)}, tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)"):
        read_checkpoint(tmp_path / "whole.pt")


def test_a_choice_among_several_weights_is_said(tmp_path):
    raw, averaged = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    torch.save({"model": raw, "model_ema": averaged}, tmp_path / "both.pth")
    (note,) = read_checkpoint(tmp_path / "both.pth").notes("both.pth")
    assert (
        note == "both.pth: the weights are those of 'model'; model_ema beside it: --weights-key takes another"
    )
