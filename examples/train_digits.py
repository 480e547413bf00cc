"""Train the network that `sad-deploy calibrate` uses when it is given none, and write its weights.

python examples/train_digits.py digits.safetensors

The package's own `sad_deploy/models/digits.safetensors` was made with it, by torch 2.14.1 on an x86-64 CPU.
Seed and thread count are fixed: the same machine and versions give the same bytes again, others a network
that is as good. The data are scikit-learn's copy of the "Optical Recognition of Handwritten Digits" of the
UCI repository; only the training split is trained on.

SGD with Nesterov momentum, a linear warm-up and decay, images shifted by up to one pixel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from sad_deploy.data.digits import digits_splits
from sad_deploy.data.image_set import ImageSet, every_batch, training_batches
from sad_deploy.models.digits import MEAN, STD, DigitsResNet

EPOCHS = 20
BATCH_SIZE = 64
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
SEED = 0


def train(images: ImageSet, epochs: int) -> DigitsResNet:
    """A new network, trained; in eval mode."""
    torch.manual_seed(SEED)
    # Several threads add in an order of their own, and wait for each other at every small layer.
    torch.set_num_threads(1)
    model = DigitsResNet()
    shifts = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    steps = epochs * (len(images) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, anneal_strategy="linear", cycle_momentum=False
    )
    for pixels, labels in training_batches(images, batch_size=BATCH_SIZE, batches=steps, seed=SEED):
        assert labels is not None  # the digits are labelled
        loss = F.cross_entropy(model(standardized(shifted(pixels, shifts))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


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


def main(file: Path, epochs: int = EPOCHS) -> None:
    """Train, write the weights, and say how good they are on images that were not trained on."""
    training, held_out, test = digits_splits()
    model = train(training, epochs)
    safetensors.torch.save_file(model.state_dict(), file)
    print(f"{file}: {accuracy(model, held_out):.1f} % held out, {accuracy(model, test):.1f} % of test")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits.safetensors"))
