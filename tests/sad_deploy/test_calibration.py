from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from sad_deploy.attacks import Attack, AttackKind, perturb
from sad_deploy.batchnorm import batchnorm_layers, update_statistics
from sad_deploy.calibration import CalibrationRun, CalibrationSettings, calibrate, calibrate_each
from sad_deploy.classifier import standardized
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace
from tests.support.networks import batches_of, changed, images, randomize_batchnorm, small_network, state

SPACE = InputSpace(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
FGSM = Attack(AttackKind.FGSM)
BATCHNORM_BUFFERS = {f"{layer}.{name}" for layer in (1, 7) for name in ("running_mean", "running_var")}
COUNTERS = {"1.num_batches_tracked", "7.num_batches_tracked"}


def naive_algorithm_1(phi0, batches, eta, momentum):
    phi1 = copy.deepcopy(phi0)
    for layer in (phi1[1], phi1[7]):
        layer.momentum = momentum
        layer.train()
        if momentum is None:
            layer.reset_running_stats()
    for x, y in batches:
        x_adv = standardized(perturb(phi0, x, y, FGSM, SPACE), SPACE).requires_grad_()
        saliency = torch.autograd.grad(phi0(x_adv).max(dim=1).values.sum(), x_adv)[0]
        phi1((x_adv + eta * saliency).detach())
    return phi1


@pytest.mark.parametrize("momentum", [None, 0.1, 1.0])
def test_calibration_is_algorithm_1(momentum):
    phi0, batches = small_network(), batches_of(4)
    found = calibrate(phi0, batches, eta=0.8, attack=FGSM, input_space=SPACE, momentum=momentum)
    expected = naive_algorithm_1(phi0, batches, 0.8, momentum).state_dict()
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert (found.batches, found.batch_size, found.unused_layers) == (4, 16, ())


def test_several_etas_at_once_equal_one_by_one():
    phi0, batches, settings = small_network(), batches_of(3), CalibrationSettings(input_space=SPACE)
    sweep = calibrate_each(phi0, batches, (0.1, 0.8, 2.0), settings)
    for eta in (2.0, 0.1, 0.8):
        alone = calibrate(phi0, batches, eta=eta, input_space=SPACE)
        assert changed(state(alone.model), sweep.model_at(eta)) == set()
        assert changed(state(alone.model), sweep.calibration(eta).model) == set()
        assert sweep.calibration(eta).shift == alone.shift > 0


def test_only_batchnorm_statistics_change():
    phi0 = small_network(dropout=0.5)
    before = state(phi0)
    found = calibrate(phi0, batches_of(3), eta=0.8)
    assert changed(before, found.model) == BATCHNORM_BUFFERS | COUNTERS
    assert changed(before, phi0) == set(), "the model passed in must not change"
    assert all(parameter.grad is None for parameter in found.model.parameters())


def test_modes_momenta_and_gradient_flags_survive():
    phi0 = small_network(dropout=0.5)
    phi0[1].momentum, phi0[7].momentum = 0.3, 0.01
    phi0[0].weight.requires_grad_(False)
    found = calibrate(phi0, batches_of(2), eta=0.5).model
    assert not any(module.training for module in found.modules())
    assert (found[1].momentum, found[7].momentum) == (0.3, 0.01)
    assert not found[0].weight.requires_grad and found[6].weight.requires_grad


def test_dropout_is_off_while_statistics_are_updated():
    with_dropout, without = (calibrate(small_network(dropout=p), batches_of(3), eta=0.5) for p in (0.9, 0.0))
    assert changed(state(without.model), with_dropout.model) == set()


def test_dropout_is_off_also_where_the_model_was_left_in_training_mode():
    """calibrate works on a copy in eval mode; who calls update_statistics directly may not."""
    twins = []
    for dropout in (0.9, 0.0):
        model = small_network(dropout=dropout).train()
        update_statistics(model, batchnorm_layers(model), images(4), momentum=0.1)
        assert all(module.training for module in model.modules())
        twins.append(model)
    assert changed(state(twins[1]), twins[0]) == set()


def test_a_model_left_in_training_mode_is_calibrated_as_in_eval_mode_and_comes_back_in_it():
    expected = calibrate(small_network(dropout=0.5), batches_of(2), eta=0.5).model
    training = small_network(dropout=0.5).train()
    found = calibrate(training, batches_of(2), eta=0.5).model
    assert changed(state(expected), found) == set()
    assert not any(module.training for module in found.modules())
    assert all(module.training for module in training.modules())


def test_cumulative_statistics_do_not_depend_on_the_old_ones_but_ema_does():
    twins = []
    for momentum in (None, 0.1):
        phi0 = small_network()
        attack = Attack(AttackKind.NONE)
        first = calibrate(phi0, batches_of(3), eta=0.0, attack=attack, momentum=momentum)
        with torch.no_grad():
            phi0[1].running_mean += 5
        second = calibrate(phi0, batches_of(3), eta=0.0, attack=attack, momentum=momentum)
        twins.append(torch.equal(first.model[1].running_mean, second.model[1].running_mean))
    assert twins == [True, False]


def test_the_same_seed_gives_the_same_statistics():
    runs = [calibrate(small_network(), batches_of(3), eta=0.8, seed=seed).model for seed in (1, 1, 2)]
    assert changed(state(runs[0]), runs[1]) == set()
    assert changed(state(runs[0]), runs[2])


def test_batches_without_labels_attack_the_models_own_predictions():
    phi0, batches = small_network(), batches_of(3)
    own = [(x, phi0(standardized(x, SPACE)).argmax(1)) for x, _ in batches]
    found = calibrate(phi0, [x for x, _ in batches], eta=0.5, input_space=SPACE)
    expected = calibrate(phi0, own, eta=0.5, input_space=SPACE)
    assert changed(state(expected.model), found.model) == set()


def test_a_clip_that_cuts_everything_makes_eta_irrelevant():
    bounds = (0.4999, 0.5)
    first, second = (calibrate(small_network(), batches_of(2), eta=eta, clip=bounds) for eta in (0.0, 50.0))
    torch.testing.assert_close(first.model[1].running_mean, second.model[1].running_mean, rtol=0, atol=1e-3)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = small_network()
        self.auxiliary = randomize_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))

    def forward(self, x):
        return (self.body(x), self.auxiliary(x)) if self.training else self.body(x)


