"""Which numbers stand in for the dynamic dimensions of a model when its shapes are inferred."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import onnx_ir as ir

Sizes: TypeAlias = Mapping[str, int]


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
        if _expression(name, {}) is not None:
            continue
        if axis == 0 and len(value.shape or ()) > 1:
            sizes[name] = batch
        else:
            image = len(value.shape or ()) == 4
            sizes[name] = side if image or not others else side + others * (2 + turn)
            others += 1
    for name in dims:
        if name not in sizes:
            sizes[name] = _expression(name, sizes) or side
    return sizes


def _expression(text: str, sizes: Sizes) -> int | None:
    """Evaluate a dimension such as ``past + 1`` on known symbols; None if it is a plain symbol or cannot be."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return sizes.get(node.id, 4)
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            match node.op:
                case ast.Add():
                    return left + right
                case ast.Sub():
                    return left - right
                case ast.Mult():
                    return left * right
                case ast.FloorDiv() | ast.Div():
                    return left // right
        raise ValueError(text)

    if not isinstance(tree, ast.BinOp):
        return None
    try:
        return value(tree)
    except (ValueError, ZeroDivisionError):
        return None
