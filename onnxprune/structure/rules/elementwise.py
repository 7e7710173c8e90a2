"""Elementwise operators with broadcasting: aligned axes unify, broadcast axes do not take part."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rule
from onnxprune.structure.view import RuleMismatch, View

ZeroPolicy = Callable[[Sequence[bool]], bool]
"""From the zero flags of all operands (False where an operand is broadcast) to that of the result."""

# f(0) = 0, whatever the attributes.
ZERO_STAYS_ZERO = (
    "Abs", "Asin", "Asinh", "Atan", "Atanh", "Cast", "CastLike", "Ceil", "Celu", "Elu",
    "Erf", "Floor", "Gelu", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "PRelu", "Relu", "Round", "Selu",
    "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "com.microsoft::Gelu", "com.microsoft::FastGelu", "com.microsoft::QuickGelu", "com.microsoft::BiasGelu",
    "com.microsoft::BiasAdd",
)  # fmt: skip
# f(0) is something else, so a removed index is not zero behind them; that matters to sums only.
ZERO_CHANGES = (
    "Acos", "BitwiseNot", "Cos", "Cosh", "Exp", "HardSigmoid", "IsInf", "IsNaN", "Not", "Sigmoid", "Softplus", "Shrink",
    "BitShift", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
)  # fmt: skip
_ALL_ZERO = ("Add", "Sub", "Sum", "Max", "Min", "Mean", "Or", "Xor", "BitwiseOr", "BitwiseXor")
_ANY_ZERO = ("Mul", "And", "BitwiseAnd")
_SINGULAR = {"Log": 0, "Reciprocal": 0, "Acosh": 0}


def elementwise(view: View, policy: ZeroPolicy, operands: Sequence[ir.Value] | None = None) -> None:
    """Tie the aligned axes of all operands and of every output."""
    values = list(operands) if operands is not None else [v for v in view.node.inputs if v is not None]
    for out in view.node.outputs:
        if out.name != "" and view.facts.shape(out) is not None:
            axes, zero = aligned(view, values, out, policy)
            view.give(out, axes, zero)


def aligned(
    view: View, values: Sequence[ir.Value], out: ir.Value, policy: ZeroPolicy, rank: int | None = None
) -> tuple[list[Axis], list[bool]]:
    """Unify broadcast operands against an output; return the axes of the result and their zero flags."""
    shape = view.shape(out) if rank is None else view.shape(out)[:rank]
    operands = [(value, view.shape(value)) for value in values] if shape else []
    axes: list[Axis] = []
    zero: list[bool] = []
    for i, extent in enumerate(shape):
        partners: list[Axis] = []
        flags: list[bool] = []
        for value, own in operands:
            j = i - len(shape) + len(own)
            if j < 0 or (own[j] == 1 and extent != 1):
                flags.append(_is_zero_constant(view, value))
            else:
                partners.append(view.axis(value, j))
                flags.append(view.zero(value)[j])
        if not partners:
            raise RuleMismatch(f"axis {i} of its output has no origin")
        for other in partners[1:]:
            view.unify(partners[0], other)
        axes.append(partners[0])
        zero.append(policy(flags))
    return axes, zero


def _is_zero_constant(view: View, value: ir.Value) -> bool:
    data = view.facts.data(value)
    return data is not None and data.size > 0 and not np.any(data != 0)


def _first(flags: Sequence[bool]) -> bool:
    return flags[0]


def _never(_: Sequence[bool]) -> bool:
    return False


@rule(*ZERO_STAYS_ZERO)
def zero_stays_zero(view: View) -> None:
    """f(0) = 0; further operands (slopes, ratios, biases) broadcast along."""
    if view.node.op_type in ("BiasGelu", "BiasAdd", "FastGelu"):
        elementwise(view, all)
    elif view.node.op_type == "PRelu":
        elementwise(view, _first)
    else:
        elementwise(view, _first, [view.need(0)])


@rule("Dropout")
def dropout(view: View) -> None:
    """Nothing happens but while training; then random numbers are drawn for every element."""
    training = view.data(2)
    if view.x(2) is not None and (training is None or training.any()) or view.int_attr("is_test", 1) == 0:
        raise RuleMismatch("it draws random numbers")
    x = view.need(0)
    for out, policy in ((view.out(0), _first), (view.out(1), _never)):  # the mask is true everywhere
        if out is not None and view.facts.shape(out) is not None:
            view.give(out, *aligned(view, [x], out, policy))


@rule(*ZERO_CHANGES)
def zero_changes(view: View) -> None:
    """f(0) is not 0."""
    elementwise(view, _never)


@rule(*_ALL_ZERO)
def all_zero(view: View) -> None:
    """The result is zero where all operands are."""
    elementwise(view, all)


@rule(*_ANY_ZERO)
def any_zero(view: View) -> None:
    """The result is zero where one operand is."""
    elementwise(view, any)


@rule("Where")
def where(view: View) -> None:
    """The result is zero where both choices are."""
    elementwise(view, lambda flags: flags[1] and flags[2])


@rule("Clip")
def clip(view: View) -> None:
    """Zero stays zero where the bounds enclose it."""
    low, high = _bound(view, 1, "min", -np.inf), _bound(view, 2, "max", np.inf)
    encloses = low is not None and high is not None and low <= 0 <= high
    elementwise(view, _first if encloses else _never, [view.need(0)])


def _bound(view: View, i: int, attribute: str, absent: float) -> float | None:
    if attribute in view.node.attributes:
        return float(view.node.attributes[attribute].as_float())
    if view.x(i) is None:
        return absent
    data = view.data(i)
    return None if data is None else float(data.reshape(-1)[0])


@rule("Div", "Mod")
def divide(view: View) -> None:
    """0/x is 0; a divisor that would become zero is pinned, for x/0 spoils every sum behind it."""
    if view.node.op_type == "Div" or view.x(1) is not None:
        _no_zero_operand(view, view.need(1), "its divisor would become zero")
    elementwise(view, _first)


@rule("Pow")
def power(view: View) -> None:
    """0 to a positive power is 0; to a negative one it is infinite."""
    exponent = view.data(1)
    positive = exponent is not None and bool((exponent.astype(np.float64) > 0).all())
    if not positive:
        _no_zero_operand(view, view.need(0), "zero to a power that may be negative is infinite")
    elementwise(view, _first if positive else _never)


@rule(*_SINGULAR)
def singular(view: View) -> None:
    """Infinite at zero: an axis whose removed indices are zero is pinned."""
    _no_zero_operand(view, view.need(0), "it is infinite at zero")
    elementwise(view, _never)


def _no_zero_operand(view: View, value: ir.Value, reason: str) -> None:
    for axis, zero in zip(view.axes(value), view.zero(value), strict=True):
        if zero:
            view.pin(axis, reason)
