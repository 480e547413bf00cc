from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import sad_deploy.eta as eta_module
from sad_deploy.accuracy import Reference, clean_accuracy
from sad_deploy.attacks import Attack, AttackKind
from sad_deploy.calibration import CalibrationSettings, calibrate
from sad_deploy.classifier import SADClassifier
from sad_deploy.eta import choose_eta
from sad_deploy.eta_grid import grey_levels, grid_for
from sad_deploy.saliency import normalize_saliency
from sad_runtime.choices import Normalization
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace
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
    allowed = [row.eta for row in choice.rows[1:] if row.drop <= 30]
    assert [row.eta for row in choice.rows] == [0, *GRID]
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
    best = max(row.accuracy.correct for row in choice.rows if row.eta > 0)
    assert not choice.within_limit
    assert choice.chosen.accuracy.correct == best < 64


def test_a_drop_of_exactly_the_limit_passes():
    model = small_network()
    held_out = labelled_by(model, batches_of(4, seed=7))
    rows = choose_eta(model, batches_of(3), held_out, SETTINGS, grid=GRID, max_drop=100).rows
    exact = next(row for row in rows[2:] if row.drop > 0)
    choice = choose_eta(model, batches_of(3), held_out, SETTINGS, grid=(exact.eta,), max_drop=exact.drop)
    assert choice.within_limit


@pytest.mark.parametrize("max_drop", [-1, float("nan")])
def test_an_impossible_limit_is_refused(max_drop):
    with pytest.raises(UserError, match="max_drop"):
        choose_eta(small_network(), batches_of(2), batches_of(1), SETTINGS, max_drop=max_drop)


def test_no_held_out_images_are_refused():
    with pytest.raises(UserError, match="no images to measure"):
        choose_eta(small_network(), batches_of(2), [], SETTINGS, grid=(0.1,))


def test_accuracy_counts_every_image_of_uneven_batches():
    model = small_network()
    batches = [(x[:n], model(x[:n]).argmax(1)) for (x, _), n in zip(batches_of(3), (16, 7, 1), strict=True)]
    batches[0][1][:4] += 1
    wrong = torch.zeros(1, 5)
    plain, (other,) = clean_accuracy(model, lambda: [lambda x: wrong.expand(len(x), -1)], batches, None)
    assert (plain.correct, plain.images) == (20, 24)
    assert other.accuracy.correct == sum(int((y == 0).sum()) for _, y in batches)
    assert plain.correct - other.accuracy.correct == other.lost - other.gained


def test_the_default_grid_goes_from_what_moves_nothing_to_what_breaks_everything():
    """Whatever the size of S: the last layer decides it, and the predictions do not depend on it."""
    found = []
    for scale in (1e-4, 1.0, 1e4):
        model = settled_network()
        with torch.no_grad():
            model[9].weight *= scale
            model[9].bias *= scale
        choice = choose_eta(model, batches_of(3), labelled_by(model, batches_of(4, seed=7)), SETTINGS)
        zero, first, *_, last = choice.rows
        assert zero.eta == 0 and zero.grey_levels == 0
        assert 0.05 < first.grey_levels < 1 and first.drop == pytest.approx(zero.drop, abs=2)
        assert last.drop > 20, "S of what is calibrated for a large eta is smaller, but it breaks everything"
        ratios = [b.eta / a.eta for a, b in itertools.pairwise(choice.rows[1:])]
        assert 1.3 < min(ratios) <= max(ratios) < 1.7
        found.append([round(row.eta * scale, 8) for row in choice.rows])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("normalization", ["rms", "linf", "sign"])
def test_the_default_grid_follows_the_normalisation(normalization):
    settings = dataclasses.replace(SETTINGS, normalization=Normalization(normalization))
    model, space = settled_network(), InputSpace(mean=(0.5,) * 3, std=(0.1, 0.2, 0.3))
    choice = choose_eta(model, batches_of(3), labelled_by(model, batches_of(4, seed=7)), settings)
    assert choice.rows[1].grey_levels < 0.5 and choice.rows[-1].grey_levels > 40
    s = torch.randn(4, 3, 8, 8)
    smallest, *_, largest = grid_for(s, space, settings.normalization)
    unit = grey_levels(normalize_saliency(s, settings.normalization), space)
    assert 0.15 < smallest * unit <= 0.25 and 64 <= largest * unit < 100


