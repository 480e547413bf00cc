from __future__ import annotations

import pytest
import torch

from sad_deploy.classifier import standardized
from sad_deploy.data.digits import digits_splits
from sad_deploy.models import build_model
from sad_deploy.models.digits import MEAN, STD, digits_state_dict
from sad_runtime.manifest import InputSpace


@pytest.mark.parametrize("adversarial", [False, True])
def test_the_embedded_networks_reach_98_percent_on_unseen_digits(adversarial):
    model = build_model("digits-adversarial" if adversarial else "digits", 10)
    model.load_state_dict(digits_state_dict(adversarial=adversarial))
    for images in digits_splits()[1:]:
        pixels, labels = images.batch(range(len(images)))
        with torch.no_grad():
            found = model(standardized(pixels, InputSpace(MEAN, STD))).argmax(1)
        assert (found == labels).float().mean() >= 0.98
