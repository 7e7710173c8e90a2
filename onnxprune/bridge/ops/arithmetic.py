"""Elementwise arithmetic, comparison and logic, with numpy broadcasting.

PyTorch has no arithmetic on uint16, uint32 and uint64: those are worked out in int64, whose bits are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from onnxprune.bridge.registry import op

Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WIDE_UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})


def _aligned(a: torch.Tensor, b: torch.Tensor, broadcast: int, axis: int | None) -> torch.Tensor:
    """Opset 6 and before: with `broadcast`, B's axes line up with A's from `axis` on."""
    if not broadcast or axis is None:
        return b
    return b.reshape(b.shape + (1,) * (a.dim() - (axis % max(a.dim(), 1)) - b.dim()))


def _in_int64(function: Binary, a: torch.Tensor, b: torch.Tensor, keep: bool = True) -> torch.Tensor:
    if a.dtype not in WIDE_UNSIGNED:
        return function(a, b)
    result = function(a.to(torch.int64), b.to(torch.int64))
    return result.to(a.dtype) if keep else result


@op("Add", elementwise=True)
def add(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a + b."""
    if a.dtype in WIDE_UNSIGNED:
        return _in_int64(torch.add, a, b)
    return a + (_aligned(a, b, broadcast, axis) if broadcast else b)


