"""Networks trained on real images, for benchmarks whose figures depend on the weights.

    python benchmarks/trained.py [--models resnet18 resnet50] [--folder trained]

The task is which of 14 photographs (those that come with scikit-image and scikit-learn) a patch was cut from.
Patches for training lie in the left two thirds of a photograph, those for testing in the rest. There are no
published weights in it; it takes minutes on two cores. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import sklearn.datasets
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "retina", "rocket", "stereo_motorcycle", "china.jpg", "flower.jpg"),
)
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PATCH = (56, 160)
"""Shortest and longest side of a patch before it is resized, in pixels."""

_EACH = {"train": 100, "test": 40}
_BATCH = 20
# Side of the patches, passes over them, highest learning rate.
_STAGES = ((112, 6, 0.04), (SIDE, 1, 0.01))


def photograph(name: str) -> Image.Image:
    if name.endswith(".jpg"):
        array = sklearn.datasets.load_sample_image(name)
    else:
        array = getattr(skimage.data, name)()
        array = array[0] if isinstance(array, tuple) else array
    return Image.fromarray(array).convert("RGB")


def write_patches(folder: Path) -> None:
    """``folder/train/CLASS/*.png`` and ``folder/test/CLASS/*.png``, always the same."""
    if (folder / "test").is_dir():
        return
    rng = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        image = photograph(name)
        border = image.width * 2 // 3
        for part, count in _EACH.items():
            target = folder / part / name.removesuffix(".jpg")
            target.mkdir(parents=True)
            low, high = (0, border) if part == "train" else (border, image.width)
            for i in range(count):
                side = int(rng.integers(_PATCH[0], min(_PATCH[1], high - low, image.height) + 1))
                left = int(rng.integers(low, high - side + 1))
                top = int(rng.integers(0, image.height - side + 1))
                box = (left, top, left + side, top + side)
                patch = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
                patch.save(target / f"{i:03}.png")


def patches(folder: Path, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 224, 224) uint8 and labels (N,), in the order of the class names."""
    images, labels = [], []
    for label, name in enumerate(sorted(path.name for path in (folder / part).iterdir())):
        for path in sorted((folder / part / name).glob("*.png")):
            images.append(np.asarray(Image.open(path)).transpose(2, 0, 1))
            labels.append(label)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def normalised(images: torch.Tensor, side: int) -> torch.Tensor:
    x = (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    if side != SIDE:
        x = nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return x.to(memory_format=torch.channels_last)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """SGD with one cycle of the learning rate a stage; flips are the only augmentation."""
    generator = torch.Generator().manual_seed(0)
    model.to(memory_format=torch.channels_last)
    for side, epochs, rate in _STAGES:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
        steps = epochs * (len(images) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for epoch in range(epochs):
            model.train()
            started, total = time.monotonic(), 0.0
            for chosen in torch.randperm(len(images), generator=generator).split(_BATCH):
                x = normalised(images[chosen], side)
                if torch.rand((), generator=generator) < 0.5:
                    x = x.flip(3)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(x), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(chosen)
            spent = time.monotonic() - started
            print(f"  side {side}, epoch {epoch}: loss {total / len(images):.3f}, {spent:.0f} s", flush=True)
    model.eval()


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.inference_mode():
        right = [
            (model(normalised(x, SIDE)).argmax(1) == y).sum().item()
            for x, y in zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
        ]
    return sum(right) / len(labels)


def trained(name: str, folder: Path) -> Path:
    """The weights of a torchvision classifier of these photographs, trained if they are not there.

    Args:
        name: Of the network.
        folder: Holds the patches and the weights.

    Returns:
        Path of a state dict, as safetensors.
    """
    write_patches(folder)
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        print(f"{name}: training")
        torch.manual_seed(0)
        options: dict[str, Any] = {"weights": None, "num_classes": len(PHOTOGRAPHS)}
        model = torchvision.models.get_model(name, **options)
        train(model, *patches(folder, "train"))
        print(f"{name}: accuracy on test patches {accuracy(model, *patches(folder, 'test')):.3f}")
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def main() -> None:
    """Make the patches and the networks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--folder", type=Path, default=Path("trained"))
    arguments = parser.parse_args()
    for name in arguments.models:
        trained(name, arguments.folder)


if __name__ == "__main__":
    main()
