"""Whether ONNX can hold a network: its graph is run, forward and backward, beside PyTorch, before any work.

A graph's gradient is that of its forward. Autograd may compute another: ``autograd.Function`` brings a
backward of its own (straight-through estimators, gradient reversal), ``detach`` and hooks cut or change it.
"""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from sad_export.gradient import Seed
from sad_export.graph.session import cpu_session
from sad_export.input_gradient import differentiated
from sad_export.loading import load_classifier
from sad_export.lowering import lowering_for
from sad_runtime.choices import Objective, Target
from sad_runtime.errors import UserError
from sad_runtime.verification.agreement import relative_l2

from .fold import fold_batchnorm
from .probabilities import trial_images
from .saliency import differentiable, evaluating, input_gradient, logits_of
from .to_onnx import to_onnx

_LOGITS_TOLERANCE = 1e-2
_LEAST_COSINE = 0.99
"""A ReLU at the edge turns over; a backward of another kind is off by far more."""


def exportable(model: nn.Module, shape: tuple[int, int, int], *, name: str) -> onnx.ModelProto:
    """The folded forward graph of a network; refused if its logits or gradient are not the network's.

    Args:
        model: Φ in eval mode, on the CPU.
        shape: (C, H, W) of its images.
        name: What to call it.

    Returns:
        As :func:`.to_onnx.to_onnx`.

    Raises:
        UserError: ``torch.export`` cannot trace it, some operator has no gradient rule, or the graph's
            logits or gradient are not PyTorch's.
    """
    forward = to_onnx(fold_batchnorm(model), shape)
    gradient_graph = differentiated(
        load_classifier(forward), lowering_for(Target.PORTABLE), Seed.of(Objective.COTANGENT)
    )
    x = trial_images(shape)
    session = cpu_session(gradient_graph)
    classes = session.get_outputs()[0].shape[1]
    weights = torch.randn(len(x), classes, generator=torch.Generator().manual_seed(0))
    feeds = zip((each.name for each in session.get_inputs()), (x.numpy(), weights.numpy()), strict=True)
    logits, gradient = session.run(["logits", "gradient"], dict(feeds))
    wanted, expected = input_gradient(model, x, lambda logits: logits * weights)
    error = relative_l2(logits, expected.numpy())
    if expected.any() and not error <= _LOGITS_TOLERANCE:
        raise UserError(
            f"the ONNX graph of {name} gives other logits than PyTorch (relative error {error:.2g})",
            hint="look for branches and numbers in its forward that depend on the image",
        )
    cosine = torch.cosine_similarity(wanted.ravel(), torch.from_numpy(gradient).ravel(), dim=0)
    if (wanted.any() or gradient.any()) and not cosine >= _LEAST_COSINE:
        own = own_functions(model, x)
        raise UserError(
            f"the gradient that PyTorch gives for {name} is not that of its forward (cosine {cosine:.3f})"
            + (f": {', '.join(own)} has a backward of its own" if own else "")
            + ", and an exported graph holds the forward alone",
            hint="use standard operations in its place"
            if own
            else "look for detach, no_grad and hooks in its forward",
        )
    return forward


def own_functions(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the ``autograd.Function`` classes, PyTorch's aside, that the logits went through, sorted.

    Args:
        model: Φ; runs once, in eval mode.
        x: (N, C, H, W).
    """
    with evaluating(model), differentiable(x) as leaf:
        logits = logits_of(model, leaf)
    found, seen, waiting = set(), set(), [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own: type | None = getattr(node, "_forward_cls", None)
        if own is not None and not own.__module__.startswith("torch."):
            found.add(own.__name__)
        waiting += [each for each, _ in node.next_functions]
    return sorted(found)