@op("Sub", elementwise=True)
def sub(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a - b."""
    if a.dtype in WIDE_UNSIGNED:
        return _in_int64(torch.sub, a, b)
    return a - (_aligned(a, b, broadcast, axis) if broadcast else b)


@op("Mul", elementwise=True)
def mul(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a * b."""
    if a.dtype in WIDE_UNSIGNED:
        return _in_int64(torch.mul, a, b)
    return a * (_aligned(a, b, broadcast, axis) if broadcast else b)


@op("Div", elementwise=True)
def div(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a / b; integers are cut towards zero, as in C."""
    b = _aligned(a, b, broadcast, axis)
    if a.is_floating_point() or a.is_complex():
        return a / b
    return _in_int64(functools.partial(torch.div, rounding_mode="trunc"), a, b)


@op("Mod", elementwise=True)
def mod(a: torch.Tensor, b: torch.Tensor, fmod: int = 0) -> torch.Tensor:
    """The remainder: with the sign of b, or with `fmod` (which floats need before opset 28) with the sign of a."""
    return _in_int64(torch.fmod if fmod else torch.remainder, a, b)


@op("Pow", scalar=(1,), elementwise=True)
def power(a: torch.Tensor, b: torch.Tensor | float, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a to the power of b, in the type of a."""
    if isinstance(b, torch.Tensor):
        b = _aligned(a, b, broadcast, axis)
        if b.dtype in WIDE_UNSIGNED:
            b = b.to(torch.int64)
    elif a.is_floating_point() and b == int(b):
        b = int(b)
    if not a.is_floating_point():
        exponent = b if isinstance(b, torch.Tensor) else torch.tensor(b, device=a.device)
        exact = exponent.is_floating_point() or bool((exponent < 0).any())
        return torch.pow(a.to(torch.float64 if exact else torch.int64), exponent).to(a.dtype)
    return torch.pow(a, b).to(a.dtype)


@op("Neg", elementwise=True)
def neg(x: torch.Tensor) -> torch.Tensor:
    """-x."""
    return -x


@op("Abs", elementwise=True)
def absolute(x: torch.Tensor) -> torch.Tensor:
    """|x|."""
    return x if x.dtype in WIDE_UNSIGNED else torch.abs(x)


@op("Sign", elementwise=True)
def sign(x: torch.Tensor) -> torch.Tensor:
    """-1, 0 or 1; NaN stays."""
    if x.dtype in WIDE_UNSIGNED:
        return (x != 0).to(x.dtype)
    return torch.where(torch.isnan(x), x, torch.sign(x)) if x.is_floating_point() else torch.sign(x)


@op("Reciprocal", elementwise=True)
def reciprocal(x: torch.Tensor) -> torch.Tensor:
    """1 / x."""
    return torch.reciprocal(x)


@op("Sqrt", elementwise=True)
def sqrt(x: torch.Tensor) -> torch.Tensor:
    """Square root."""
    return torch.sqrt(x)


@op("Exp", elementwise=True)
def exp(x: torch.Tensor) -> torch.Tensor:
    """e to the power of x."""
    return torch.exp(x)


@op("Log", elementwise=True)
def log(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm."""
    return torch.log(x)


def _register_unary() -> None:
    """Operators that are one PyTorch function of one tensor."""
    functions = {
        "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
        "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
        "Atanh": torch.atanh, "Erf": torch.erf,
    }  # fmt: skip
    for name, function in functions.items():
        op(name, elementwise=True)(_unary(name, function))


def _unary(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        return function(x)

    run.__name__ = run.__qualname__ = name.lower()
    run.__doc__ = f"{name} of each element."
    globals()[run.__name__] = run
    return run


_register_unary()


@op("Floor", elementwise=True)
def floor(x: torch.Tensor) -> torch.Tensor:
    """Rounded down."""
    return torch.floor(x)


@op("Ceil", elementwise=True)
def ceil(x: torch.Tensor) -> torch.Tensor:
    """Rounded up."""
    return torch.ceil(x)


@op("Round", elementwise=True)
def round_half_even(x: torch.Tensor) -> torch.Tensor:
    """Rounded, halves to the even neighbour."""
    return torch.round(x)


def _between(x: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
    """`torch.clamp`; between two numbers as `hardtanh`, whose gradient is one kernel and not four."""
    if x.is_floating_point() and low is not None and high is not None and low < high:
        return torch.nn.functional.hardtanh(x, low, high)
    return torch.clamp(x, low, high)


@op("Clip", since=1, elementwise=True)
def clip_6(x: torch.Tensor, min: float = -math.inf, max: float = math.inf) -> torch.Tensor:
    """Cut off at bounds given as attributes."""
    return _between(x, min, max)


@op("Clip", since=11, scalar=(1, 2), elementwise=True)
def clip(
    x: torch.Tensor, min: torch.Tensor | float | None = None, max: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Cut off at bounds given as inputs, either of which may be left out. The upper one wins where they cross."""
    if x.dtype in WIDE_UNSIGNED:
        bounds = [b.to(torch.int64) if isinstance(b, torch.Tensor) else b for b in (min, max)]
        return clip(x.to(torch.int64), *bounds).to(x.dtype)
    if not isinstance(min, torch.Tensor) and not isinstance(max, torch.Tensor):
        return x if min is None and max is None else _between(x, min, max)
    if min is not None:
        x = torch.clamp(x, min=min)
    return x if max is None else torch.clamp(x, max=max)


def _fold(function: Binary, values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return functools.reduce(lambda a, b: _in_int64(function, a, b), values)


@op("Sum", elementwise=True)
def sum_of(*values: torch.Tensor) -> torch.Tensor:
    """Sum of any number of tensors."""
    return _fold(torch.add, values)


@op("Mean", elementwise=True)
def mean_of(*values: torch.Tensor) -> torch.Tensor:
    """Mean of any number of tensors."""
    return _fold(torch.add, values) / len(values)


@op("Max", elementwise=True)
def max_of(*values: torch.Tensor) -> torch.Tensor:
    """Elementwise largest of any number of tensors."""
    return _fold(torch.maximum, values)


@op("Min", elementwise=True)
def min_of(*values: torch.Tensor) -> torch.Tensor:
    """Elementwise smallest of any number of tensors."""
    return _fold(torch.minimum, values)


@op("Where", fixed=(0,), elementwise=True)
def where(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a where the condition holds, b elsewhere."""
    return torch.where(condition, a, b)


@op("Equal", differentiable=False)
def equal(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a == b."""
    return a == _aligned(a, b, broadcast, axis)


def _compare(function: Binary, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if a.dtype is torch.uint64:  # the order of int64 with the sign bit flipped
        lowest = torch.tensor(-(2**63), dtype=torch.int64, device=a.device)
        return function(a.view(torch.int64) ^ lowest, b.view(torch.int64) ^ lowest)
    return _in_int64(function, a, b, keep=False)


@op("Greater", differentiable=False)
def greater(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a > b."""
    return _compare(torch.gt, a, _aligned(a, b, broadcast, axis))


@op("Less", differentiable=False)
def less(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """a < b."""
    return _compare(torch.lt, a, _aligned(a, b, broadcast, axis))


@op("GreaterOrEqual", differentiable=False)
def greater_or_equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a >= b."""
    return _compare(torch.ge, a, b)


@op("LessOrEqual", differentiable=False)
def less_or_equal(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a <= b."""
    return _compare(torch.le, a, b)


@op("And", differentiable=False)
def logical_and(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """Both."""
    return torch.logical_and(a, _aligned(a, b, broadcast, axis))


@op("Or", differentiable=False)
def logical_or(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """Either."""
    return torch.logical_or(a, _aligned(a, b, broadcast, axis))


@op("Xor", differentiable=False)
def logical_xor(a: torch.Tensor, b: torch.Tensor, broadcast: int = 0, axis: int | None = None) -> torch.Tensor:
    """One of the two."""
    return torch.logical_xor(a, _aligned(a, b, broadcast, axis))


@op("Not", differentiable=False)
def logical_not(x: torch.Tensor) -> torch.Tensor:
    """Neither."""
    return torch.logical_not(x)


@op("IsNaN", differentiable=False)
def isnan(x: torch.Tensor) -> torch.Tensor:
    """Whether an element is not a number."""
    return torch.isnan(x.float() if x.element_size() == 1 else x)


@op("IsInf", differentiable=False)
def isinf(x: torch.Tensor, detect_negative: int = 1, detect_positive: int = 1) -> torch.Tensor:
    """Whether an element is infinite, of the signs asked for."""
    x = x.float() if x.element_size() == 1 else x
    return (torch.isposinf(x) if detect_positive else torch.zeros_like(x, dtype=torch.bool)) | (
        torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)
    )


@op("BitwiseAnd", differentiable=False)
def bitwise_and(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Bits set in both."""
    return _in_int64(torch.bitwise_and, a, b)


@op("BitwiseOr", differentiable=False)
def bitwise_or(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Bits set in either."""
    return _in_int64(torch.bitwise_or, a, b)


@op("BitwiseXor", differentiable=False)
def bitwise_xor(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Bits set in one of the two."""
    return _in_int64(torch.bitwise_xor, a, b)


@op("BitwiseNot", differentiable=False)
def bitwise_not(x: torch.Tensor) -> torch.Tensor:
    """All bits flipped."""
    return torch.bitwise_not(x.to(torch.int64)).to(x.dtype) if x.dtype in WIDE_UNSIGNED else torch.bitwise_not(x)


@op("BitShift", differentiable=False)
def bit_shift(a: torch.Tensor, b: torch.Tensor, direction: str) -> torch.Tensor:
    """Bits moved left or right by b. Shifts of all bits or more (or of less than none) leave zero, or the sign."""
    bits = a.element_size() * 8
    wide, by = a.to(torch.int64), b.to(torch.int64)
    beyond = (by >= bits) | (by < 0)
    amount = torch.where(beyond, torch.zeros_like(by), by)
    if direction == "LEFT":
        moved, rest = torch.bitwise_left_shift(wide, amount), torch.zeros_like(wide)
    else:
        moved, rest = torch.bitwise_right_shift(wide, amount), torch.zeros_like(wide)
        if a.dtype == torch.uint64:  # what came in as the sign goes out again
            lowest = torch.bitwise_left_shift(torch.ones_like(amount), 64 - amount.clamp(min=1)) - 1
            moved = torch.where(amount > 0, moved & lowest, moved)
        elif a.dtype.is_signed:
            rest = torch.where(wide < 0, torch.full_like(wide, -1), rest)
    return torch.where(beyond, rest, moved).to(a.dtype)
