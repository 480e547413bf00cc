from __future__ import annotations

import pytest
import torch

from sad_deploy import digits_default
from sad_deploy.data.digits import digits_splits
from sad_deploy.digits_default import Training, digits_accuracy, digits_state_dict, train_digits
from sad_deploy.models import build_model

ONE_EPOCH = Training(epochs=1)


@pytest.mark.slow
def test_the_default_network_reaches_98_percent_on_unseen_digits(default_weights):
    model = build_model("digits", 10)
    model.load_state_dict(default_weights)
    _, held_out, test = digits_splits()
    assert digits_accuracy(model, test) >= 98
    assert digits_accuracy(model, held_out) >= 98


def test_training_is_deterministic_and_leaves_the_callers_state_alone():
    threads, seed = torch.get_num_threads(), torch.random.get_rng_state()
    first, second, other = (
        train_digits(t).state_dict() for t in (ONE_EPOCH, ONE_EPOCH, Training(epochs=1, seed=1))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), seed)


def test_the_cache_serves_the_second_time(tmp_path):
    epochs: list[tuple[int, int]] = []

    def told(done, total):
        epochs.append((done, total))

    first, file = digits_state_dict(ONE_EPOCH, cache=tmp_path, epoch=told)
    second, again = digits_state_dict(ONE_EPOCH, cache=tmp_path, epoch=told)
    assert epochs == [(1, 1)]
    assert file == again and list(tmp_path.iterdir()) == [file]
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:1000], lambda b: b"", lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:]]
)
def test_a_damaged_cache_is_trained_again(tmp_path, damage):
    first, file = digits_state_dict(ONE_EPOCH, cache=tmp_path)
    assert file is not None
    file.write_bytes(damage(file.read_bytes()))
    again, _ = digits_state_dict(ONE_EPOCH, cache=tmp_path)
    assert all(torch.equal(first[name], again[name]) for name in first)
    third, _ = digits_state_dict(
        ONE_EPOCH, cache=tmp_path, epoch=lambda *_: pytest.fail("trained a third time")
    )
    assert third.keys() == first.keys()


def test_without_a_writable_cache_training_still_works(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    weights, file = digits_state_dict(ONE_EPOCH, cache=blocked)
    assert file is None and "fc.weight" in weights


def test_another_recipe_has_another_file(tmp_path):
    _, one = digits_state_dict(ONE_EPOCH, cache=tmp_path)
    _, two = digits_state_dict(Training(epochs=1, seed=5), cache=tmp_path)
    assert one != two


def test_the_cache_lies_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert digits_default.cache_folder() == tmp_path / "sad-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digits_default.cache_folder() == tmp_path / ".cache" / "sad-deploy"
