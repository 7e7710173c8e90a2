"""Which numbers stand in for the dynamic dimensions of a model when its shapes are inferred."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.hints import hints_of
from onnxprune.graph.operators import operator_of

Sizes: TypeAlias = Mapping[str, int]

_NAMED_BATCH = re.compile("n|b|bs|.*batch.*", re.IGNORECASE)
"""Names that exporters give to the dimension that counts samples."""


def dynamic_dims(model: ir.Model) -> dict[str, tuple[ir.Value, int]]:
    """Return the name of every dynamic input dimension, with the first (input, axis) that has it."""
    places: dict[str, tuple[ir.Value, int]] = {}
    for value in graph_inputs(model):
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                places.setdefault(dim_name(value, axis), (value, axis))
    return places


def dim_name(value: ir.Value, axis: int) -> str:
    """Return the symbol of a dynamic dimension, or a name made from the input's where it has none."""
    assert value.shape is not None
    dim = value.shape[axis]
    symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
    return str(symbol) if symbol else f"{value.name}[{axis}]"


def graph_inputs(model: ir.Model) -> list[ir.Value]:
    """Return the inputs a caller must feed: those that no initializer backs."""
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def sample_axes(model: ir.Model) -> dict[str, int | None]:
    """Return, by input name, the axis that counts samples; None where one array holds for all samples.

    What the user says wins. Otherwise it is the axis whose symbol is that of a batch: one named so, or one that is the
    first axis of another input, as in ``input [N, 256], state [2, N, 24]``. Where no symbol tells, it is the first.
    """
    told, inputs = hints_of(model).sample_axes, graph_inputs(model)
    batch = batch_symbols(inputs)
    return {str(v.name): told.get(str(v.name), sample_axis(v, batch)) for v in inputs}


def batch_symbols(values: Iterable[ir.Value]) -> set[str]:
    """Return the symbols of dimensions that count samples: those named so; if there are none, those of first axes."""
    symbols = [(axis, str(dim.value)) for value in values for axis, dim in enumerate(value.shape or ())
               if isinstance(dim, ir.SymbolicDim) and dim.value]  # fmt: skip
    named = {symbol for _, symbol in symbols if _NAMED_BATCH.fullmatch(symbol)}
    return named or {symbol for axis, symbol in symbols if axis == 0}


def sample_axis(value: ir.Value, batch: set[str]) -> int | None:
    """Return the axis of an input or output that counts samples: the one with a symbol of `batch`, else the first."""
    if value.shape is None:
        return 0
    axes = (axis for axis, dim in enumerate(value.shape) if isinstance(dim, ir.SymbolicDim) and str(dim.value) in batch)
    return next(axes, 0 if len(value.shape) else None)


_SIDES = ((64, 96), (8, 12), (16, 24), (5, 7), (32, 48), (224, 256), (320, 416), (1024, 1536), (1, 1))
_MOST_FACTORS = 6
_LONG = ((4096, 6144), (16384, 24576))  # samples of sound, points


def candidate_settings(model: ir.Model) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yield pairs of settings of the dynamic dimensions, the likeliest first.

    The axis of the samples is taken for a batch, the others for a sequence or an image side.
    """
    if not dynamic_dims(model):
        yield {}, {}
        return
    yield from _settings(model, [(batch, side) for batch in ((2, 3), (1, 1)) for side in _SIDES])


def rare_settings(model: ir.Model) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yield settings for models that the likely ones contradict: long ones, and multiples.

    Multiples are those of numbers in constant targets of Reshape, such as the frames of a clip.
    """
    if not dynamic_dims(model):
        return
    yield from _settings(model, [((2, 3), side) for side in _LONG])
    for number in factors(model):
        twice = (number, 2 * number)
        yield from _settings(model, [*((twice, side) for side in _SIDES[:3]), ((2, 3), twice)])


def _settings(
    model: ir.Model, pairs: Iterable[tuple[tuple[int, int], tuple[int, int]]]
) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yield a setting for each two batches and two sides."""
    dims, axes = dynamic_dims(model), sample_axes(model)
    batches = frozenset(n for n, (v, axis) in dims.items() if axis == axes[str(v.name)] and len(v.shape or ()) > 1)
    for batch, side in pairs:
        yield _setting(dims, batches, batch[0], side[0], 0), _setting(dims, batches, batch[1], side[1], 1)


def given_settings(model: ir.Model) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yield settings with the extents of inputs that the user gave, beside the double of all or of the batch alone."""
    hints, dims, axes = hints_of(model), dynamic_dims(model), sample_axes(model)
    batches = {name for name, (value, axis) in dims.items() if axis == axes[str(value.name)]}
    for feeds in (*hints.inputs[:1], *hints.samples[:1]):
        sizes = sizes_of(model, feeds)
        if sizes.keys() >= set(dims):
            for doubled in (set(dims), batches):
                yield sizes, {name: n * (2 if name in doubled else 1) for name, n in sizes.items()}


def sizes_of(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, int]:
    """Return the extents that inputs give to the dynamic dimensions."""
    dims = dynamic_dims(model)
    shapes = {name: np.shape(array) for name, array in feeds.items()}
    return {
        name: shapes[str(value.name)][axis]
        for name, (value, axis) in dims.items()
        if axis < len(shapes.get(str(value.name), ()))
    }


def factors(model: ir.Model) -> list[int]:
    """Return numbers that an extent may have to be a multiple of: those that shapes are computed with."""
    numbers: dict[int, set[int]] = {}
    for node in model.graph:
        rank = operator_of(node).factor_rank
        for value in node.inputs if rank else ():
            tensor = None if value is None else ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.dtype.is_integer() and tensor.size <= 8:
                divisors = numbers.setdefault(rank, set())
                divisors.update(int(n) for n in tensor.numpy().reshape(-1) if 2 <= n <= 512)
    return list(dict.fromkeys(n for rank in sorted(numbers) for n in sorted(numbers[rank])))[:_MOST_FACTORS]


def _setting(
    dims: Mapping[str, tuple[ir.Value, int]], batches: frozenset[str], batch: int, side: int, turn: int
) -> dict[str, int]:
    sizes: dict[str, int] = {}
    others = 0
    for name, (value, _) in dims.items():
        if is_expression(name, dims):
            continue
        if name in batches:
            sizes[name] = batch
        else:
            image = len(value.shape or ()) == 4
            sizes[name] = side if image or not others else side + others * (2 + turn)
            others += 1
    for name in dims:
        if name not in sizes:
            sizes[name] = evaluate(name, sizes) or side
    return sizes


def is_expression(name: str, dims: Iterable[str]) -> bool:
    """Return whether a dimension such as ``past + 1`` follows from others of the model."""
    return evaluate(name, dict.fromkeys(dims, 1)) is not None


def evaluate(name: str, sizes: Sizes) -> int | None:
    """Return the extent of a dimension such as ``past + 1``; None if it is a plain symbol, or holds unknown ones."""
    try:
        tree = ast.parse(name, mode="eval").body
        return _value(tree, sizes) if isinstance(tree, ast.BinOp) else None
    except (SyntaxError, KeyError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.AST, sizes: Sizes) -> int:
    """Evaluate integers, symbols and + - * /.

    Raises:
        KeyError: A symbol is not known.
        ValueError: It is something else.
    """
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=symbol):
            return sizes[symbol]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left, sizes) + _value(right, sizes)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left, sizes) - _value(right, sizes)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left, sizes) * _value(right, sizes)
        case ast.BinOp(left=left, op=ast.FloorDiv() | ast.Div(), right=right):
            return _value(left, sizes) // _value(right, sizes)
    raise ValueError(ast.dump(node))
