"""Small networks of every shape that calibration and folding must handle, and what tests do to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

Head = Callable[[Tensor], Tensor]


def small_network(*, channels: int = 3, classes: int = 5, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """Convolution, BatchNorm, smooth activation, pooling, BatchNorm1d; statistics randomised; eval mode."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.BatchNorm1d(12),
        nn.SiLU(),
        nn.Linear(12, classes),
    )
    return randomize_batchnorm(model).eval()


def randomize_batchnorm(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after training, not the identity they start as."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, BatchNorm):
            with torch.no_grad():
                layer.running_mean.uniform_(-0.3, 0.3, generator=generator)
                layer.running_var.uniform_(0.5, 2.0, generator=generator)
                if layer.affine:
                    layer.weight.uniform_(0.5, 1.5, generator=generator)
                    layer.bias.uniform_(-0.3, 0.3, generator=generator)
    return model


def images(n: int, *, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    """(n, channels, side, side) pixels in [0, 1]."""
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def batches_of(count: int, *, size: int = 16, classes: int = 5, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """``count`` batches of different images with labels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (images(size, seed=seed * 1000 + index), torch.randint(0, classes, (size,), generator=generator))
        for index in range(count)
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names whose bits differ."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
