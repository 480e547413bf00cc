from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sad_deploy.evaluation.losses import Array, Loss, margin

LOGITS = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 4, 5])
TARGETS = np.array([6, 6, 6, 0, 0, 0])


class Identity:
    """A network whose logits are its image, so that the gradient is the slope itself."""

    num_classes = 7

    def of_label(self, images: Array, labels: Array) -> tuple[Array, Array]:
        z = torch.from_numpy(images[:, :, 0, 0]).requires_grad_()
        loss = torch.nn.functional.cross_entropy(z, torch.from_numpy(labels), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        return images[:, :, 0, 0], gradient.numpy()[:, :, None, None]

    def of_cotangent(
        self, images: Array, cotangents: Array | Callable[[Array], Array]
    ) -> tuple[Array, Array]:
        logits = images[:, :, 0, 0]
        given = cotangents(logits) if callable(cotangents) else cotangents
        return logits, given[:, :, None, None]


def in_torch(name: str, z: torch.Tensor) -> torch.Tensor:
    y, t = torch.from_numpy(LABELS), torch.from_numpy(TARGETS)
    own, target = z.gather(1, y[:, None])[:, 0], z.gather(1, t[:, None])[:, 0]
    ordered = z.sort(1).values
    if name == "cross_entropy":
        return torch.nn.functional.cross_entropy(z, y, reduction="none")
    if name == "margin":
        return target - own
    if name == "dlr":
        others = z.clone()
        others[torch.arange(6), y] = -torch.inf
        return -(own - others.max(1).values) / (ordered[:, -1] - ordered[:, -3] + 1e-12)
    return -(own - target) / (ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4]) + 1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr", "targeted_dlr"])
def test_losses_and_slopes_are_autograds(name: str) -> None:
    z = torch.from_numpy(LOGITS).double().requires_grad_()
    want = in_torch(name, z)
    (slope,) = torch.autograd.grad(want.sum(), z)
    found = Loss(name)(Identity(), LOGITS[:, :, None, None], LABELS, TARGETS)
    np.testing.assert_allclose(found.loss, want.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.gradient[:, :, 0, 0], slope.numpy(), rtol=1e-5, atol=1e-6)


def test_a_target_is_the_best_wrong_class() -> None:
    targets = Loss("margin", 1).targets(LOGITS, LABELS)
    assert (targets != LABELS).all()
    own = LOGITS[np.arange(6), LABELS]
    np.testing.assert_allclose(margin(LOGITS, LABELS), own - LOGITS[np.arange(6), targets], rtol=1e-6)