def test_layers_that_inference_does_not_reach_keep_their_statistics():
    phi0 = TwoHeads().eval()
    before = state(phi0)
    found = calibrate(phi0, batches_of(2), eta=0.5)
    assert found.unused_layers == ("auxiliary.1",)
    assert not any(name.startswith("auxiliary") for name in changed(before, found.model))


def test_a_network_that_reaches_no_batchnorm_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model.forgotten = nn.BatchNorm2d(4)
    model.forward = lambda x: model[1](model[0](x))
    with pytest.raises(UserError, match="reaches none"):
        calibrate(model, batches_of(2, classes=3), eta=0.5)


class Synchronised(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), norm, nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_sync_batchnorm_is_calibrated_like_batchnorm():
    torch.manual_seed(0)
    plain = Synchronised(nn.BatchNorm2d(4)).eval()
    synchronised = Synchronised(nn.SyncBatchNorm(4)).eval()
    synchronised.load_state_dict(plain.state_dict())
    batches = batches_of(2, classes=3)
    found = calibrate(synchronised, batches, eta=0.5).model
    torch.testing.assert_close(
        found.norm.running_var, calibrate(plain, batches, eta=0.5).model.norm.running_var
    )


def test_batchnorm3d_is_calibrated():
    class Volume(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.norm(self.conv(x[:, None]))).mean((2, 3, 4)))

    found = calibrate(Volume().eval(), batches_of(2, classes=3), eta=0.5)
    assert int(found.model.norm.num_batches_tracked) == 2


def test_a_model_without_batchnorm_is_refused():
    with pytest.raises(UserError, match="no BatchNorm"):
        calibrate(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), batches_of(2), eta=0.5)


def test_layers_without_running_statistics_are_all_named():
    model = small_network()
    model[1] = nn.BatchNorm2d(8, track_running_stats=False)
    model[7] = nn.BatchNorm1d(12, track_running_stats=False)
    with pytest.raises(UserError, match="2 of 2 BatchNorm layers keep no running statistics: 1, 7") as error:
        calibrate(model, batches_of(2), eta=0.5)
    assert "track_running_stats=True" in str(error.value.hint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_batch_is_named_and_nothing_has_changed(value):
    phi0, batches = small_network(), batches_of(4)
    before = state(phi0)
    batches[2][0][3, 0, 1, 1] = value
    with pytest.raises(UserError, match=r"batch 2 .*not finite"):
        calibrate(phi0, batches, eta=0.5)
    assert changed(before, phi0) == set()


def test_statistics_that_would_become_non_finite_are_restored():
    model = small_network()
    before = state(model)
    x = images(4)
    x[0, 0, 0, 0] = float("inf")
    with pytest.raises(UserError, match="1, 7 became non-finite"):
        update_statistics(model, batchnorm_layers(model), x, momentum=0.1)
    assert changed(before, model) == set()
    assert not model[1].training


def test_statistics_are_restored_when_the_forward_pass_fails_half_way():
    model = small_network()
    before = state(model)
    model[7].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        update_statistics(model, batchnorm_layers(model), images(4), momentum=0.1)
    assert changed(before, model) == set()
    assert model[1].momentum == 0.1 and not model[1].training


def test_weights_that_are_not_finite_are_reported_with_the_batch():
    model = small_network()
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    with pytest.raises(UserError, match=r"batch 0 .*became non-finite"):
        calibrate(model, batches_of(2), eta=0.5)


@pytest.mark.parametrize("constant", [torch.full((8, 3, 8, 8), 0.25), images(1).expand(8, -1, -1, -1)])
def test_constant_batch_is_refused(constant):
    with pytest.raises(UserError, match=r"batch 1 .*constant"):
        calibrate(small_network(), [images(8), constant], eta=0.5)


def test_batchnorm1d_at_batch_size_one_is_refused():
    with pytest.raises(UserError, match=r"single image.*BatchNorm1d"):
        calibrate(small_network(), [images(1), images(1, seed=1)], eta=0.5)


def test_one_value_per_channel_is_refused_with_the_batch_named():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2)).eval()
    with pytest.raises(UserError, match=r"batch 0 .*one value per channel"):
        calibrate(model, [images(1), images(1, seed=1)], eta=0.5)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_batches_are_refused(count):
    with pytest.raises(UserError, match=f"at least two batches, got {count}"):
        calibrate(small_network(), batches_of(count), eta=0.5)


