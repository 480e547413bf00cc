"""Networks that return probabilities where SAD needs logits: found by what computed the output, and on data.

The gradient of a probability vanishes where the network is sure; see :mod:`sad_export.probabilities`. A
PyTorch network is its owner's code: it is refused, with the operation that has to go, and not rewritten.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sad_runtime.errors import UserError
from sad_runtime.prediction import kind_of_probabilities

from .saliency import differentiable, evaluating, logits_of

# Autograd's names of what may lie behind the function: it moves elements, or keeps their order.
_PASSED = (
    "Alias", "Clamp", "Clone", "Exp", "Log", "Permute", "Select", "Slice", "Squeeze", "ToCopy", "Transpose",
    "Unsqueeze", "UnsafeView", "View",
)  # fmt: skip
_SCALED = ("Div", "Mul")
_FUNCTIONS = ("LogSigmoid", "LogSoftmax", "Sigmoid", "Softmax")


def refuse_probabilities(model: nn.Module, x: Tensor, *, name: str | None = None) -> None:
    """Refuse a network that returns probabilities, their logarithms, or independent labels.

    Args:
        model: Φ; runs once, in eval mode.
        x: (N, C, H, W) of several images in the network's input space.
        name: What to call it; its class by default.

    Raises:
        UserError: It does; or the output is not (N, K) with at least two classes.
    """
    with evaluating(model), differentiable(x) as leaf:
        outputs = logits_of(model, leaf)
    found = _last_function(outputs)
    name = name or type(model).__name__
    if found in ("Sigmoid", "LogSigmoid") and outputs.shape[1] > 1:
        raise UserError(
            f"{name} ends in a {found} of {outputs.shape[1]} values: classes that do not exclude each other "
            "(multi-label), for which SAD is not defined"
        )
    if outputs.shape[1] < 2:
        end = f"the {found} of one value" if found else "one value"
        raise UserError(
            f"{name} returns {end}; a classifier needs a logit for each class",
            hint="for two classes with z the value before a sigmoid: return torch.cat([-z / 2, z / 2], 1)",
        )
    kind = kind_of_probabilities(outputs.detach().double().cpu().numpy())
    if found or kind:
        kind = kind or ("logarithms of probabilities" if found == "LogSoftmax" else "probabilities")
        last = f" ({found} is its last operation)" if found else ""
        raise UserError(
            f"{name} returns {kind}{last}, and SAD needs logits: the gradient of a probability vanishes "
            "where the network is sure",
            hint="take the softmax out of its forward; it has no weights, so the same file still fits",
        )


def _last_function(outputs: Tensor) -> str | None:
    """The function of the list that computed the outputs, as autograd recorded it."""
    node = outputs.grad_fn
    while node is not None:
        operation = node.name().partition("Backward")[0].lstrip("_")
        if operation in _FUNCTIONS:
            return operation
        by_a_number = operation in _SCALED and [n for n, _ in node.next_functions].count(None) == 1
        if not node.next_functions or not (operation in _PASSED or by_a_number):
            return None
        node = node.next_functions[0][0]
    return None


def trial_images(shape: tuple[int, int, int]) -> Tensor:
    """Four images of noise, (4, C, H, W) in [0, 1], the same every time."""
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
