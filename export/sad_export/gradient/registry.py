"""The registry of gradient rules, and of operators declared to have no gradient.

A rule is a function that returns the gradients of an operator's inputs as formulas::

    @vjp("Sigmoid")
    def sigmoid_(x: Expr, *, y: Expr, dy: Expr) -> Gradient:
        return dy * (y * (1.0 - y))

Its positional parameters are the operator's inputs, in order; an optional input has the default ``None``,
``*terms`` takes any number of them. Its keyword-only parameters are, by name:

- ``y``, ``dy``: the first output and its gradient; ``ys``, ``dys``: all of them, ``None`` where nothing used
  an output;
- ``g``: the words whose form depends on the target (:mod:`.words`);
- ``node``: the forward node;
- any other: the attribute of that name, with the operator's default.

It returns one gradient per input, or a tuple of them, ``None`` where there is none; a function without
parameters is called only if that gradient is wanted. What broadcasting repeated is summed by the walk. A
rule that cannot take a node raises :class:`~sad_export.graph.values.Unsupported` with the reason.

Where a few nodes together have a better gradient than one after the other, that is a :func:`pattern`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ..graph.expression import Expr
from ..graph.nodes import attribute
from ..graph.values import Unsupported
from .words import Words

Gradient = Expr | Callable[[], Expr] | None
Gradients = Gradient | tuple[Gradient, ...]
Function = Callable[..., Gradients]
Match = Callable[[ir.Node], Sequence[ir.Value] | None]

_OF_THE_WALK = ("y", "ys", "dy", "dys", "g", "node")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One operator's rule, or a pattern's.

    Attributes:
        function: What was registered.
        inputs: Indices of the inputs it differentiates; ``None`` for all of them.
        quantized: Whether it also takes quantised integers; their gradient is that of the number meant.
        names: Its keyword-only parameters that the walk fills.
        attributes: The others, with their defaults.
        operands: How many inputs it takes; ``None`` for any number.
    """

    function: Function
    inputs: tuple[int, ...] | None
    quantized: bool
    names: frozenset[str]
    attributes: Mapping[str, Any]
    operands: int | None

    @classmethod
    def of(cls, function: Function, inputs: Iterable[int] | None = None, *, quantized: bool = False) -> Rule:
        """Read a function's parameters."""
        parameters = inspect.signature(function).parameters.values()
        keywords = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
        variadic = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
        return cls(
            function,
            None if inputs is None else tuple(inputs),
            quantized,
            frozenset(each.name for each in keywords if each.name in _OF_THE_WALK),
            {each.name: each.default for each in keywords if each.name not in _OF_THE_WALK},
            None if variadic else len(parameters) - len(keywords),
        )

    def differentiates(self, index: int) -> bool:
        """Whether it returns a gradient for input ``index``."""
        return self.inputs is None or index in self.inputs

    def apply(
        self, g: Words, node: ir.Node, inputs: Sequence[ir.Value | None], dys: Sequence[Expr | None]
    ) -> tuple[Gradient, ...]:
        """Write the gradients of a node's inputs.

        Args:
            g: Where nodes go.
            node: The forward node.
            inputs: Its inputs, or those of the pattern that ends in it.
            dys: The gradients of its outputs.

        Raises:
            Unsupported: The rule does not take this node.
        """
        operands = [None if value is None else g.of(value) for value in inputs][: self.operands]
        given: dict[str, Any] = {"g": g, "node": node, "dys": dys, "dy": dys[0]}
        if "y" in self.names:
            given["y"] = g.of(node.outputs[0])
        if "ys" in self.names:
            given["ys"] = [g.of(value) for value in node.outputs]
        if "dys" not in self.names and any(dy is not None for dy in dys[1:]):
            raise Unsupported("another output than its first is used")
        keywords = {name: given[name] for name in self.names}
        keywords |= {name: attribute(node, name, default) for name, default in self.attributes.items()}
        found = self.function(*operands, **keywords)
        gradients = found if isinstance(found, tuple) else (found,)
        assert not any(gradients[len(inputs) :]), (
            f"the rule for {node.op_type} differentiates an absent input"
        )
        return (*gradients, *[None] * len(inputs))[: len(inputs)]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A rule for several nodes that end in one.

    Attributes:
        match: Gives the values that the rule takes: the one that it differentiates, then those between it
            and the last node's output; ``None`` where the node does not end the pattern.
        rule: The rule; ``y`` and ``dy`` are those of the last node.
    """

    match: Match
    rule: Rule


_RULES: dict[str, Rule] = {}
_PATTERNS: dict[str, list[Pattern]] = {}

# Piecewise constant in every float input, or without a float output: the gradient is zero by definition.
_CONSTANT_OPERATORS: set[str] = set()


def vjp(
    *op_types: str, inputs: Iterable[int] | None = None, quantized: bool = False
) -> Callable[[Function], Function]:
    """Register a rule for operators of the default ONNX domain.

    Args:
        *op_types: Operator names.
        inputs: The inputs that are differentiated, by index; all of them if not given. A graph in which
            the gradient is asked for through another input is refused before any work.
        quantized: The rule also takes quantised integers: it moves elements, or converts from or to them.
    """

    def register(function: Function) -> Function:
        for op_type in op_types:
            if op_type in _RULES:
                raise ValueError(
                    f"{op_type} has two gradient rules: {_RULES[op_type].function} and {function}"
                )
            _RULES[op_type] = Rule.of(function, inputs, quantized=quantized)
        return function

    return register


def pattern(last: str, match: Match) -> Callable[[Function], Function]:
    """Register a rule for several nodes, of which the last one has this operator.

    Its gradient goes to the values that ``match`` gives, past the nodes between.
    """

    def register(function: Function) -> Function:
        _PATTERNS.setdefault(last, []).append(Pattern(match, Rule.of(function)))
        return function

    return register


def no_gradient(*op_types: str) -> None:
    """Declare operators through which no gradient flows, so that none of them is missing by accident."""
    _CONSTANT_OPERATORS.update(op_types)


def rule_of(node: ir.Node) -> Rule | None:
    """The rule for a node, or ``None``: no rule, or an operator outside the default domain."""
    return _RULES.get(node.op_type) if node.domain == "" else None


def rule_for(
    node: ir.Node, *, target: ir.Value | None = None
) -> tuple[Rule, Sequence[ir.Value | None]] | None:
    """The rule to apply at a node and what it takes: a pattern's, where one ends in the node.

    Args:
        node: The forward node.
        target: The value that the walk goes to; no pattern may step over it.
    """
    if node.domain != "":
        return None
    for each in _PATTERNS.get(node.op_type, ()):
        values = each.match(node)
        if values is not None and not any(value is target for value in values[1:]):
            return each.rule, values
    rule = _RULES.get(node.op_type)
    return None if rule is None else (rule, node.inputs)


def is_constant(node: ir.Node) -> bool:
    """Whether the operator is declared to have no gradient."""
    return node.domain == "" and node.op_type in _CONSTANT_OPERATORS


def covered() -> list[str]:
    """All operators with a rule, sorted."""
    return sorted(_RULES)
