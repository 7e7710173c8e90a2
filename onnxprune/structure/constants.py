"""Channels that are constant: a unit without incoming weights puts out the same number for every input.

`constant_channels` follows such numbers forward; `fold_constants` moves what they contribute into the bias of the
node that consumes them and zeroes the weights they came through, so that nobody reads the unit any more. A padded
convolution sees zeros beside a constant that is not zero, so nothing is folded there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.evaluate import evaluate_node
from onnxprune.graph.layers import contraction_sites
from onnxprune.graph.operators import operator_of
from onnxprune.graph.tensors import like
from onnxprune.structure.structure import Structure

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A value's content along one axis: a number where it is the same at every other place, NaN where it is not."""

    axis: int
    numbers: Numbers


Lines = dict[ir.Value, Line]
_Step = Callable[[Structure, ir.Node, Lines], Line | None]


def constant_channels(structure: Structure) -> Lines:
    """Return, for values of which some indices are constant, their numbers."""
    lines: Lines = {}
    with np.errstate(all="ignore"):
        for node in structure.model.graph:
            step = _step(node)
            if step is None:
                continue
            line = step(structure, node, lines)
            out = node.outputs[0]
            if line is not None and np.isfinite(line.numbers).any() and structure.ids(out, line.axis) is not None:
                lines[out] = line
    return lines


def fold_constants(structure: Structure, lines: Lines) -> tuple[int, list[str]]:
    """Fold constant units that could go into the biases of all that consume them, in place.

    Returns:
        How many columns were folded, and a sentence for each node where a fold would not be exact.
    """
    folded, left = 0, []
    edit = Editor(structure.model)
    for node in list(structure.model.graph):
        sites = contraction_sites(node, set(structure.sources)) if _can_fold(node) else ()
        if not sites:
            continue
        data, axis, weight, place = sites[0]
        x, w = node.inputs[data], node.inputs[weight]
        if x is None or w is None or weight != 1 or not _owned(w) or node.attributes.get_int("group", 1) != 1:
            continue
        line = lines.get(x)
        if line is None or line.axis != axis % len(structure.axes[x]):
            continue
        array = _array(w)
        columns = np.flatnonzero(
            np.isfinite(line.numbers) & structure.removable(x, line.axis) & _nonzero(array, place % array.ndim)
        )
        shifts = columns[line.numbers[columns] != 0]
        if len(shifts) and _padded(node):
            left.append(
                f"{node.op_type} {node.name}: {len(shifts)} constant channels stay, its padding is not constant"
            )
            columns = np.setdiff1d(columns, shifts)
            shifts = shifts[:0]
        if len(columns) and (not len(shifts) or _add_to_bias(edit, node, _shift(node, array, place, line, shifts))):
            _zero_columns(w, array, place, columns)
            folded += len(columns)
    return folded, left


# -- how constants pass through operators ---------------------------------------------------------------------------


