from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sad_deploy.attacks import Attack, AttackKind, perturb
from sad_deploy.classifier import standardized
from sad_runtime.errors import UserError
from sad_runtime.manifest import InputSpace
from tests.support.networks import changed, images, small_network, state

SPACE = InputSpace(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def losses(model, pixels):
    with torch.no_grad():
        return F.cross_entropy(model(standardized(pixels, SPACE)), LABELS, reduction="none")


def edge_images():
    x = images(6)
    x[0], x[1] = 0.0, 1.0
    return x


@pytest.mark.parametrize("kind", [AttackKind.FGSM, AttackKind.PGD])
@pytest.mark.parametrize("epsilon", [0.0, 4 / 255, 0.2])
def test_bounded_attacks_stay_in_the_ball_and_in_pixel_range(kind, epsilon):
    x = edge_images()
    adversarial = perturb(small_network(), x, LABELS, Attack(kind=kind, epsilon=epsilon), SPACE)
    assert float((adversarial - x).abs().max()) <= epsilon + 1e-6
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1


@pytest.mark.parametrize("kind", [AttackKind.EQ3, AttackKind.FGSM, AttackKind.PGD])
def test_attacks_raise_the_loss(kind):
    model, x = small_network(), images(6)
    attack = Attack(kind=kind, epsilon=8 / 255)
    assert bool((losses(model, perturb(model, x, LABELS, attack, SPACE)) > losses(model, x)).all())


def test_more_pgd_steps_raise_the_loss_more_than_fgsm():
    model, x = small_network(), images(6)
    fgsm = perturb(model, x, LABELS, Attack(AttackKind.FGSM, epsilon=0.2), SPACE)
    pgd = perturb(model, x, LABELS, Attack(AttackKind.PGD, epsilon=0.2, steps=20), SPACE)
    assert float(losses(model, pgd).sum()) >= float(losses(model, fgsm).sum())


def test_eq3_adds_the_raw_gradient_in_the_networks_space():
    model, x = small_network(), images(6) * 0.5 + 0.25
    adversarial = perturb(model, x, LABELS, Attack(AttackKind.EQ3), SPACE)
    network_input = standardized(x, SPACE).requires_grad_()
    for index in range(len(x)):
        loss = F.cross_entropy(model(network_input[index : index + 1]), LABELS[index : index + 1])
        (delta,) = torch.autograd.grad(loss, network_input, retain_graph=True)
        moved = standardized(adversarial, SPACE)[index] - network_input[index].detach()
        torch.testing.assert_close(moved, delta[index], rtol=1e-3, atol=1e-6)


def test_none_gives_the_images_back():
    x = images(6)
    assert torch.equal(perturb(small_network(), x, LABELS, Attack(AttackKind.NONE), SPACE), x)


def test_without_labels_the_models_own_predictions_are_attacked():
    model, x = small_network(), images(6)
    own = model(standardized(x, SPACE)).argmax(1)
    attack = Attack(AttackKind.FGSM)
    assert torch.equal(perturb(model, x, None, attack, SPACE), perturb(model, x, own, attack, SPACE))


def test_the_random_start_follows_the_generator():
    model, x, attack = small_network(), images(6), Attack(steps=1)

    def run(seed):
        return perturb(model, x, LABELS, attack, SPACE, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_the_model_is_left_as_it_was():
    model = small_network(dropout=0.5).train()
    before = state(model)
    perturb(model, images(6), LABELS, Attack(), SPACE)
    assert changed(before, model) == set()
    assert model.training and model[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 1]), torch.tensor([-1] * 6)]
)
def test_labels_that_are_not_classes_are_refused(labels):
    with pytest.raises(UserError, match="class indices of 0 … 4"):
        perturb(small_network(), images(6), labels, Attack(), SPACE)


def test_impossible_settings_are_reported_together():
    with pytest.raises(UserError, match=r"epsilon.*8.*; steps.*0.*; step size") as error:
        Attack(epsilon=8, steps=0, step_size=-1)
    assert error.value.hint is not None and "8/255" in error.value.hint


def test_the_default_step_reaches_the_ball_two_and_a_half_times():
    assert Attack(epsilon=0.1, steps=5).alpha == pytest.approx(0.05)
