"""Which numbers stand in for the dynamic dimensions of a model when its shapes are inferred."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.graph.hints import hints_of

Sizes: TypeAlias = Mapping[str, int]

_NAMED_BATCH = re.compile("n|b|bs|.*batch.*", re.IGNORECASE)
"""Names that exporters give to the dimension that counts samples."""


def dynamic_dims(model: ir.Model) -> dict[str, tuple[ir.Value, int]]:
    """Return the name of every dynamic input dimension, with the first (input, axis) that has it."""
    found: dict[str, tuple[ir.Value, int]] = {}
    for value in graph_inputs(model):
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                found.setdefault(dim_name(value, axis), (value, axis))
    return found


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


def candidate_settings(model: ir.Model) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Yield pairs of settings of the dynamic dimensions, the likeliest first.

    The first axis of an input is taken for a batch, the others for a sequence or an image side.
    """
    dims = dynamic_dims(model)
    if not dims:
        yield {}, {}
        return
    sides = [(64, 96), (8, 12), (16, 24), (5, 7), (32, 48), (224, 256), (320, 416), (1024, 1536), (1, 1)]
    for batch in ((2, 3), (1, 1)):
        for low, high in sides:
            yield _setting(dims, batch[0], low, 0), _setting(dims, batch[1], high, 1)


def _setting(dims: Mapping[str, tuple[ir.Value, int]], batch: int, side: int, turn: int) -> dict[str, int]:
    sizes: dict[str, int] = {}
    others = 0
    for name, (value, axis) in dims.items():
        if is_expression(name, dims):
            continue
        if axis == 0 and len(value.shape or ()) > 1:
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
