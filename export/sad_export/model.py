"""Load and check a forward classifier: one float image input, one output of logits, static H and W.

What comes out is a private copy in a normal form: functions inlined, what does not depend on the image
folded into initializers, identities removed, nodes in topological order, every value with its shape and
type, operators without a gradient rule written out as the standard defines them. Reports everything that
is wrong at once.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from sad_runtime.errors import UserError

from .gradient.registry import is_constant, rule_of
from .graph.errors import GraphError
from .graph.opset import MINIMUM_OPSET, brought_to
from .graph.values import Dim, shape_of
from .normal_form import EinsumLettersPass, ExpandFunctionsPass, NestedConcatsPass, ShapesPass
from .probabilities import Tail, cut, find_tail, problem_of

_OUR_PREFIXES = ("backward/", "mix/", "normalise/", "second/", "unscale/")


@dataclasses.dataclass(frozen=True)
class ForwardGraph:
    """A checked classifier in normal form.

    Attributes:
        model: The private copy; whoever holds this may extend its graph.
        image: The input, (N, C, H, W) float.
        logits: The output, (N, K) float.
        opset: Version of the default domain.
        notices: What was taken otherwise than the file has it, a sentence each for the user.
        has_tail: Whether the file gives probabilities, and the logits are those before them.
    """

    model: ir.Model
    image: ir.Value
    logits: ir.Value
    opset: int
    notices: tuple[str, ...] = ()
    has_tail: bool = False

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


def load_classifier(
    model: onnx.ModelProto | str | Path,
    *,
    logits: str | None = None,
    keep_output: bool = False,
    least_opset: int = MINIMUM_OPSET,
) -> ForwardGraph:
    """Read a forward classifier; :mod:`.probabilities` says how it may end.

    Args:
        model: Path or model; it is not modified.
        logits: Name of the logits where the graph has several outputs; any value of the graph may be named.
        keep_output: Where probabilities were cut off, keep them as a second output.
        least_opset: A graph of an older opset is brought to this one.

    Returns:
        The checked graph.

    Raises:
        GraphError: It cannot be read, or is not a classifier; the message names every reason.
    """
    loaded = _read(model)
    if found := sorted({node.op_type for node in loaded.graph if node.op_type in ("If", "Loop", "Scan")}):
        raise GraphError(f"{_name(model)} has control flow ({', '.join(found)}), which has no gradient rule")
    common_passes.InlinePass()(loaded)
    opset = loaded.graph.opset_imports.get("", 0)
    loaded = brought_to(loaded, least_opset)
    normalise(loaded)
    graph = loaded.graph
    problems: list[str] = []
    image = _the_image(graph.inputs, problems)
    output = _the_output(graph, logits, problems)
    tail = None if output is None else find_tail(output)
    if tail is not None and (problem := problem_of(tail)) is not None:
        problems.append(problem)
    elif output is not None:
        problems += _problems_of_logits(output, least=1 if tail is not None else 2)
    if problems or image is None or output is None:
        raise GraphError(
            f"{_name(model)} is not a classifier that can be differentiated: " + "; ".join(problems),
            hint="export a model with one float image input (N, C, H, W) and one output of logits (N, K)",
        )
    notices = []
    if opset < MINIMUM_OPSET:
        notices.append(f"the graph of opset {opset} was converted to opset {least_opset}")
    taken = output
    if tail is not None:
        taken = cut(graph, output, tail)
        notices.append(_notice(output, tail))
    # Other outputs are dropped: their nodes would be carried through both passes for nothing.
    graph.outputs[:] = [taken, output] if keep_output and tail is not None else [taken]
    common_passes.TopologicalSortPass()(loaded)
    common_passes.RemoveUnusedNodesPass()(loaded)
    return ForwardGraph(
        loaded, image, taken, graph.opset_imports[""], tuple(notices), has_tail=tail is not None
    )


def _notice(output: ir.Value, tail: Tail) -> str:
    if tail.operator == "Sigmoid":
        return (
            f"output {output.name!r} is the Sigmoid of one value z, {tail.logits.name!r}: two classes, "
            "whose logits are taken as (−z/2, z/2)"
        )
    return (
        f"output {output.name!r} holds probabilities ({tail.operator}): the logits are taken before it, "
        f"from {tail.logits.name!r}"
    )


def _name(model: onnx.ModelProto | str | Path) -> str:
    return f"graph {model.graph.name!r}" if isinstance(model, onnx.ModelProto) else str(model)


def _read(model: onnx.ModelProto | str | Path) -> ir.Model:
    try:
        if isinstance(model, onnx.ModelProto):
            return ir.from_proto(model)
        path = Path(model)
        if not path.is_file():
            raise GraphError(f"there is no ONNX file {path}")
        loaded = ir.load(path)
        _check_external_data(loaded, path.parent)
        # What is made of the graph is one file of its own, wherever it is written.
        ir.external_data.load_to_model(loaded)
    except UserError:
        raise
    except Exception as error:  # protobuf and onnx-ir raise their own kinds on broken files
        raise GraphError(f"{_name(model)} is not a readable ONNX model: {error}") from error
    return loaded


def _check_external_data(model: ir.Model, folder: Path) -> None:
    """Refuse weights that are missing or lie outside the model's folder."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            path = (folder / str(tensor.location)).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise GraphError(f"weight {value.name!r} lies outside the model's folder: {tensor.location}")
            if not path.is_file():
                raise GraphError(f"weight {value.name!r} is missing: there is no file {path}")


