from __future__ import annotations

import pytest
import torch

from sad_deploy.accuracy import Reference, clean_accuracy
from sad_deploy.attacks import Attack, AttackKind
from sad_deploy.calibration import CalibrationSettings, calibrate
from sad_deploy.classifier import SADClassifier
from sad_deploy.eta import choose_eta
from sad_runtime.errors import UserError
from tests.support.networks import batches_of, changed, small_network, state

SETTINGS = CalibrationSettings(attack=Attack(AttackKind.FGSM))
GRID = (0.01, 1.0, 30.0, 300.0)


def settled_network():
    """A network whose statistics already are those of the images, so that a small η costs little."""
    return calibrate(small_network(), batches_of(3), eta=0.0, attack=Attack(AttackKind.NONE)).model


def labelled_by(model, batches):
    return [(x, model(x).argmax(1)) for x, _ in batches]


def test_the_largest_eta_within_the_limit_is_taken():
    model = settled_network()
    choice = choose_eta(
        model, batches_of(3), labelled_by(model, batches_of(4, seed=7)), SETTINGS, grid=GRID, max_drop=30
    )
    allowed = [row.eta for row in choice.rows if row.drop <= 30]
    assert [row.eta for row in choice.rows] == list(GRID)
    assert choice.within_limit and 0 < len(allowed) < len(GRID), "the limit must decide something"
    assert choice.calibration.eta == max(allowed)
    assert choice.plain.percent == 100


def test_each_row_is_the_accuracy_of_the_pipeline_calibrated_for_it():
    model, held_out = small_network(), batches_of(3, seed=9)
    choice = choose_eta(model, batches_of(3), held_out, SETTINGS, grid=GRID, max_drop=100)
    for row in choice.rows:
        phi1 = calibrate(model, batches_of(3), eta=row.eta, attack=SETTINGS.attack).model
        classifier = SADClassifier(phi1, eta=row.eta)
        correct = sum(int((classifier(x).argmax(1) == y).sum()) for x, y in held_out)
        assert (row.accuracy.correct, row.accuracy.images) == (correct, 48)
        assert row.drop == pytest.approx(choice.plain.percent - 100 * correct / 48)


def test_the_chosen_model_is_the_one_calibrated_for_the_chosen_eta():
    model = small_network()
    choice = choose_eta(model, batches_of(3), batches_of(2, seed=5), SETTINGS, grid=GRID, max_drop=100)
    alone = calibrate(model, batches_of(3), eta=choice.calibration.eta, attack=SETTINGS.attack)
    assert changed(state(alone.model), choice.calibration.model) == set()


def test_without_labels_agreement_with_the_uncalibrated_model_counts():
    model, held_out = small_network(), batches_of(2, seed=5)
    unlabelled = choose_eta(model, batches_of(3), [x for x, _ in held_out], SETTINGS, grid=GRID)
    own = choose_eta(model, batches_of(3), labelled_by(model, held_out), SETTINGS, grid=GRID)
    assert unlabelled.plain.percent == 100
    assert unlabelled.plain.reference is Reference.PLAIN_PREDICTIONS
    assert own.plain.reference is Reference.LABELS
    assert [row.accuracy.correct for row in unlabelled.rows] == [row.accuracy.correct for row in own.rows]


def test_if_no_eta_keeps_the_limit_the_least_harmful_is_taken_and_said():
    model = small_network()
    held_out = labelled_by(model, batches_of(4, seed=7))
    choice = choose_eta(model, batches_of(3), held_out, SETTINGS, grid=(30.0, 300.0), max_drop=0)
    best = max(row.accuracy.correct for row in choice.rows)
    assert not choice.within_limit
    assert {row.eta: row.accuracy.correct for row in choice.rows}[choice.calibration.eta] == best < 64


def test_a_drop_of_exactly_the_limit_passes():
    model = small_network()
    held_out = labelled_by(model, batches_of(4, seed=7))
    rows = choose_eta(model, batches_of(3), held_out, SETTINGS, grid=GRID, max_drop=100).rows
    exact = next(row for row in rows if row.drop > 0)
    choice = choose_eta(model, batches_of(3), held_out, SETTINGS, grid=(exact.eta,), max_drop=exact.drop)
    assert choice.within_limit


@pytest.mark.parametrize("max_drop", [-1, float("nan")])
def test_an_impossible_limit_is_refused(max_drop):
    with pytest.raises(UserError, match="max_drop"):
        choose_eta(small_network(), batches_of(2), batches_of(1), SETTINGS, max_drop=max_drop)


def test_no_held_out_images_are_refused():
    with pytest.raises(UserError, match="no held-out images"):
        choose_eta(small_network(), batches_of(2), [], SETTINGS, grid=(0.1,))


def test_accuracy_counts_every_image_of_uneven_batches():
    model = small_network()
    batches = [(x[:n], model(x[:n]).argmax(1)) for (x, _), n in zip(batches_of(3), (16, 7, 1), strict=True)]
    batches[0][1][:4] += 1
    wrong = torch.zeros(1, 5)
    plain, (other,) = clean_accuracy(model, lambda: [lambda x: wrong.expand(len(x), -1)], batches, None)
    assert (plain.correct, plain.images) == (20, 24)
    assert other.correct == sum(int((y == 0).sum()) for _, y in batches)
