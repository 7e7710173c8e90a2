"""Operators where shapes are computed: on Python numbers and nested lists, so that sizes stay Python ints.

Each function has the operator's inputs in order and its attributes by keyword. Float results are rounded to float32 in
plain arithmetic (Veltkamp's splitting), so that torch.compile can trace them and Floor agrees with ONNX Runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from onnxprune.bridge.registry import host_op

Host = Any  # int, float, bool, or nested lists of them


def shape_of(value: Host) -> list[int]:
    """The extents of a nested list; [] for a number."""
    if not isinstance(value, (list, tuple)):
        return []
    return [len(value), *(shape_of(value[0]) if value else [])]


def flat(value: Host) -> list[Any]:
    """The numbers of a nested list, row by row."""
    if not isinstance(value, (list, tuple)):
        return [value]
    return [number for part in value for number in flat(part)]


def listed(value: Host) -> list[Any]:
    """A list of numbers, which ONNX Runtime lets be a single one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def build(numbers: Sequence[Any], shape: Sequence[int]) -> Host:
    """A nested list of the given extents."""
    if not shape:
        return numbers[0]
    step = math.prod(shape[1:])
    return [build(numbers[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def single(x: float) -> float:
    """Round to float32: the high 24 bits of a double by Veltkamp's splitting (1968)."""
    shifted = x * 536870913.0
    return shifted - (shifted - x)


def broadcast(*values: Host) -> tuple[list[list[Any]], list[int]]:
    """Flat lists of equal length, and the common extents, by ONNX's (numpy's) rules."""
    shapes = [shape_of(value) for value in values]
    rank = max(len(shape) for shape in shapes)
    padded = [[1] * (rank - len(shape)) + shape for shape in shapes]
    common = [next((s[d] for s in padded if s[d] != 1), 1) for d in range(rank)]
    return [_expand(flat(value), shape, common) for value, shape in zip(values, padded, strict=True)], common


def _expand(numbers: list[Any], shape: list[int], common: list[int]) -> list[Any]:
    if shape == common:
        return numbers
    result = []
    for index in range(math.prod(common)):
        position, rest, stride = 0, index, 1
        for extent, target in zip(reversed(shape), reversed(common), strict=True):
            coordinate = rest % target
            rest //= target
            if extent != 1:
                position += coordinate * stride
            stride *= extent
        result.append(numbers[position])
    return result


def _pointwise(function: Callable[..., Any]) -> Callable[..., Host]:
    def apply(*values: Host) -> Host:
        lists, shape = broadcast(*values)
        return build([function(*row) for row in zip(*lists, strict=True)], shape)

    return apply


def _number(x: Any) -> Any:
    return single(x) if isinstance(x, float) else x


def divide(a: Any, b: Any) -> Any:
    """Division as ONNX does it: integers are cut towards zero."""
    if isinstance(a, float) or isinstance(b, float):
        return single(a / b)
    quotient = abs(a) // abs(b)
    return quotient if (a >= 0) == (b >= 0) else -quotient


@host_op("Shape", dtype="INT64", of_tensors=True)
def shape(x: Any, start: int = 0, end: int | None = None) -> list[int]:
    """The extents of a tensor as Python ints, or a slice of them."""
    extents = list(x.shape) if isinstance(x, torch.Tensor) else shape_of(x)
    return extents[start:end] if end is not None else extents[start:]


@host_op("Size", dtype="INT64", of_tensors=True)
def size(x: Any) -> int:
    """The number of elements as a Python int."""
    return math.prod(list(x.shape)) if isinstance(x, torch.Tensor) else len(flat(x))


@host_op("Add")
def host_add(a: Host, b: Host) -> Host:
    """Sum of sizes."""
    return _pointwise(lambda x, y: _number(x + y))(a, b)


@host_op("Sub")
def host_sub(a: Host, b: Host) -> Host:
    """Difference of sizes."""
    return _pointwise(lambda x, y: _number(x - y))(a, b)


@host_op("Mul")
def host_mul(a: Host, b: Host) -> Host:
    """Product of sizes."""
    return _pointwise(lambda x, y: _number(x * y))(a, b)


@host_op("Div")
def host_div(a: Host, b: Host) -> Host:
    """Quotient of sizes."""
    return _pointwise(divide)(a, b)


@host_op("Mod")
def host_mod(a: Host, b: Host, fmod: int = 0) -> Host:
    """Remainder with the sign of the divisor, or of the dividend with fmod."""
    return _pointwise(lambda x, y: x - y * divide(x, y) if fmod else x % y)(a, b)


@host_op("Pow")
def host_pow(a: Host, b: Host) -> Host:
    """Power, in the type of the base."""
    return _pointwise(lambda x, y: single(float(x**y)) if isinstance(x, float) else int(x**y))(a, b)


@host_op("Min")
def host_min(*values: Host) -> Host:
    """Smallest."""
    return _pointwise(lambda *row: min(row))(*values)


@host_op("Max")
def host_max(*values: Host) -> Host:
    """Largest."""
    return _pointwise(lambda *row: max(row))(*values)


@host_op("Neg")
def host_neg(a: Host) -> Host:
    """Negated."""
    return _pointwise(lambda x: -x)(a)


@host_op("Abs")
def host_abs(a: Host) -> Host:
    """Without sign."""
    return _pointwise(abs)(a)


@host_op("Sqrt")
def host_sqrt(a: Host) -> Host:
    """Square root."""
    return _pointwise(lambda x: single(math.sqrt(x)))(a)


@host_op("Reciprocal")
def host_reciprocal(a: Host) -> Host:
    """One over."""
    return _pointwise(lambda x: single(1.0 / x))(a)


@host_op("Floor")
def host_floor(a: Host) -> Host:
    """Rounded down, still a float."""
    return _pointwise(lambda x: float(math.floor(x)))(a)


@host_op("Ceil")
def host_ceil(a: Host) -> Host:
    """Rounded up, still a float."""
    return _pointwise(lambda x: float(math.ceil(x)))(a)


@host_op("Round")
def host_round(a: Host) -> Host:
    """Rounded half to even, still a float."""
    return _pointwise(lambda x: float(round(x)))(a)


@host_op("Equal", dtype="BOOL")
def host_equal(a: Host, b: Host) -> Host:
    """Comparison."""
    return _pointwise(lambda x, y: x == y)(a, b)


@host_op("Greater", dtype="BOOL")
def host_greater(a: Host, b: Host) -> Host:
    """Comparison."""
    return _pointwise(lambda x, y: x > y)(a, b)


@host_op("Less", dtype="BOOL")
def host_less(a: Host, b: Host) -> Host:
    """Comparison."""
    return _pointwise(lambda x, y: x < y)(a, b)


@host_op("GreaterOrEqual", dtype="BOOL")
def host_greater_equal(a: Host, b: Host) -> Host:
    """Comparison."""
    return _pointwise(lambda x, y: x >= y)(a, b)


@host_op("LessOrEqual", dtype="BOOL")
def host_less_equal(a: Host, b: Host) -> Host:
    """Comparison."""
    return _pointwise(lambda x, y: x <= y)(a, b)


@host_op("Not", dtype="BOOL")
def host_not(a: Host) -> Host:
    """Negated truth."""
    return _pointwise(lambda x: not x)(a)


@host_op("And", dtype="BOOL")
def host_and(a: Host, b: Host) -> Host:
    """Both."""
    return _pointwise(lambda x, y: bool(x) and bool(y))(a, b)


@host_op("Or", dtype="BOOL")
def host_or(a: Host, b: Host) -> Host:
    """Either."""
    return _pointwise(lambda x, y: bool(x) or bool(y))(a, b)


@host_op("Where", dtype=1)
def host_where(condition: Host, a: Host, b: Host) -> Host:
    """Choice by condition."""
    return _pointwise(lambda c, x, y: x if c else y)(condition, a, b)


@host_op("Identity")
def host_identity(a: Host) -> Host:
    """The same."""
    return a


@host_op("Cast", dtype="to")
def host_cast(a: Host, to: int, saturate: int = 1) -> Host:
    """To INT64, INT32, BOOL or FLOAT."""
    kinds: dict[int, Callable[[Any], Any]] = {1: lambda x: single(float(x)), 6: int, 7: int, 9: bool}
    if to not in kinds:
        raise NotImplementedError(f"cast of a size to type {to}")
    return _pointwise(kinds[to])(a)


@host_op("Concat")
def host_concat(*values: Host, axis: int) -> Host:
    """Lists put after one another."""
    if axis in (0, -len(shape_of(values[0]))):
        return [item for value in values for item in value]
    return [host_concat(*rows, axis=axis - 1 if axis > 0 else axis) for rows in zip(*values, strict=True)]


@host_op("Gather")
def host_gather(data: Host, indices: Host, axis: int = 0) -> Host:
    """Entries by index; negative ones count from the end."""
    if axis not in (0, -len(shape_of(data))):
        return [host_gather(row, indices, axis - 1 if axis > 0 else axis) for row in data]
    if isinstance(indices, (list, tuple)):
        return [host_gather(data, index) for index in indices]
    return data[indices]


@host_op("Slice")
def host_slice(
    data: Host,
    starts: Host = None,
    ends: Host = None,
    axes: Host = None,
    steps: Host = None,
) -> Host:
    """Entries by start, end and step, which may be negative."""
    starts, ends = listed(starts), listed(ends)
    axes = list(range(len(starts))) if axes is None else listed(axes)
    steps = [1] * len(starts) if steps is None else listed(steps)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        data = _slice_axis(data, start, end, axis % len(shape_of(data)), step)
    return data


def _slice_axis(data: Host, start: int, end: int, axis: int, step: int) -> Host:
    if axis:
        return [_slice_axis(row, start, end, axis - 1, step) for row in data]
    return [data[i] for i in slice_indices(len(data), start, end, step)]


def slice_indices(length: int, start: int, end: int, step: int) -> range:
    """The indices that an ONNX Slice takes of an axis."""
    if step > 0:
        start = min(max(start + length if start < 0 else start, 0), length)
        end = min(max(end + length if end < 0 else end, 0), length)
    else:
        start = min(max(start + length if start < 0 else start, 0), length - 1)
        end = min(max(end + length if end < 0 else end, -1), length - 1)
    return range(start, end, step)


@host_op("Squeeze")
def host_squeeze(data: Host, axes: Host = None) -> Host:
    """Without axes of extent one."""
    shape = shape_of(data)
    ones = [i for i, n in enumerate(shape) if n == 1]
    drop = set(ones) if axes is None else {axis % len(shape) for axis in listed(axes)}
    return build(flat(data), [n for i, n in enumerate(shape) if i not in drop])


@host_op("Unsqueeze")
def host_unsqueeze(data: Host, axes: Host) -> Host:
    """With axes of extent one put in."""
    shape, places = shape_of(data), listed(axes)
    rank = len(shape) + len(places)
    for axis in sorted(axis % rank for axis in places):
        shape.insert(axis, 1)
    return build(flat(data), shape)


@host_op("Reshape")
def host_reshape(data: Host, shape: Host, allowzero: int = 0) -> Host:
    """Other extents, the same numbers."""
    numbers, old = flat(data), shape_of(data)
    new = [old[i] if n == 0 and not allowzero else n for i, n in enumerate(listed(shape))]
    if -1 in new:
        new[new.index(-1)] = len(numbers) // max(1, -math.prod(new))
    return build(numbers, new)


@host_op("Flatten")
def host_flatten(data: Host, axis: int = 1) -> Host:
    """As a matrix."""
    shape = shape_of(data)
    axis = axis % len(shape) if axis < 0 else axis
    return build(flat(data), [math.prod(shape[:axis]), math.prod(shape[axis:])])


@host_op("Transpose")
def host_transpose(data: Host, perm: Sequence[int] | None = None) -> Host:
    """Axes of a matrix swapped."""
    shape = shape_of(data)
    if len(shape) < 2 or (perm is not None and list(perm) == list(range(len(shape)))):
        return data
    if len(shape) != 2:
        raise NotImplementedError("transpose of sizes with more than two axes")
    return [list(row) for row in zip(*data, strict=True)]


def _reduction(function: Callable[[list[Any]], Any]) -> Callable[..., Host]:
    def reduce(data: Host, axes: Host = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Host:
        if len(shape_of(data)) != 1:
            raise NotImplementedError("reduction of sizes with more than one axis")
        result = _number(function(flat(data)))
        return [result] if keepdims else result

    return reduce


host_op("ReduceProd")(_reduction(math.prod))
host_op("ReduceSum")(_reduction(sum))
host_op("ReduceMax")(_reduction(max))
host_op("ReduceMin")(_reduction(min))


@host_op("ConstantOfShape", dtype="value")
def host_constant_of_shape(shape: Host, value: tuple[Any, str] = (0.0, "FLOAT")) -> Host:
    """A short list of one number."""
    if math.prod(shape) > 64:
        raise NotImplementedError("a large constant is no size")
    return build([value[0]] * math.prod(shape), shape)


@host_op("Range")
def host_range(start: Host, limit: Host, delta: Host) -> Host:
    """Numbers from start up to limit."""
    count = max(0, math.ceil((limit - start) / delta))
    if count > 64:
        raise NotImplementedError("a long range is no size")
    return [start + i * delta for i in range(count)]
