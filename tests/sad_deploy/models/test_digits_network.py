from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sad_deploy.data.digits import digits_splits
from sad_deploy.models import build_model
from sad_deploy.models.digits import digits_state_dict

SCRIPT = Path(__file__).parents[3] / "examples" / "train_digits.py"


@pytest.fixture
def script():
    """What the training script defines; the threads it sets are set back."""
    threads = torch.get_num_threads()
    yield runpy.run_path(str(SCRIPT))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_embedded_networks_reach_98_percent_on_unseen_digits(script, adversarial):
    model = build_model("digits-adversarial" if adversarial else "digits", 10)
    model.load_state_dict(digits_state_dict(adversarial=adversarial))
    _, held_out, test = digits_splits()
    assert script["accuracy"](model.eval(), test) >= 98
    assert script["accuracy"](model.eval(), held_out) >= 98


def test_the_script_writes_such_weights_the_same_each_time(script, tmp_path):
    for name in ("one", "two"):
        script["main"](tmp_path / name, epochs=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    written, shipped = safetensors.torch.load_file(tmp_path / "one"), digits_state_dict()
    assert {n: (t.shape, t.dtype) for n, t in written.items()} == {
        n: (t.shape, t.dtype) for n, t in shipped.items()
    }


def test_adversarial_training_goes_on_from_the_natural_network(script, tmp_path):
    script["main"](tmp_path / "file", epochs=1, adversarial=True)
    written, natural = safetensors.torch.load_file(tmp_path / "file"), digits_state_dict()
    assert not torch.equal(written["conv.weight"], natural["conv.weight"])
    model = build_model("digits-adversarial", 10)
    model.load_state_dict(written)
    assert script["accuracy"](model.eval(), digits_splits()[2]) >= 90
