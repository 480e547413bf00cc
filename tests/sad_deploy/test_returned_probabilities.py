"""A network that returns probabilities is refused, with the operation that has to go."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sad_deploy import calibrate
from sad_deploy.probabilities import refuse_probabilities, trial_images
from sad_runtime.errors import UserError

IMAGES = trial_images((3, 8, 8))


class Ending(nn.Module):
    """Conv, BatchNorm, pool, linear, and an end of one's own."""

    def __init__(self, end, classes=4):
        super().__init__()
        torch.manual_seed(0)
        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *pool)
        self.end = end

    def forward(self, x):
        return self.end(self.body(x))


ENDS = {
    "module": (nn.Softmax(dim=1), "probabilities (Softmax is its last operation)"),
    "function": (lambda z: z.softmax(1), "probabilities (Softmax is its last operation)"),
    "log": (nn.LogSoftmax(dim=1), "logarithms of probabilities (LogSoftmax is its last operation)"),
    "moved": (lambda z: z[:, :, None, None].softmax(1).flatten(1), "Softmax is its last operation"),
    "clamped": (lambda z: z.softmax(1).clamp(1e-7, 1), "Softmax is its last operation"),
    "percent": (lambda z: z.softmax(1) * 100, "Softmax is its last operation"),
    "by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), "returns probabilities, and SAD needs"),
    "log by hand": (lambda z: z - z.logsumexp(1, keepdim=True), "returns logarithms of probabilities"),
    "independent": (nn.Sigmoid(), "a Sigmoid of 4 values: classes that do not exclude each other (multi-"),
}  # fmt: skip


@pytest.mark.parametrize(("end", "message"), ENDS.values(), ids=ENDS)
def test_probabilities_are_refused_by_name(end, message):
    with pytest.raises(UserError) as caught:
        refuse_probabilities(Ending(end), IMAGES)
    assert message in caught.value.message


@pytest.mark.parametrize("end", [nn.Sigmoid(), nn.Identity()], ids=["sigmoid", "logit"])
def test_one_value_is_refused_with_its_two_logits(end):
    with pytest.raises(UserError, match="one value") as caught:
        refuse_probabilities(Ending(end, classes=1), IMAGES)
    assert "torch.cat([-z / 2, z / 2], 1)" in caught.value.hint


@pytest.mark.parametrize(
    "end",
    [nn.Identity(), nn.ReLU(), lambda z: z * 30, lambda z: z.sigmoid() * z, lambda z: z.softmax(1) + z],
    ids=["logits", "relu", "scaled", "swish", "residual"],
)
def test_logits_are_accepted(end):
    refuse_probabilities(Ending(end), IMAGES)


def test_python_callers_of_calibrate_are_told_before_the_first_attack():
    batches = [(IMAGES, torch.zeros(4, dtype=torch.long))] * 2
    with pytest.raises(UserError, match="Softmax is its last operation"):
        calibrate(Ending(nn.Softmax(dim=1)), batches, eta=0.1)
