"""The paper's networks in CIFAR form: 32×32 input, a 3×3 stem of stride 1, no max pooling.

Parameter names follow the usual CIFAR implementations (``conv1``, ``layer1.0.conv1``, ``shortcut.0``,
``linear``; ``block1.layer.0`` for the wide network), so that their checkpoints load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .digits import BasicBlock

MEAN = (0.4914, 0.4822, 0.4465)
"""Mean of CIFAR-10's training pixels in [0, 1]."""

STD = (0.2470, 0.2435, 0.2616)
"""Standard deviation of the same."""


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with BatchNorm beside a shortcut; four times as many channels out.

    Args:
        in_channels: Of the input.
        channels: Of the 3×3 convolution.
        stride: Of the 3×3 convolution and of the shortcut.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, 4·C, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of four stages of 64, 128, 256 and 512 channels for 32×32 images.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: Blocks a stage.
        num_classes: K.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module
    layer4: nn.Module

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        expansion = getattr(block, "expansion", 1)
        in_channels = 64
        for stage, depth in enumerate(depths):
            channels = 64 << stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(block(in_channels, channels, stride=stride))
                in_channels = expansion * channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) for standardised images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet18(num_classes: int) -> CifarResNet:
    """CIFAR-form ResNet-18."""
    return CifarResNet(BasicBlock, (2, 2, 2, 2), num_classes)


def resnet50(num_classes: int) -> CifarResNet:
    """CIFAR-form ResNet-50."""
    return CifarResNet(Bottleneck, (3, 4, 6, 3), num_classes)


class PreActivationUnit(nn.Module):
    """BatchNorm, ReLU, 3×3 convolution, twice, beside a shortcut taken after the first ReLU if shapes change.

    Args:
        in_channels: Of the input.
        channels: Of the output.
        stride: Of the first convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            if stride != 1 or in_channels != channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, H/stride, W/stride)."""
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return torch.add(y, shortcut)


class Stage(nn.Module):
    """Pre-activation units one after the other; the first one changes the shape."""

    def __init__(self, units: int, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                PreActivationUnit(channels if index else in_channels, channels, stride=1 if index else stride)
                for index in range(units)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C, H/stride, W/stride)."""
        y: Tensor = self.layer(x)
        return y


class WideResNet(nn.Module):
    """Wide pre-activation ResNet: three stages of 16w, 32w and 64w channels.

    Args:
        units: Pre-activation units a stage.
        width: w.
        num_classes: K.
    """

    def __init__(self, units: int, width: int, num_classes: int) -> None:
        super().__init__()
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.block1 = Stage(units, channels[0], channels[1], stride=1)
        self.block2 = Stage(units, channels[1], channels[2], stride=2)
        self.block3 = Stage(units, channels[2], channels[3], stride=2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) for standardised images (N, 3, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1).flatten(1)
        logits: Tensor = self.fc(x)
        return logits


def wrn32_10(num_classes: int) -> WideResNet:
    """WideResNet-32-10 as Madry et al. use it: five pre-activation units a stage, width 10.

    That is 3·5·2 convolutions, the stem and the classifier: 32 layers. Zagoruyko and Komodakis count the
    shortcuts' convolutions too and call the same network WRN-34-10.
    """
    return WideResNet(5, 10, num_classes)