def normalise(model: ir.Model) -> None:
    """Bring a graph into the normal form that the rules assume, in place; the module says what it is."""
    for step in (
        common_passes.InlinePass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common_passes.RemoveInitializersFromInputsPass(),
        common_passes.IdentityEliminationPass(),
        common_passes.TopologicalSortPass(),
        common_passes.NameFixPass(),
        ShapesPass(),
    ):
        step(model)
    # The bodies of functions bring shape computations of their own; some use further functions.
    while ExpandFunctionsPass(keeps=lambda node: is_constant(node) or rule_of(node) is not None)(
        model
    ).modified:
        common_passes.NameFixPass()(model)
        ShapesPass()(model)
    _leave_our_names(model.graph)
    EinsumLettersPass()(model)
    NestedConcatsPass()(model)
    common_passes.RemoveUnusedNodesPass()(model)


def _leave_our_names(graph: ir.Graph) -> None:
    """Rename what has a name as we give them: a graph that this package wrote may be differentiated again."""
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for named in (*values, *graph):
        if named.name and named.name.startswith(_OUR_PREFIXES) and not _leaves(named):
            named.name = f"forward/{named.name}"


def _leaves(named: ir.Value | ir.Node) -> bool:
    return isinstance(named, ir.Value) and named.is_graph_output()


def _the_image(inputs: Sequence[ir.Value], problems: list[str]) -> ir.Value | None:
    if len(inputs) != 1:
        problems.append(
            f"{len(inputs)} inputs ({', '.join(str(value.name) for value in inputs)}) instead of one"
        )
        return None
    (image,) = inputs
    if image.dtype is None or not image.dtype.is_floating_point():
        problems.append(f"input {image.name!r} is {image.dtype}, not a float")
    shape = shape_of(image) if image.shape is not None else ()
    if len(shape) != 4:
        problems.append(f"input {image.name!r} has rank {len(shape)}, not (N, C, H, W)")
    elif any(isinstance(n, str) for n in shape[1:]):
        problems.append(f"input {image.name!r} has dynamic C, H or W: {_text(shape)}; only N may be dynamic")
    return image


def _the_output(graph: ir.Graph, name: str | None, problems: list[str]) -> ir.Value | None:
    """The output, or the value of that name, that holds logits or probabilities."""
    names = ", ".join(str(value.name) for value in graph.outputs)
    if name is not None:
        inner = (value for node in graph for value in node.outputs)
        found = next((value for value in (*graph.outputs, *inner) if value.name == name), None)
        if found is None:
            problems.append(f"no output {name!r} among {names}, and no value of that name inside")
        return found
    if len(graph.outputs) != 1:
        problems.append(f"{len(graph.outputs)} outputs ({names}); name the logits (--logits, or logits=)")
        return None
    return graph.outputs[0]


def _problems_of_logits(logits: ir.Value, *, least: int) -> Iterator[str]:
    shape = shape_of(logits) if logits.shape is not None else ()
    if len(shape) != 2 or isinstance(shape[1], str):
        yield f"output {logits.name!r} has shape {_text(shape)}, not (N, K)"
    elif shape[1] < least:
        yield f"output {logits.name!r} has {shape[1]} logit; a classifier has at least two"


def warn(message: str) -> None:
    """Say something of the user's graph as a warning, from functions marked `collects_graph_cycles`."""
    warnings.warn(message, stacklevel=4)


def _text(shape: Sequence[Dim]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ")"
