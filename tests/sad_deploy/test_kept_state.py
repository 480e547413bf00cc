"""A calibration that was interrupted, and taken up again, ends with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sad_deploy import Attack, AttackKind, attacks, calibration, kept_state
from sad_deploy.calibration import calibrate_each
from sad_deploy.eta import EtaChoice, choose_eta
from sad_deploy.kept_state import NOT_KEPT, FileKeeper, Keeper, forget, state_file
from sad_deploy.processes import ALONE
from sad_deploy.sweep import CalibrationSettings
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from tests.support.networks import batches_of, small_network

BATCHES = batches_of(24)
HELD_OUT = batches_of(8, seed=5)
WHO = {"options": "these", "network": "this"}
SETTINGS = CalibrationSettings(attack=Attack(AttackKind.PGD, steps=2), normalization=Normalization.RMS)


class Interruption(Exception):  # noqa: N818 -- no error
    pass


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, in which every batch is kept."""
    monkeypatch.setattr(kept_state, "_LEAST_APART", 0)
    monkeypatch.setattr(kept_state, "_SHARE", 0)
    return state_file(tmp_path / "model")


def chosen(state: Path, *, resume: bool, until: int | None = None) -> EtaChoice:
    def progress(done: int) -> None:
        if done == until:
            raise Interruption

    return choose_eta(
        small_network(), BATCHES, HELD_OUT, SETTINGS, max_drop=60, progress=progress,
        keeper=FileKeeper(state, WHO, ALONE, resume=resume),
    )  # fmt: skip


# The η are looked at for the first time, and most are given up, after 16 batches of 16.
@pytest.mark.parametrize("until", [[1], [2], [15], [16], [17], [24], [3, 11, 20]])
def test_the_choice_of_eta_is_taken_up_again(state: Path, until: list[int]) -> None:
    whole = choose_eta(small_network(), BATCHES, HELD_OUT, SETTINGS, max_drop=60)
    assert {row.batches for row in whole.rows} == {16, 24}  # some were given up
    for index, batches in enumerate(until):
        with pytest.raises(Interruption):
            chosen(state, resume=index > 0, until=batches)
    again = chosen(state, resume=True)
    assert again.rows == whole.rows and again.plain == whole.plain
    expected = whole.calibration.model.state_dict()
    found = again.calibration.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_moving_average_is_taken_up_again_and_only_what_is_left_is_attacked(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, model = CalibrationSettings(attack=Attack(AttackKind.FGSM), momentum=0.1), small_network()

    def calibrated(batches: list[Any], keeper: Keeper) -> dict[str, torch.Tensor]:
        sweep = calibrate_each(model, batches, (0.3,), settings, keeper=keeper)
        return sweep.calibration(0.3).model.state_dict()

    whole = calibrated(BATCHES, NOT_KEPT)
    calibrated(BATCHES[:10], FileKeeper(state, WHO, ALONE, resume=False))
    attacked = []

    def perturb(*arguments: Any, **options: Any) -> torch.Tensor:
        attacked.append(len(arguments[1]))
        return attacks.perturb(*arguments, **options)

    monkeypatch.setattr(calibration, "perturb", perturb)
    found = calibrated(BATCHES, FileKeeper(state, WHO, ALONE, resume=True))
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    assert attacked == [16] * 14


def test_the_state_of_another_calibration_is_refused(state: Path) -> None:
    with pytest.raises(Interruption):
        chosen(state, resume=False, until=2)
    with pytest.raises(UserError, match="of another calibration: network differ"):
        FileKeeper(state, WHO | {"network": "another"}, ALONE, resume=True)
    state.write_bytes(state.read_bytes()[:-20])
    with pytest.raises(UserError, match="is not the state of a calibration"):
        FileKeeper(state, WHO, ALONE, resume=True)
    forget(state)
    assert FileKeeper(state, WHO, ALONE, resume=True).done == 0


def test_a_state_that_cannot_be_written_ends_nothing(state: Path) -> None:
    (state.parent / "file").touch()
    said: list[str] = []
    keeper = FileKeeper(state.parent / "file" / "state", WHO, ALONE, resume=False, notice=said.append)
    calibrate_each(small_network(), BATCHES[:4], (0.3,), SETTINGS, keeper=keeper)
    assert len(said) == 1 and "not kept any more" in said[0]
