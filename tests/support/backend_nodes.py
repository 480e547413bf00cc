"""ONNX's own backend node tests as cases: every attribute that the standard tests, differentiated.

A case is one node with its inputs. Each float input in turn becomes the only input of the graph, the others
its constants, and the emitted gradient is compared with central differences, both in ONNX's reference
evaluator: in float64, or in float32 with a longer step for the operators that do not take float64.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool

from sad_export.gradient import reverse, without_rule
from sad_export.gradient.reverse import dependents
from sad_export.graph.opset import MINIMUM_OPSET
from sad_export.loading import normalise
from sad_export.lowering import Portable

Array = np.ndarray[Any, Any]
# Its own function bodies and its erf pass through float32.
ROUNDED_BY_THE_EVALUATOR = ("Erf", "Gelu", "GroupNormalization", "MeanVarianceNormalization")
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of one backend test.

    Attributes:
        name: Of the test, and of the input.
        op_type: The node's operator.
        model: x → outputs, everything else constant.
        x: The test's value of the input.
    """

    name: str
    op_type: str
    model: onnx.ModelProto
    x: Array


@functools.cache
def cases() -> tuple[Case, ...]:
    """All cases, unexpanded nodes of the default domain only: an expanded one repeats its node's numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        tests = collect_testcases(None)
    return tuple(case for test in tests for case in _of_test(test))


def _of_test(test: Any) -> Iterator[Case]:
    model = test.model
    if len(model.graph.node) != 1 or model.graph.node[0].domain or not test.data_sets:
        return
    if next(o.version for o in model.opset_import if not o.domain) < MINIMUM_OPSET:
        return
    arrays = test.data_sets[0][0]
    for k, value in enumerate(model.graph.input):
        if value.type.tensor_type.elem_type not in _FLOATS or not isinstance(arrays[k], np.ndarray):
            continue
        # Nothing to differentiate; infinities at their limits; three-dimensional pools for minutes.
        if not 0 < arrays[k].size <= 10_000 or not np.isfinite(arrays[k]).all():
            continue
        alone = onnx.ModelProto.FromString(model.SerializeToString())
        del alone.graph.input[:]
        alone.graph.input.append(value)
        for j, other in enumerate(model.graph.input):
            if j != k and isinstance(arrays[j], (np.ndarray, np.generic)):
                alone.graph.initializer.append(numpy_helper.from_array(np.asarray(arrays[j]), other.name))
        wide = _widened(alone)
        yield Case(
            f"{test.name}[{value.name}]",
            model.graph.node[0].op_type,
            alone if wide is None else wide,
            arrays[k].astype(np.float32 if wide is None else np.float64),
        )


def _widened(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model in float64, or ``None`` if its operator does not take that."""
    wide = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for k, tensor in enumerate(wide.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            wide.graph.initializer[k].CopyFrom(numpy_helper.from_array(array, tensor.name))
    try:
        onnx.checker.check_model(wide, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return None
    return wide


def gradient_of(case: Case) -> tuple[onnx.ModelProto | None, str]:
    """(x, dy… → y…, dx), or ``None`` and the reason."""
    model = ir.from_proto(case.model)
    normalise(model)
    graph = model.graph
    x = graph.inputs[0]
    on_path = dependents(list(graph), x)
    outputs = [y for y in graph.outputs if y in on_path and y is not x]
    if not outputs:
        return None, "no float output depends on it"
    nodes, opset = list(graph), graph.opset_imports[""]
    missing = {y: without_rule(Portable(opset=opset), nodes, x, y) for y in outputs}
    # LayerNormalization's Mean, for one, has no gradient, but its Y has.
    outputs = [y for y in outputs if not missing[y]]
    if not outputs:
        return None, next(iter(missing.values()))[0][1]
    g = Portable(opset=opset)
    seeds = {y: ir.Value(name=f"d{y.name}", shape=y.shape, type=y.type) for y in outputs}
    try:
        dx = reverse(g, nodes, {y: g.of(seed) for y, seed in seeds.items()}, x)
    except KeyError:
        return None, "no gradient reaches it"
    g.append_to(graph)
    graph.inputs.extend(seeds.values())
    graph.outputs[:] = [*outputs, dx]
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    onnx.checker.check_model(proto, full_check=True)
    return proto, ""


class MaxPool(ReferenceMaxPool):
    """Without the evaluator's short cut at stride 1, which pads the wrong axis of a pool along rows."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> Any:
        if attributes["kernel_shape"][0] == 1:
            return self._max_pool(x, **attributes)
        return super()._run(x, **attributes)


def step_and_tolerance(case: Case) -> tuple[float, float]:
    """For central differences; longer where the evaluator computes in float32."""
    if case.x.dtype == np.float32:
        return 1e-2, 2e-2
    if case.op_type == "Attention":
        return 1e-6, 1e-4  # saturated softmaxes: differences of nearly equal numbers
    return (1e-3, 1e-3) if case.op_type in ROUNDED_BY_THE_EVALUATOR else (1e-6, 1e-5)


def largest_error(case: Case, gradient: onnx.ModelProto) -> float:
    """|⟨dx, v⟩ − ⟨dy, (f(x + hv) − f(x − hv)) / 2h⟩| / |dx|, the largest of four random directions v."""
    rng = np.random.default_rng(0)
    # Off the kinks and ties of round numbers, which have tests of their own.
    x = (case.x + 1e-3 * rng.uniform(0.5, 1.0, size=case.x.shape)).astype(case.x.dtype)
    h, _ = step_and_tolerance(case)
    forward, backward = ReferenceEvaluator(case.model), ReferenceEvaluator(gradient, new_ops=[MaxPool])
    name = case.model.graph.input[0].name
    wanted = [output.name for output in gradient.graph.output[:-1]]

    def f(at: Array) -> list[Array]:
        return [np.asarray(y, dtype=np.float64) for y in forward.run(wanted, {name: at.astype(x.dtype)})]

    with np.errstate(all="ignore"):
        y = f(x)
        # An infinity has no difference: its cotangent is zero.
        finite = [np.isfinite(part) for part in y]
        dy = [np.where(ok, rng.normal(size=ok.shape), 0.0).astype(x.dtype) for ok in finite]
        feeds = {name: x, **{f"d{key}": part for key, part in zip(wanted, dy, strict=True)}}
        dx = np.asarray(backward.run(None, feeds)[-1], dtype=np.float64)
        assert dx.shape == x.shape, (case.name, dx.shape, x.shape)
        scale = np.linalg.norm(dx) + 1e-6
        errors = []
        for _ in range(4):
            v = rng.normal(size=x.shape)
            v /= np.linalg.norm(v)
            exact = float((dx * v).sum())
            errors.append(abs(_slope(f, x, v, dy, h) - exact) / scale)
    return float(np.max(errors))


def _slope(f: Any, x: Array, v: Array, dy: list[Array], h: float) -> float:
    after, before = f(x + h * v), f(x - h * v)
    total = sum((d * (p - q))[d != 0].sum() for d, p, q in zip(dy, after, before, strict=True))
    return float(total / (2 * h))
