"""Small real classifiers with randomised BatchNorm statistics, in PyTorch and as ONNX."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from sad_deploy.fold import fold_batchnorm
from sad_deploy.to_onnx import to_onnx
from sad_export.job import GraphOptions
from sad_export.loading import Reading, load_classifier
from sad_export.two_pass import Defence, defended


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """BatchNorm statistics and affines that fold to something; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.affine:
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.7, 1.3),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def small_cnn(classes: int = 5) -> nn.Module:
    """Conv, BN, ReLU, a strided residual block, max pool, linear: every structure of a ResNet, tiny."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Sequential(
                nn.Conv2d(6, 8, 3, 2, 1, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, 1, 1),
                nn.BatchNorm2d(8),
            )
            self.shortcut = nn.Sequential(nn.Conv2d(6, 8, 1, 2), nn.BatchNorm2d(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.main(x) + self.shortcut(x))

    torch.manual_seed(0)
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, 1, 1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            Residual(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, classes),
        )
    )


def forward_onnx(model: nn.Module, shape: tuple[int, int, int] = (3, 16, 16)) -> onnx.ModelProto:
    return to_onnx(fold_batchnorm(model), shape)


def two_pass_graph(forward: onnx.ModelProto, options: GraphOptions | None = None, **defence: Any) -> ir.Model:
    """The two-pass graph with its parts marked, as it is lowered to other precisions."""
    options = options or GraphOptions()
    graph = load_classifier(forward, Reading(least_opset=options.variant.least_opset))
    return defended(graph, Defence(**defence), options.lowering)