@pytest.mark.parametrize("odd", [images(2), images(16, side=9)])
def test_a_batch_of_another_shape_is_refused(odd):
    with pytest.raises(UserError, match=r"batch 1 .*shape") as error:
        calibrate(small_network(), [images(16), odd], eta=0.5)
    assert "drop_last" in str(error.value.hint)


def test_everything_wrong_with_a_batch_is_said_at_once():
    with pytest.raises(UserError, match=r"shape.*; it spans \[2, 2\].*; it is constant"):
        calibrate(small_network(), [images(8), torch.full((4, 3, 8, 8), 2.0)], eta=0.5)


def test_normalised_images_are_refused_because_epsilon_is_in_pixels():
    with pytest.raises(UserError, match=r"pixels are in \[0, 1\]") as error:
        calibrate(small_network(), [standardized(images(8), SPACE)], eta=0.5)
    assert "input_space" in str(error.value.hint)


@pytest.mark.parametrize(
    "batch", [torch.zeros(4, 3, 8, 8, dtype=torch.uint8), images(4)[0], torch.zeros(0, 3, 8, 8), "x"]
)
def test_what_is_no_batch_of_images_is_refused(batch):
    with pytest.raises(UserError, match="floating-point tensor"):
        calibrate(small_network(), [batch], eta=0.5)


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5, float("nan")])
def test_an_impossible_momentum_is_refused(momentum):
    with pytest.raises(UserError, match="momentum"):
        calibrate(small_network(), batches_of(2), eta=0.5, momentum=momentum)


def test_progress_counts_batches():
    seen: list[int] = []
    calibrate(small_network(), batches_of(3), eta=0.5, attack=FGSM, progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(("labelled", "more"), [(True, 0), (False, 1)])
def test_a_batch_takes_no_needless_pass(labelled, more, monkeypatch):
    """PGD-5 and S0 are six forward and six backward passes of Φ0; every η is one forward pass of Φ1."""
    forwards, backwards = [], []
    original, gradient = nn.Sequential.forward, torch.autograd.grad

    def forward(self, x):
        forwards.append(len(x))
        return original(self, x)

    def grad(*arguments, **options):
        backwards.append(1)
        return gradient(*arguments, **options)

    monkeypatch.setattr(nn.Sequential, "forward", forward)
    monkeypatch.setattr(torch.autograd, "grad", grad)
    counts = []
    etas = (0.1, 0.2, 0.3)
    run = CalibrationRun(small_network(), etas, CalibrationSettings(attack=Attack(steps=5)))
    for x, y in batches_of(3):
        forwards.clear()
        backwards.clear()
        run.add((x, y) if labelled else x)
        counts.append((forwards.count(len(x)), len(backwards)))
    assert counts[1:] == [(5 + 1 + len(etas) + more, 5 + 1)] * 2
    assert counts[0][0] <= counts[1][0] + 1  # more on two images, to see what runs fastest


class Viewing(nn.Module):
    """Views its activations as they lie in memory, which channels last does not allow."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(256, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(x.view(len(x), -1))


def test_a_network_that_views_its_values_as_they_lie_is_calibrated():
    phi0 = randomize_batchnorm(Viewing()).eval()
    found = calibrate(phi0, batches_of(3, classes=3), eta=0.5).model
    assert int(found.norm.num_batches_tracked) == 3
    assert found.conv.weight.is_contiguous()


def test_other_networks_come_back_laid_out_as_usual():
    found = calibrate(small_network(), batches_of(2), eta=0.5).model
    assert all(parameter.is_contiguous() for parameter in found.parameters())


def test_it_ends_when_the_statistics_have_converged():
    batches = batches_of(40)
    settings = CalibrationSettings(attack=Attack(AttackKind.NONE))
    found = calibrate_each(small_network(), batches, (0.1, 0.3), settings).calibration(0.3).convergence
    tolerance = 1.5 * found.overall
    ended = calibrate_each(
        small_network(), batches, (0.1, 0.3), dataclasses.replace(settings, tolerance=tolerance)
    )
    assert 10 < ended.batches < 30  # the error falls as one over the root: 40 / 1.5² is 18
    assert ended.calibration(0.3).convergence.overall <= tolerance
    before = calibrate_each(small_network(), batches[: ended.batches - 1], (0.1, 0.3), settings)
    errors = [before.calibration(eta).convergence.overall for eta in (0.1, 0.3)]
    assert max(errors) > tolerance
