"""Functions of expressions, by their names in mathematics."""

from __future__ import annotations

from .expression import Expr, Number


def where(condition: Expr, x: Expr, y: Expr) -> Expr:
    """x where the condition holds, else y."""
    return condition.op("Where", x, y)


def equal(x: Expr, y: Expr | Number) -> Expr:
    """1[x = y]; Python's ``==`` stays that of objects."""
    return x.op("Equal", y if isinstance(y, Expr) else x.like(y))


def maximum(x: Expr, y: Expr | Number) -> Expr:
    """The larger of two, element by element."""
    return x.op("Max", y if isinstance(y, Expr) else x.like(y))


def minimum(x: Expr, y: Expr | Number) -> Expr:
    """The smaller of two, element by element."""
    return x.op("Min", y if isinstance(y, Expr) else x.like(y))


def exp(x: Expr) -> Expr:
    """eˣ."""
    return x.op("Exp")


def log(x: Expr) -> Expr:
    """ln x."""
    return x.op("Log")


def sqrt(x: Expr) -> Expr:
    """√x."""
    return x.op("Sqrt")


def abs_(x: Expr) -> Expr:
    """|x|."""
    return x.op("Abs")


def sign(x: Expr) -> Expr:
    """−1, 0 or 1."""
    return x.op("Sign")


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent."""
    return x.op("Tanh")


def sigmoid(x: Expr) -> Expr:
    """σ(x) = 1 / (1 + e⁻ˣ)."""
    return x.op("Sigmoid")
