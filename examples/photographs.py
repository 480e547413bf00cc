r"""A small task on real photographs, and a network trained for it: something to try sad-deploy on.

    pip install scikit-image
    python examples/photographs.py photographs
    sad-deploy calibrate --model examples.photographs:network --weights photographs/network.safetensors \
        --data photographs/train --image-size 80 --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 \
        --normalization rms --batches 4 --batch-size 64 --out photo-model
    sad-deploy export photo-model
    sad-deploy infer photographs/test --bundle photo-model --report report.html

The task is which of ten photographs a patch was cut from: those of scikit-image that are CC0 or in the public
domain. Patches for training lie in the left two thirds of a photograph, those for testing in the rest.

The network is trained adversarially (FGSM from a random start, L-infinity, epsilon 4/255 at last), because
that is the kind of network that SAD is for, and because its saliency can be read. It takes some ten minutes
on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models.resnet import BasicBlock, ResNet

PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee"),
    *("grass", "gravel", "hubble_deep_field", "retina", "rocket"),
)
MEAN, STD = 0.5, 0.25
SIDE, PATCH = 80, (80, 180)
EPSILON, EPOCHS, BATCH, RATE = 4 / 255, 6, 16, 0.04


def network() -> nn.Module:
    """A ResNet with one block a stage; logits (N, 10)."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=len(PHOTOGRAPHS))


def write_patches(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Cut patches into ``folder/part/CLASS/*.png``.

    Returns:
        Pixels (N, 3, SIDE, SIDE) in [0, 1], and labels (N,).
    """
    rng, pixels, labels = np.random.default_rng(len(part)), [], []
    for label, name in enumerate(PHOTOGRAPHS):
        photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
        border = photo.width * 2 // 3
        low, high = (0, border) if part == "train" else (border, photo.width)
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            side = int(rng.integers(PATCH[0], min(PATCH[1], high - low, photo.height) + 1))
            left, top = int(rng.integers(low, high - side + 1)), int(rng.integers(photo.height - side + 1))
            patch = photo.resize((SIDE, SIDE), box=(left, top, left + side, top + side))
            patch.save(folder / part / name / f"{i:03}.png", compress_level=1)
            pixels.append(np.asarray(patch).transpose(2, 0, 1) / np.float32(255))
            labels.append(label)
    return torch.from_numpy(np.stack(pixels)), torch.tensor(labels)


def logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Of pixels (N, 3, H, W) in [0, 1]."""
    return model((pixels - MEAN) / STD)


def attacked(model: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step of size 1.25 ε along the sign of ∂ loss / ∂ pixel, from a random point of the ε-box."""
    start = pixels + epsilon * (2 * torch.rand_like(pixels) - 1)
    start = start.clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(logits(model, start), labels), start)
    moved = start.detach() + 1.25 * epsilon * gradient.sign()
    return moved.clamp(pixels - epsilon, pixels + epsilon).clamp(0, 1)


def train(model: nn.Module, pixels: Tensor, labels: Tensor) -> None:
    """SGD with one cycle of the learning rate; ε grows from 0 over the first half; patches are flipped."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        epsilon, total = EPSILON * min(1, 2 * epoch / EPOCHS), 0.0
        for chosen in torch.randperm(len(pixels)).split(BATCH):
            x, y = pixels[chosen], labels[chosen]
            x = x.flip(3) if torch.rand(()) < 0.5 else x
            x = attacked(model.eval(), x, y, epsilon) if epsilon else x
            loss = cross_entropy(logits(model.train(), x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {total / len(pixels):.3f}", flush=True)


def main(folder: Path) -> None:
    """Write the patches and the weights."""
    torch.manual_seed(0)
    training, (pixels, labels) = write_patches(folder, "train", 100), write_patches(folder, "test", 30)
    model = network().to(memory_format=torch.channels_last)
    train(model, *training)
    with torch.no_grad():
        right = (logits(model.eval(), pixels).argmax(1) == labels).float().mean().item()
    save_file(
        {name: t.contiguous() for name, t in model.state_dict().items()}, folder / "network.safetensors"
    )
    print(f"{folder}/network.safetensors: {100 * right:.1f} % of {len(labels)} test patches right")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "photographs"))
