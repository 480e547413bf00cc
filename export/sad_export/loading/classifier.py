"""A forward classifier from a file: one float image input, one output of logits, static H and W.

What comes out is a private copy in a normal form: functions inlined, what does not depend on the image
folded into initializers, identities removed, nodes in topological order, every value with its shape and
type, operators without a gradient rule written out as the standard defines them. What the file has otherwise
is brought into this form where it can be, and said; everything that is wrong is reported at once.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from ..gradient.registry import is_constant, rule_of
from ..graph.errors import GraphError
from ..graph.opset import INITIALIZERS_ALONE, MINIMUM_OPSET, brought_to
from ..graph.values import Dim, shape_of, text_of
from ..normal_form import EinsumLettersPass, ExpandFunctionsPass, FlatViewsPass, NestedConcatsPass, ShapesPass
from .batch import with_dynamic_batch
from .control_flow import control_flow, inline_constant_ifs
from .fused import write_out_fused
from .half import widen
from .image import FileForm, normalise_image
from .outputs import chosen_output, logits_of
from .read import name_of, read

_SIZE_OPTION = "--image-size H,W"
_SIZE_HINT = "give the size that the network was trained on; in Python, image_size=(height, width)"
_HINT = "export a model with one float image input (N, C, H, W) and one output of logits (N, K)"

_OUR_PREFIXES = ("attribution/", "backward/", "mix/", "normalise/", "points/", "second/", "unscale/")
_OUR_SUFFIXES = ("/fp32", "/fp16", "/bf16", "/exact")


@dataclasses.dataclass(frozen=True)
class ForwardGraph:
    """A checked classifier in normal form.

    Attributes:
        model: The private copy; whoever holds this may extend its graph.
        image: The input, (N, C, H, W) float.
        logits: The output, (N, K) float.
        opset: Version of the default domain.
        notices: What was taken otherwise than the file has it, a sentence each for the user.
        form: How the file's own input and output differ from these.
    """

    model: ir.Model
    image: ir.Value
    logits: ir.Value
    opset: int
    notices: tuple[str, ...] = ()
    form: FileForm = FileForm()  # noqa: RUF009 -- frozen

    @property
    def nodes(self) -> list[ir.Node]:
        """The nodes in topological order."""
        return list(self.model.graph)

    @property
    def image_shape(self) -> tuple[Dim, ...]:
        """(N, C, H, W); a dynamic N is its name."""
        return shape_of(self.image)

    @property
    def num_classes(self) -> int:
        """K."""
        return int(shape_of(self.logits)[1])

    def copy(self) -> ForwardGraph:
        """The same classifier, to be extended in another way; both read the same weights."""
        model = self.model.clone()
        return dataclasses.replace(
            self, model=model, image=model.graph.inputs[0], logits=model.graph.outputs[0]
        )


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a file is to be read.

    Attributes:
        logits: Name of the logits where the graph has several outputs; any value of the graph may be named.
        image_size: Height and width, where the graph leaves them open.
        least_opset: A graph of an older opset is brought to this one.
        in_float32: Whether half precision is turned into float32.
        keep_output: Where probabilities are cut off, whether they are kept as a second output.
    """

    logits: str | None = None
    image_size: tuple[int, int] | None = None
    least_opset: int = MINIMUM_OPSET
    in_float32: bool = False
    keep_output: bool = False


def load_classifier(model: onnx.ModelProto | str | Path, reading: Reading = Reading()) -> ForwardGraph:
    """Read a forward classifier.

    Args:
        model: Path or model; it is not modified.
        reading: How.

    Returns:
        The checked graph.

    Raises:
        GraphError: It cannot be read, or is not a classifier; the message names every reason.
    """
    loaded = read(model)
    try:
        return _classifier_of(loaded, name_of(model), reading)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split("==>")[0].split())
        raise GraphError(f"{name_of(model)} is no valid ONNX graph: {reason}") from error


def _classifier_of(loaded: ir.Model, name: str, reading: Reading) -> ForwardGraph:
    notices: list[str] = []
    loaded = _standard(loaded, reading, notices)
    problems: list[str] = []
    form = FileForm(half=reading.in_float32 and widen(loaded.graph))
    if form.half:
        notices.append("the file computes in half precision; what is written computes in float32")
    image = _the_image(loaded.graph.inputs, problems)
    if image is not None:
        image, changed = normalise_image(loaded.graph, image, reading.image_size, notices)
        form = dataclasses.replace(changed, half=form.half)
        problems += _problems_of(image)
        if not problems:
            loaded = _any_batch(loaded, notices)
    normalise(loaded)
    graph = loaded.graph
    if found := control_flow(graph):
        raise GraphError(f"{name} has control flow ({', '.join(found)}), which has no gradient rule")
    of_image = len(problems)  # what follows from these says nothing more
    output = chosen_output(graph, reading.logits, problems)
    if output is not None and not of_image:
        logits, has_tail = logits_of(
            graph, output, keep_output=reading.keep_output, notices=notices, problems=problems
        )
    if problems or output is None:
        raise GraphError(
            f"{name} is not a classifier that can be differentiated: " + "; ".join(problems),
            hint=_SIZE_HINT if len(problems) == 1 and _SIZE_OPTION in problems[0] else _HINT,
        )
    common_passes.TopologicalSortPass()(loaded)
    common_passes.RemoveUnusedNodesPass()(loaded)
    return ForwardGraph(
        loaded,
        graph.inputs[0],
        logits,
        graph.opset_imports[""],
        tuple(notices),
        dataclasses.replace(form, has_tail=has_tail),
    )


