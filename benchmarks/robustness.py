"""An honest look at the embedded default: accuracy under adaptive attacks, worst case first.

    sad-deploy calibrate && python benchmarks/robustness.py [--epsilon 0.1] [--images 269]

L∞ PGD in pixel space on the digits' test split, against what `sad-deploy infer` computes. The attacker knows
everything and tries three ways; an image counts as robust only if it survives all restarts of all of them:

* through the pipeline: the gradient of the second pass, with S held constant (exact for a ReLU network, whose
  second derivative is zero almost everywhere);
* the plain network Φ1, ignoring the saliency step;
* the network Φ0 before calibration.

Each with the plain logits and with logits divided by 10, because a confident network's cross-entropy is flat.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measuring import machine, write_results
from torch import Tensor, nn

from sad_deploy.attack_config import Attack, AttackKind
from sad_deploy.attacks import perturb
from sad_deploy.calibrated import load_calibrated
from sad_deploy.classifier import SADClassifier, add_saliency, standardized
from sad_deploy.data.digits import digits_splits
from sad_deploy.models.digits import DigitsResNet, digits_state_dict
from sad_deploy.saliency import saliency

STEPS, RESTARTS = 100, 5
TEMPERATURES = (1.0, 10.0)


class PipelineWithConstantSaliency(nn.Module):
    """Φ1(x + η·n(S(x))) with ∂S/∂x taken as zero."""

    def __init__(self, defended: SADClassifier) -> None:
        super().__init__()
        self.defended = defended

    def forward(self, x: Tensor) -> Tensor:
        d = self.defended
        with torch.enable_grad():
            s, _ = saliency(d.model, x.detach())
        return d.model(add_saliency(x, s.detach(), eta=d.eta, normalization=d.normalization, clip=d.clip))


class Tempered(nn.Module):
    """Logits divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / self.temperature


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("sad-model"))
    parser.add_argument("--epsilon", type=float, default=0.1)
    parser.add_argument("--images", type=int, default=269)
    arguments = parser.parse_args()
    model, manifest = load_calibrated(arguments.bundle)
    space, defence = manifest.input_space, manifest.defence
    natural = DigitsResNet(num_classes=10).eval()
    natural.load_state_dict(digits_state_dict())
    defended = SADClassifier(
        model,
        eta=defence.eta,
        normalization=defence.normalization,
        clip=defence.bounds(space),
    )
    _, _, test = digits_splits()
    images = torch.from_numpy(test.images[: arguments.images]).float() / 255
    labels = torch.from_numpy(test.labels[: arguments.images])
    attack = Attack(AttackKind.PGD, epsilon=arguments.epsilon, steps=STEPS)

    @torch.no_grad()
    def right(classifier: nn.Module, pixels: Tensor) -> Tensor:
        return classifier(standardized(pixels, space)).argmax(1) == labels

    def survivors(victim: nn.Module, target: nn.Module) -> Tensor:
        """Images that `victim` still classifies after every restart of attacks made on `target`."""
        robust = right(victim, images)
        for seed in range(RESTARTS):
            for temperature in TEMPERATURES:
                generator = torch.Generator().manual_seed(seed)
                attacked = Tempered(target, temperature).eval()
                adversarial = perturb(attacked, images, labels, attack, space, generator=generator)
                robust &= right(victim, adversarial)
        return robust

    def percent(mask: Tensor) -> float:
        return round(100 * mask.float().mean().item(), 2)

    ways = {
        "through the pipeline": PipelineWithConstantSaliency(defended).eval(),
        "plain network Φ1": model,
        "network Φ0": natural,
    }
    survived = {name: survivors(defended, target) for name, target in ways.items()}
    worst = torch.stack(list(survived.values())).all(0)
    undefended = survivors(natural, natural)
    print(
        f"digits, {len(images)} images, η {defence.eta}; "
        f"L∞ ε {attack.epsilon}, PGD-{STEPS}, {RESTARTS} restarts"
    )
    print(f"  worst case over the three attacks, defended   {percent(worst):6.2f} %")
    for name, mask in survived.items():
        print(f"    {name:<42}  {percent(mask):6.2f} %")
    print(f"  clean, defended                               {percent(right(defended, images)):6.2f} %")
    print(f"  undefended Φ0: the same attack on itself      {percent(undefended):6.2f} %")
    print(f"  undefended Φ0: clean                          {percent(right(natural, images)):6.2f} %")
    results = {
        "machine": machine(),
        "data": "scikit-learn digits, test split",
        "images": len(images),
        "norm": "Linf",
        "epsilon": arguments.epsilon,
        "attack": f"PGD, {STEPS} steps, {RESTARTS} restarts, cross-entropy at temperatures {TEMPERATURES}",
        "eta": defence.eta,
        "defended_worst_case_percent": percent(worst),
        "defended_percent_by_attack": {name: percent(mask) for name, mask in survived.items()},
        "defended_clean_percent": percent(right(defended, images)),
        "undefended_percent": percent(undefended),
        "undefended_clean_percent": percent(right(natural, images)),
    }
    write_results(Path(__file__).parent / "results" / "robustness.json", results)


if __name__ == "__main__":
    main()
