"""The embedded default's network: a small residual network with BatchNorm for 1×16×16 images."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.3056,)
"""Mean of the training digits' pixels in [0, 1]."""

STD = (0.3193,)
"""Standard deviation of the same."""


def digits_state_dict(*, adversarial: bool = False) -> dict[str, Tensor]:
    """Trained weights of :class:`DigitsResNet`, which ``examples/train.py`` made.

    Args:
        adversarial: Those of adversarial training (PGD-7, L∞, ε = 0.1).
    """
    name = "digits_adversarial.safetensors" if adversarial else "digits.safetensors"
    return safetensors.torch.load_file(Path(__file__).with_name(name))


class DigitsResNet(nn.Module):
    """ResNet-8: a 3×3 stem and three basic residual blocks of 16, 32 and 64 channels.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(
            BasicBlock(16, 16, stride=1), BasicBlock(16, 32, stride=2), BasicBlock(32, 64, stride=2)
        )
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) for standardised images (N, 1, H, W)."""
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm beside a shortcut: He et al., "Deep residual learning", 2016.

    The shortcut is the identity, or a 1×1 convolution with BatchNorm where the shape changes.

    Args:
        in_channels: Of the input.
        channels: Of the output.
        stride: Of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
