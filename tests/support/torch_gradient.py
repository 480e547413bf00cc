"""Gradients by PyTorch's autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from .differentiate import Array, gradient


def assert_equals_autograd(
    nodes: Sequence[onnx.NodeProto],
    function: Callable[[torch.Tensor], torch.Tensor],
    x: Array,
    constants: dict[str, Array] | None = None,
    **options: Any,
) -> None:
    """dx of ``nodes`` at x against that of ``function``, for a random dy."""
    x = np.asarray(x, dtype=np.float32).astype(np.float64)
    xt = torch.tensor(x, requires_grad=True)
    y = function(xt)
    dy = np.random.default_rng(0).normal(size=tuple(y.shape)).astype(np.float32)
    (expected,) = torch.autograd.grad(y, xt, torch.tensor(dy, dtype=torch.float64))
    dx = gradient(nodes, x, dy, constants, **options)
    np.testing.assert_allclose(dx, expected.numpy(), rtol=2e-5, atol=2e-6)


def saliency64(model: nn.Module, x: Array) -> tuple[Array, Array]:
    """Logits and the gradient of the largest one."""
    wide = copy.deepcopy(model).double()
    xt = torch.from_numpy(x).double().requires_grad_()
    logits = wide(xt)
    (gradient,) = torch.autograd.grad(logits.max(1).values.sum(), xt)
    return logits.detach().numpy(), gradient.numpy()
