"""A PyTorch classifier as a forward ONNX graph; everything after that is ``sad_export``'s."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn

from sad_runtime.errors import UserError

_EXAMPLE_BATCH = 2  # torch.export specialises a dimension of size 0 or 1


def to_onnx(model: nn.Module, input_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Export a classifier in eval mode with a dynamic batch.

    Args:
        model: Maps (N, C, H, W) to logits (N, K); BatchNorm is best folded before.
        input_shape: (C, H, W).

    Returns:
        The forward graph: input ``x`` (N, C, H, W) in the network's input space, output ``logits``.

    Raises:
        UserError: ``torch.export`` cannot trace the model; the message holds its reason.
    """
    example = torch.zeros(_EXAMPLE_BATCH, *input_shape, device=next(model.parameters()).device)
    chatter = io.StringIO()  # the exporter prints its progress to stdout, which belongs to results
    try:
        with contextlib.redirect_stdout(chatter), _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model.eval(),
                (example,),
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(
            f"torch cannot export this model to ONNX: {_first_line(error)}",
            hint="export it yourself, then: sad-deploy defend forward.onnx --eta …",
        ) from error
    assert program is not None
    proto = program.model_proto
    assert isinstance(proto, onnx.ModelProto)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's advice, which is about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