def test_grey_levels_are_those_of_pixels():
    space = InputSpace(mean=(0.5,) * 3, std=(0.1, 0.2, 0.3))
    assert grey_levels(torch.ones(2, 3, 4, 4), space) == pytest.approx(0.2 * 255)
    assert grey_levels(-torch.ones(2, 3, 4, 4), None) == pytest.approx(255)


def test_a_network_whose_answer_does_not_depend_on_the_image_has_no_eta():
    model = small_network()
    with torch.no_grad():
        model[9].weight.zero_()
    with pytest.raises(UserError, match="saliency of the first batch is zero"):
        choose_eta(model, batches_of(3), batches_of(2), SETTINGS)


def test_a_grid_that_moves_nothing_is_refused_before_the_last_batch(quick_scouting):
    seen = []
    with pytest.raises(UserError, match=r"flat.* 0.002, moves a pixel by .* of 255 grey levels"):
        choose_eta(
            small_network(),
            batches_of(9),
            batches_of(2, seed=5),
            SETTINGS,
            grid=(0.001, 0.002),
            progress=seen.append,
        )
    assert seen == [1, 2]


@pytest.fixture
def quick_scouting(monkeypatch):
    """After two batches of 16, on one."""
    monkeypatch.setattr(eta_module, "_SCOUTED", 32)
    monkeypatch.setattr(eta_module, "SCOUTING", 16)


@pytest.fixture
def opposed():
    """A network and images with labels of which recalibration leaves it none right."""
    model, images = small_network(), [x for x, _ in batches_of(4, seed=7)]
    phi1 = calibrate(model, batches_of(9), eta=0.0, attack=SETTINGS.attack).model
    with torch.no_grad():
        kept = [(x, model(x).argmax(1)) for x in images]
        differ = [(x[phi1(x).argmax(1) != y], y[phi1(x).argmax(1) != y]) for x, y in kept]
    assert sum(len(y) for _, y in differ) > 16
    return model, [(x, y) for x, y in differ if len(y)]


def test_a_hopeless_sweep_stops_early_unless_any_drop_is_allowed(quick_scouting, opposed):
    model, held_out = opposed
    seen = []
    choice = choose_eta(model, batches_of(9), held_out, SETTINGS, progress=seen.append)
    assert seen == [1, 2] and choice.stopped and not choice.within_limit
    assert choice.recalibrated.comparison.interval[0] > 2 and choice.calibration.batches == 2
    choice = choose_eta(model, batches_of(9), held_out, SETTINGS, progress=seen.append, allow_drop=True)
    assert seen[2:] == [*range(1, 10)] and not choice.stopped and not choice.within_limit


def test_the_eta_around_the_limit_and_none_go_on_to_the_end(monkeypatch):
    monkeypatch.setattr(eta_module, "_SCOUTED", 96)
    model = settled_network()
    held_out = labelled_by(model, batches_of(4, seed=7))
    choice = choose_eta(model, batches_of(9), iter(held_out), SETTINGS, max_drop=40)
    assert choice.within_limit
    finished = [row for row in choice.rows if row.batches == 9]
    assert 4 <= len(finished) <= 6 < len(choice.rows) and finished[0].eta == 0
    assert {row.batches for row in choice.rows} == {6, 9}
    assert all(row.accuracy.images == 64 for row in finished) and choice.chosen in finished
    alone = calibrate(model, batches_of(9), eta=choice.calibration.eta, attack=SETTINGS.attack)
    assert changed(state(alone.model), choice.calibration.model) == set()
    whole = choose_eta(
        model, batches_of(9), held_out, SETTINGS, grid=[row.eta for row in choice.rows[1:]], max_drop=40
    )
    assert whole.calibration.eta == choice.calibration.eta, "giving up early decides nothing here"


def test_a_grid_of_zero_alone_is_refused():
    with pytest.raises(UserError, match="no eta above 0"):
        choose_eta(small_network(), batches_of(2), batches_of(1), SETTINGS, grid=(0.0,))


def test_a_short_calibration_measures_only_what_is_near_the_limit_on_all_images(monkeypatch):
    monkeypatch.setattr(eta_module, "SCOUTING", 16)
    model = settled_network()
    seen = []
    choice = choose_eta(
        model,
        batches_of(2),
        labelled_by(model, batches_of(4, seed=7)),
        SETTINGS,
        held_out_progress=seen.append,
    )
    assert seen == [1, 1, 2, 3, 4]
    images = [row.accuracy.images for row in choice.rows]
    assert set(images) == {16, 64} and images.count(64) <= 6 and choice.chosen.accuracy.images == 64
