"""Which parts of an image a logit comes from: saliency, Grad-CAM, integrated gradients, SmoothGrad as graphs.

With g = ∂Φ_i/∂x and the class i of the image itself:

    saliency     g(x)                                                     (Simonyan et al. 2014)
    gradcam      ReLU(Σ_c mean_hw(∂Φ_i/∂A_c) · A_c), resized to the image (Selvaraju et al. 2017, Eq. 1 and 2)
    integrated   (x − x') · ∫₀¹ g(x' + α(x − x')) dα                      (Sundararajan et al. 2017, Eq. 1)
    smoothgrad   mean of g(x + σε), ε ~ N(0, 1)                           (Smilkov et al. 2017)

The last two take the gradient at many points of each image: see :mod:`.points`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from sad_runtime.choices import Method, Objective

from .attribution import Attribution
from .feature_map import LAST, check_map, value_at
from .gradient import Seed
from .graph.expression import Array, Builder, Expr
from .graph.values import Dim, static
from .graph.write import collects_graph_cycles, to_proto
from .input_gradient import append_saliency, check_class, differentiated, finish, prepared
from .loading import ForwardGraph, Reading, load_classifier, warn
from .lowering import Lowering, lowering_for
from .points import Points


@collects_graph_cycles
def attribution_graph(
    model: onnx.ModelProto | str | Path,
    method: str,
    *,
    of: str | int = Objective.LARGEST,
    logits: str | None = None,
    image_size: tuple[int, int] | None = None,
    conv_gradient: str = "auto",
    target: str = "portable",
    notice: Callable[[str], None] = warn,
    **settings: Any,
) -> onnx.ModelProto:
    """A classifier with a map of what its answer comes from; see the module for the equations.

    Args:
        model: A forward classifier with one float input (N, C, H, W), from any framework; not modified.
        method: ``saliency``, ``gradcam``, ``integrated`` or ``smoothgrad``.
        of: Which logit; see :func:`~sad_export.input_gradient`.
        logits: Name of the logits where the graph has several outputs.
        image_size: Height and width, for a graph that leaves them open.
        conv_gradient: How convolutions are differentiated: ``auto``, ``convtranspose`` or ``conv``.
        target: ``portable``, or ``cpu`` for the fastest form in onnxruntime on the CPU.
        notice: Called with a line for everything that is taken otherwise than the graph has it, and for the
            feature map that is taken.
        **settings: Of the method; see :class:`Attribution`.

    Returns:
        A graph with outputs ``logits`` (N, K) and, by method: ``gradient`` (N, C, H, W) of ``saliency`` and
        ``smoothgrad``, ``attribution`` (N, C, H, W) of ``integrated``, ``heatmap`` (N, 1, H, W) of
        ``gradcam``, at least 0 and not scaled.

    Raises:
        GraphError: Not a classifier, nodes without a gradient rule, no feature map, or a fixed batch where
            the method needs a dynamic one.
        UserError: A word or a setting is wrong.
    """
    attribution = Attribution(method, Seed.of(of), **settings)
    lowering = lowering_for(target, conv_gradient)
    graph = load_classifier(model, Reading(logits, image_size))
    for each in graph.notices:
        notice(each)
    return to_proto(attributed(graph, lowering, attribution, notice))


def attributed(
    graph: ForwardGraph, lowering: Lowering, attribution: Attribution, notice: Callable[[str], None]
) -> ir.Model:
    """Extend a forward graph; see :func:`attribution_graph`.

    Args:
        graph: The classifier; its graph is the one that is extended and returned.
        lowering: What the gradient is written with.
        attribution: What is written.
        notice: Told which feature map is taken.

    Raises:
        GraphError: See :func:`attribution_graph`.
    """
    method = attribution.chosen
    if method is Method.SALIENCY:
        at = value_at(graph, attribution.at, notice)
        return differentiated(graph, lowering, attribution.seed, at=at)
    check_class(graph, attribution.seed)
    if method is Method.GRADCAM:
        return _gradcam(graph, lowering, attribution, notice)
    return _over_points(graph, lowering, attribution)


def _gradcam(
    graph: ForwardGraph, lowering: Lowering, attribution: Attribution, notice: Callable[[str], None]
) -> ir.Model:
    at = value_at(graph, attribution.at or LAST, notice)
    assert at is not None
    check_map(at)
    metadata = attribution.metadata(str(at.name))
    at = prepared(graph, lowering, at)
    given = attribution.seed.new_input(graph.logits)
    gradient = append_saliency(graph, at, lowering, attribution.seed, given)
    g = Builder(opset=graph.opset, prefix="attribution")
    weights = g.of(gradient).mean((2, 3))
    heatmap = _resized((weights * g.of(at)).sum((1,)).op("Relu"), graph.image_shape[2:])
    g.append_to(graph.model.graph)
    lowering.complete(graph.model)
    outputs = {graph.logits: "logits", heatmap.value: "heatmap"}
    finish(graph, outputs, given, what="Grad-CAM", metadata=metadata)
    return graph.model


def _resized(cam: Expr, size: Sequence[Dim]) -> Expr:
    """(N, 1, h, w) → (N, 1, H, W), bilinear: a product with a constant for each axis.

    A Resize beside a dynamic batch takes scales alone, and H/h in float32 may give H − 1 rows.
    """
    g, (height, width) = cam.g, (static(n) for n in size)
    batch, one, h, w = cam.shape
    if (h, w) == (height, width):
        return cam
    rows, columns = (m.astype(cam.dtype.numpy()) for m in bilinear((h, w), (height, width)))
    wide = cam.op("MatMul", g.constant(columns.T.copy()), shape=(batch, one, h, width))
    return g.constant(rows).op("MatMul", wide, shape=(batch, one, height, width))


def bilinear(source: Sequence[Dim], wanted: Sequence[Dim]) -> list[Array]:
    """For each axis, the matrix (n wanted, n source) of linear interpolation between centres of pixels."""
    matrices = []
    for have, want in zip(map(static, source), map(static, wanted), strict=True):
        place = np.clip((np.arange(want) + 0.5) * have / want - 0.5, 0, have - 1)
        low = np.minimum(place.astype(int), max(have - 2, 0))
        matrix = np.zeros((want, have))
        matrix[np.arange(want), low] = 1 - (place - low)
        if have > 1:
            matrix[np.arange(want), low + 1] = place - low
        matrices.append(matrix)
    return matrices


def _over_points(graph: ForwardGraph, lowering: Lowering, attribution: Attribution) -> ir.Model:
    """Integrated gradients and SmoothGrad: a weighted sum of the gradient at points of each image."""
    given = attribution.seed.new_input(graph.logits)
    points = Points.of(graph, attribution)
    at = prepared(graph, lowering, points.put_into_batch(graph))
    nodes = graph.model.graph
    g = Builder(opset=graph.opset, prefix="points/seed")
    repeated, seed = points.repeated(g, graph.logits, given, attribution.seed)
    g.append_to(nodes)
    gradient = append_saliency(graph, at, lowering, seed, repeated)
    g = Builder(opset=graph.opset, prefix="attribution")
    result = points.summed(g, gradient)
    own = points.own(g.of(graph.logits)).reshape((points.batch, graph.num_classes))
    g.append_to(nodes)
    lowering.complete(graph.model)
    outputs = {own.value: "logits", result.value: attribution.output}
    finish(graph, outputs, given, what=attribution.chosen.value, metadata=attribution.metadata())
    return graph.model