def _conv(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    w = node.inputs[1]
    if w is None or not w.is_initializer():
        return None
    array = _array(w).astype(np.float64)
    bias = _vector(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(len(array))
    if bias is None:
        return None
    groups = node.attributes.get_int("group", 1)
    sums = array.reshape(*array.shape[:2], -1).sum(axis=2)
    used = (array != 0).reshape(*array.shape[:2], -1).any(axis=2)
    line = _line(lines, node.inputs[0], 1)
    inputs = np.full(groups * array.shape[1], np.nan) if line is None else line.numbers.copy()
    if _padded(node):
        inputs[inputs != 0] = np.nan
    per_group = np.repeat(inputs.reshape(groups, -1), len(array) // groups, axis=0)
    return Line(1, bias + np.where(used, sums * per_group, 0.0).sum(axis=1))


def _gemm(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    w = node.inputs[1]
    if w is None or not w.is_initializer() or node.attributes.get_int("transA", 0) != 0:
        return None
    array = _array(w).astype(np.float64)
    if node.attributes.get_int("transB", 0):
        array = array.T
    bias = _vector(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(array.shape[1])
    if bias is None or bias.shape != (array.shape[1],):
        return None
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    return Line(1, alpha * _product(lines, node.inputs[0], 1, array) + beta * bias)


def _matmul(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    x, w = node.inputs
    if x is None or w is None or not w.is_initializer() or x not in structure.axes:
        return None
    array, rank = _array(w).astype(np.float64), len(structure.axes[x])
    return Line(rank - 1, _product(lines, x, rank - 1, array)) if array.ndim == 2 else None


def _product(lines: Lines, x: ir.Value | None, axis: int, array: Numbers) -> Numbers:
    line = _line(lines, x, axis)
    inputs = np.full(len(array), np.nan) if line is None else line.numbers
    out: Numbers = np.where(array != 0, array * inputs[:, None], 0.0).sum(axis=0)
    return out


def _batch_norm(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    line = _line(lines, node.inputs[0], 1)
    scale, bias, mean, var = (_vector(v) for v in node.inputs[1:5])
    if scale is None or bias is None or mean is None or var is None or node.attributes.get_int("training_mode", 0) != 0:
        return None
    inputs = np.full(len(scale), np.nan) if line is None else line.numbers
    factor = scale / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
    return Line(1, bias + np.where(factor != 0, factor * (inputs - mean), 0.0))


def _unary(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    line = lines.get(node.inputs[0]) if node.inputs[0] is not None else None
    if line is None:
        return None
    if operator_of(node).keeps_mean:
        return line
    if any(v is not None and v.const_value is None for v in node.inputs[1:]):
        return None
    operands = [line.numbers.astype(np.float32), *(_array(v) if v is not None else None for v in node.inputs[1:])]
    result = evaluate_node(node, operands, structure.model.opset_imports.get("", 1))
    if result is None or result.shape != line.numbers.shape:
        return None
    return Line(line.axis, np.where(np.isfinite(line.numbers), result.astype(np.float64), np.nan))


def _binary(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    known = [lines[v] for v in node.inputs if v in lines]
    out = node.outputs[0]
    if not known or out not in structure.axes:
        return None
    first = next(v for v in node.inputs if v in lines)
    assert first is not None
    axis = lines[first].axis + len(structure.axes[out]) - len(structure.axes[first])
    operands = [_along(structure, v, axis, len(structure.axes[out]), lines) for v in node.inputs]
    if any(o is None for o in operands):
        return None
    total = operands[0]
    assert total is not None
    for other in operands[1:]:
        assert other is not None
        total = _combine(node.op_type, total, other)
    ids = structure.ids(out, axis)
    return None if ids is None else Line(axis, np.broadcast_to(total, len(ids)))


def _along(structure: Structure, value: ir.Value | None, axis: int, rank: int, lines: Lines) -> Numbers | None:
    """Return an operand's numbers along one axis of the result; unknown where it is not constant."""
    if value is None:
        return None
    if value.is_initializer():  # one of a single number has no axes
        array = _array(value).astype(np.float64)
        mine = axis - (rank - array.ndim)
        fits = array.size == 1 or (mine >= 0 and array.size == array.shape[mine])
        return array.reshape(-1) if fits else np.array([np.nan])
    if value not in lines:
        return np.array([np.nan])
    mine = axis - (rank - len(structure.axes[value]))
    return lines[value].numbers if lines[value].axis == mine else np.array([np.nan])


def _combine(op: str, a: Numbers, b: Numbers) -> Numbers:
    match op:
        case "Add" | "Sum":
            return a + b
        case "Sub":
            return a - b
        case "Mul":
            return np.where((a == 0) | (b == 0), 0.0, a * b)
        case "Div":
            return np.where(b == 0, np.nan, a / b)
        case "Max":
            return np.maximum(a, b)
        case "Min":
            return np.minimum(a, b)
        case "PRelu":
            return np.where(a >= 0, a, a * b)
        case _:
            return np.full(np.broadcast_shapes(a.shape, b.shape), np.nan)


def _pool(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    line = _line(lines, node.inputs[0], 1)
    if line is None or (
        node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad", 0) != 0 and _padded(node)
    ):
        return None
    return line


def _concat(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    out = node.outputs[0]
    if out not in structure.axes or not any(v in lines for v in node.inputs):
        return None
    axis = node.attributes.get_int("axis", 1) % len(structure.axes[out])
    pieces = []
    for value in node.inputs:
        ids = None if value is None else structure.ids(value, axis)
        if value is None or ids is None:
            return None
        line = _line(lines, value, axis)
        pieces.append(np.full(len(ids), np.nan) if line is None else line.numbers)
    return Line(axis, np.concatenate(pieces))


def _transpose(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    line = lines.get(node.inputs[0]) if node.inputs[0] is not None else None
    if line is None:
        return None
    rank = len(structure.axes[node.inputs[0]])  # type: ignore[index]
    order = list(node.attributes.get_ints("perm") or list(range(rank))[::-1])
    return Line(order.index(line.axis), line.numbers)


def _flatten(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    """[N, C, rest...] -> [N, C rest]: every number is repeated."""
    line = _line(lines, node.inputs[0], 1)
    before, after = structure.facts.shape(node.inputs[0]), structure.facts.shape(node.outputs[0])  # type: ignore[arg-type]
    if line is None or before is None or after is None or len(after) != 2 or after[0] != before[0] or None in before:
        return None
    rest = int(np.prod([int(n or 0) for n in before[2:]]))
    return Line(1, np.repeat(line.numbers, rest)) if after[1] == rest * len(line.numbers) else None


def _reduce(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    line = lines.get(node.inputs[0]) if node.inputs[0] is not None else None
    shape = None if node.inputs[0] is None else structure.facts.shape(node.inputs[0])
    if line is None or shape is None:
        return None
    axes = node.attributes.get_ints("axes")
    if axes is None:
        data = structure.facts.data(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = None if data is None else [int(i) for i in data.reshape(-1)]
    gone = {i % len(shape) for i in axes} if axes is not None else set(range(len(shape)))
    if line.axis in gone:
        return None
    shift = 0 if node.attributes.get_int("keepdims", 1) else sum(i < line.axis for i in gone)
    return Line(line.axis - shift, line.numbers)


_STEPS: dict[str, _Step] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _flatten,
}


def _step(node: ir.Node) -> _Step | None:
    """What follows constants through a node; None where they end."""
    operator = operator_of(node)
    if node.domain != "" or operator.knows_zero_points:
        return None
    if operator.pointwise:
        return _unary if operator.pointwise == "unary" else _binary
    if operator.shrinks and operator.within_range:
        return _pool if operator.shrinks == "pool" else _reduce
    return _STEPS.get(node.op_type)


# -- folding --------------------------------------------------------------------------------------------------------


def _shift(
    node: ir.Node, array: npt.NDArray[np.generic], place: int, line: Line, columns: npt.NDArray[np.int64]
) -> Numbers:
    """Return what the constant columns add to the node's output: one number each output, for each batch of a MatMul."""
    moved = np.moveaxis(array.astype(np.float64), place, 0)[columns]
    if node.op_type == "Conv":  # [columns, outputs, kernel...]
        moved = moved.reshape(*moved.shape[:2], -1).sum(axis=2)
    shift: Numbers = np.tensordot(line.numbers[columns], moved, axes=1)
    return shift if shift.ndim == 1 else np.expand_dims(shift, -2)  # [batch..., 1, outputs] of a batched MatMul


def _can_fold(node: ir.Node) -> bool:
    """Whether a node is a product of real numbers whose sum over constants can be written as a bias."""
    operator = operator_of(node)
    return not operator.knows_zero_points and (operator.kind == "fc" or operator.sees_windows)


def _add_to_bias(edit: Editor, node: ir.Node, shift: Numbers) -> bool:
    """Add to a node's bias, making one where it has none; say whether that could be done."""
    dtype = _array(node.inputs[1]).dtype
    shift = shift * node.attributes.get_float("alpha", 1.0)
    if not operator_of(node).biases:
        out = node.outputs[0]
        added = edit.after(node, "Add", [out, edit.constant(shift.astype(dtype), f"{out.name}_bias")], ending="bias")
        edit.take_place(out, added)
        return True
    beta = node.attributes.get_float("beta", 1.0)
    if beta == 0:
        return False
    shift = shift / beta
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        value = edit.constant(shift.astype(dtype), f"{node.outputs[0].name}_bias")
        node.resize_inputs(max(3, len(node.inputs)))
        node.replace_input_with(2, value)
        return True
    old = _vector(bias)
    if old is None or old.shape != shift.shape or not _owned(bias):
        return False
    assert bias.const_value is not None
    bias.const_value = like(bias.const_value, (old + shift).astype(dtype))
    return True


def _zero_columns(value: ir.Value, array: npt.NDArray[np.generic], place: int, columns: npt.NDArray[np.int64]) -> None:
    changed = array.copy()
    np.moveaxis(changed, place, 0)[columns] = 0
    assert value.const_value is not None
    value.const_value = like(value.const_value, changed)


def _owned(value: ir.Value) -> bool:
    """Say whether a constant is read once and by nobody outside."""
    return value.is_initializer() and len(list(value.uses())) == 1 and not value.is_graph_output()


def _nonzero(array: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.bool_]:
    flags: npt.NDArray[np.bool_] = (array != 0).any(axis=tuple(i for i in range(array.ndim) if i != axis))
    return flags


def _padded(node: ir.Node) -> bool:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    return mode not in ("NOTSET", "VALID") or any(_numbers(node.attributes.get_ints("pads")))


def _numbers(numbers: Sequence[int] | None) -> list[int]:
    return [int(i) for i in numbers] if numbers is not None else []


def _line(lines: Lines, value: ir.Value | None, axis: int) -> Line | None:
    line = None if value is None else lines.get(value)
    return line if line is not None and line.axis == axis else None


def _array(value: ir.Value | None) -> npt.NDArray[np.generic]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def _vector(value: ir.Value | None) -> Numbers | None:
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    array = value.const_value.numpy()
    return array.astype(np.float64) if array.ndim == 1 else None
