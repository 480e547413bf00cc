"""Train the networks that `sad-deploy calibrate` uses when it is given no weights.

python examples/train_digits.py digits.safetensors
python examples/train_digits.py digits_adversarial.safetensors --adversarial

The package's own files in `sad_deploy/models/` were made with it, by torch 2.14.1 on an x86-64 CPU. Seed and
thread count are fixed: the same machine and versions give the same bytes again, others a network that is as
good. The data are scikit-learn's copy of the "Optical Recognition of Handwritten Digits" of the UCI
repository; only the training split is trained on.

SGD with Nesterov momentum, a linear warm-up and decay, images shifted by up to one pixel. Adversarial
training (Madry et al., 2018) starts from the weights of the first network and sees images that PGD with 7
steps has changed, L∞, ε rising to 0.1 during the first third: on one thread it takes about ten minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from sad_deploy.attack_config import Attack, AttackKind
from sad_deploy.attacks import perturb
from sad_deploy.data.digits import digits_splits
from sad_deploy.data.image_set import ImageSet, every_batch, training_batches
from sad_deploy.models.digits import MEAN, STD, DigitsResNet, digits_state_dict
from sad_runtime.manifest import InputSpace

EPOCHS = 20
BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
SEED = 0

ADVERSARIAL_EPOCHS = 60
EPSILON = 0.1
ATTACK_STEPS = 7
RISING = 1 / 3
"""Share of the training during which ε grows."""


def train(images: ImageSet, epochs: int, *, adversarial: bool = False) -> DigitsResNet:
    """A new network, or the natural one trained on adversarially; in eval mode."""
    torch.manual_seed(SEED)
    # Several threads add in an order of their own, and wait for each other at every small layer.
    torch.set_num_threads(1)
    model = DigitsResNet()
    if adversarial:
        model.load_state_dict(digits_state_dict())
    shifts = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, anneal_strategy="linear", cycle_momentum=False
    )
    batches = training_batches(images, batch_size=BATCH_SIZE, batches=steps, seed=SEED)
    for step, (pixels, labels) in enumerate(batches):
        assert labels is not None  # the digits are labelled
        pixels = shifted(pixels, shifts)
        if adversarial:
            epsilon = EPSILON * min(1.0, (step + 1) / (RISING * steps))
            pixels = attacked(model, pixels, labels, epsilon, shifts)
        loss = F.cross_entropy(model.train()(standardized(pixels)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def attacked(
    model: DigitsResNet, pixels: Tensor, labels: Tensor, epsilon: float, generator: torch.Generator
) -> Tensor:
    """The images as PGD changes them against the network as it is."""
    attack = Attack(AttackKind.PGD, epsilon=epsilon, steps=ATTACK_STEPS, step_size=epsilon / 4)
    return perturb(model, pixels, labels, attack, InputSpace(MEAN, STD), generator=generator)


def standardized(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as the network takes them."""
    return (pixels - MEAN[0]) / STD[0]


def shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by −1, 0 or 1 pixel along each axis; the background is 0."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (n, 2), generator=generator).tolist()
    return torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
    )


@torch.no_grad()
def accuracy(model: DigitsResNet, images: ImageSet) -> float:
    """Percent of images that are classified correctly."""
    correct = 0
    for pixels, labels in every_batch(images, batch_size=256):
        correct += int((model(standardized(pixels)).argmax(dim=1) == labels).sum())
    return 100 * correct / len(images)


def main(file: Path, epochs: int | None = None, *, adversarial: bool = False) -> None:
    """Train, write the weights, and say how good they are on images that were not trained on."""
    training, held_out, test = digits_splits()
    epochs = epochs or (ADVERSARIAL_EPOCHS if adversarial else EPOCHS)
    model = train(training, epochs, adversarial=adversarial)
    safetensors.torch.save_file(model.state_dict(), file)
    print(f"{file}: {accuracy(model, held_out):.1f} % held out, {accuracy(model, test):.1f} % of test")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the embedded networks.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("digits.safetensors"))
    parser.add_argument("--adversarial", action="store_true", help="train on what PGD makes of the images")
    arguments = parser.parse_args()
    main(arguments.file, adversarial=arguments.adversarial)