def _standard(model: ir.Model, reading: Reading, notices: list[str]) -> ir.Model:
    """Standard operators of a new enough opset, constants as initializers, one input."""
    common_passes.InlinePass()(model)
    fused = write_out_fused(model.graph)
    if fused:
        notices.append(
            f"the graph is a copy that onnxruntime optimised; {', '.join(fused)} are written out again"
        )
    opset = model.graph.opset_imports.get("", 0)
    model = brought_to(model, reading.least_opset)
    if opset < MINIMUM_OPSET:
        notices.append(f"the graph of opset {opset} was converted to opset {reading.least_opset}")
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, INITIALIZERS_ALONE)
    return model


def _any_batch(model: ir.Model, notices: list[str]) -> ir.Model:
    """With a dynamic batch, if the graph gives the same then."""
    image = model.graph.inputs[0]
    assert image.shape is not None
    batch = image.shape[0]
    if not isinstance(batch, int):
        return model
    if control_flow(model.graph):
        _resolve_ifs(model)
        if control_flow(model.graph):
            return model
    dynamic = with_dynamic_batch(model)
    if dynamic is None:
        notices.append(f"the batch stays fixed to {batch}: with another one the graph gives something else")
        return model
    notices.append(f"the batch, fixed to {batch}, was made dynamic; 1, 3 and 8 images give the same")
    return dynamic


def normalise(model: ir.Model) -> None:
    """Bring a graph into the normal form that the rules assume, in place; the module says what it is."""
    common_passes.InlinePass()(model)
    _resolve_ifs(model)
    # The bodies of functions bring shape computations of their own; some use further functions.
    while ExpandFunctionsPass(keeps=lambda node: is_constant(node) or rule_of(node) is not None)(
        model
    ).modified:
        common_passes.NameFixPass()(model)
        ShapesPass()(model)
    FlatViewsPass()(model)
    _leave_our_names(model.graph)
    EinsumLettersPass()(model)
    NestedConcatsPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)


def _resolve_ifs(model: ir.Model) -> None:
    _tidy(model)
    while inline_constant_ifs(model.graph):
        _tidy(model)


def _tidy(model: ir.Model) -> None:
    """Constants as initializers, no copies, sorted, named, with shapes."""
    common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common_passes.RemoveInitializersFromInputsPass()(model)
    if not control_flow(model.graph):  # the pass would take values out of the branches
        common_passes.IdentityEliminationPass()(model)
    common_passes.TopologicalSortPass()(model)
    common_passes.NameFixPass()(model)
    ShapesPass()(model)


def _leave_our_names(graph: ir.Graph) -> None:
    """Rename what has a name as we give them: a graph that this package wrote may be differentiated again."""
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for named in (*values, *graph):
        name = named.name or ""
        if (name.startswith(_OUR_PREFIXES) or name.endswith(_OUR_SUFFIXES)) and not _leaves(named):
            named.name = f"forward/{name}"


def _leaves(named: ir.Value | ir.Node) -> bool:
    return isinstance(named, ir.Value) and named.is_graph_output()


def _the_image(inputs: Sequence[ir.Value], problems: list[str]) -> ir.Value | None:
    if len(inputs) == 1:
        return inputs[0]
    problems.append(f"{len(inputs)} inputs ({', '.join(str(value.name) for value in inputs)}) instead of one")
    return None


def _problems_of(image: ir.Value) -> list[str]:
    problems = []
    if image.dtype is None or not image.dtype.is_floating_point():
        problems.append(f"input {image.name!r} is {image.dtype}, not a float")
    elif image.dtype == ir.DataType.BFLOAT16:
        problems.append(f"input {image.name!r} is bfloat16, which NumPy has no images in: float32 or float16")
    shape = shape_of(image) if image.shape is not None else ()
    if len(shape) != 4:
        problems.append(f"input {image.name!r} has rank {len(shape)}, not (N, C, H, W)")
    elif any(isinstance(n, str) for n in shape[2:]):
        problems.append(
            f"input {image.name!r} has dynamic H or W, {text_of(shape)}: {_SIZE_OPTION} fixes them"
        )
    elif isinstance(shape[1], str):
        problems.append(f"input {image.name!r} has dynamic C: {text_of(shape)}")
    return problems


def warn(message: str) -> None:
    """Say something of the user's graph as a warning, from functions marked `collects_graph_cycles`."""
    warnings.warn(message, stacklevel=4)
