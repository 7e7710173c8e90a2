"""Channels that are constant: a unit without incoming weights puts out the same number for every input.

`constant_channels` follows such numbers forward through the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.evaluate import evaluate_node
from onnxprune.graph.layers import activation_of, activation_settings, matrix_axes, slots_of
from onnxprune.graph.linear import Linear, source_of, tensor_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot
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


# -- how constants pass through operators ---------------------------------------------------------------------------


def _contraction(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    """Numbers through Z = A W^T + b and the activation of a fused node, in every spelling of the product."""
    weight = constant_weight(node)
    if weight is None or (operator_of(node).sees_windows and input_of(node, 3) is not None):  # FusedConv adds a value
        return None
    slot, w = weight
    axes, data = matrix_axes(w, node), node.inputs[slot.data]
    if axes is None or data is None or not (operator_of(node).sees_windows or len(tensor_of(w).shape) == 2):
        return None
    linear = Linear(node, data, w, axes, slot, shift=None)
    by_place = linear.to_matrix(array_of(w)).astype(np.float64)  # [groups, outputs, inputs x places of the kernel]
    by_place = by_place.reshape(*by_place.shape[:2], -1, linear.places)
    matrix, reads = by_place.sum(axis=3), (by_place != 0).any(axis=3)
    bias = _bias(linear, matrix.shape[0] * matrix.shape[1])
    if bias is None or linear.data not in structure.axes or linear.output not in structure.axes:
        return None
    line = _line(lines, linear.data, linear.data_axis % len(structure.axes[linear.data]))
    numbers = np.full(matrix.shape[0] * matrix.shape[2], np.nan) if line is None else line.numbers.copy()
    if linear.is_conv and is_padded(node):
        numbers[numbers != 0] = np.nan
    product = np.where(reads, matrix * numbers.reshape(len(matrix), 1, -1), 0.0).sum(axis=2).reshape(-1)
    result = _activated(structure, node, linear.scale * product + bias)
    return None if result is None else Line(linear.result_axis % len(structure.axes[linear.output]), result)


def constant_weight(node: ir.Node) -> tuple[Slot, ir.Value] | None:
    """Return the one operand of a product that is a constant, perhaps behind views of it, and where it enters."""
    constants = [(slot, w) for slot in slots_of(node) if (w := source_of(node.inputs[slot.input])) is not None]
    if len(constants) != 1:
        return None
    slot, w = constants[0]
    return (slot, w) if w.is_initializer() and tensor_of(w).dtype.is_floating_point() else None


def _bias(linear: Linear, outputs: int) -> Numbers | None:
    """The bias as it is added, a number for each output; None where it is not known or lies across the outputs."""
    biases = operator_of(linear.node).biases
    value = input_of(linear.node, biases[0]) if biases else None
    if value is None:
        return np.zeros(outputs)
    if value.const_value is None or not value.is_initializer() or linear.result_axis == -2:
        return None
    lies_along = value.const_value.size == 1 or value.const_value.size == outputs == value.const_value.shape[-1]
    return linear.bias().reshape(-1) if lies_along else None


def _activated(structure: Structure, node: ir.Node, numbers: Numbers) -> Numbers | None:
    """Numbers behind the activation that a fused node applies, None where it is not known."""
    activation, settings = activation_of(node), activation_settings(node)
    if not activation:
        return numbers
    if settings is None:
        return None
    attributes = [ir.AttrFloat32(name, value) for name, value in settings.items()]
    alone = ir.Node("", activation, [ir.Value(name="x")], attributes)
    result = evaluate_node(alone, [numbers.astype(np.float32)], structure.model.opset_imports.get("", 1))
    return None if result is None else np.where(np.isfinite(numbers), result.astype(np.float64), np.nan)


def _batch_norm(structure: Structure, node: ir.Node, lines: Lines) -> Line | None:
    line = _line(lines, node.inputs[0], 1)
    scale, bias, mean, var = (vector_of(v) for v in node.inputs[1:5])
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
    operands = [line.numbers.astype(np.float32), *(array_of(v) if v is not None else None for v in node.inputs[1:])]
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
        array = array_of(value).astype(np.float64)
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
        node.op_type == "AveragePool" and node.attributes.get_int("count_include_pad", 0) != 0 and is_padded(node)
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
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Reshape": _flatten,
}


def _step(node: ir.Node) -> _Step | None:
    """What follows constants through a node; None where they end."""
    operator = operator_of(node)
    if is_product(node):
        return _contraction
    if node.domain != "" or operator.knows_zero_points:
        return None
    if operator.pointwise:
        return _unary if operator.pointwise == "unary" else _binary
    if operator.shrinks and operator.within_range:
        return _pool if operator.shrinks == "pool" else _reduce
    return _STEPS.get(node.op_type)


def is_product(node: ir.Node) -> bool:
    """Whether a node is a product of real numbers whose sum over constants can be written as a bias."""
    operator = operator_of(node)
    return not operator.knows_zero_points and (operator.kind == "fc" or operator.sees_windows)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def is_padded(node: ir.Node) -> bool:
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    return mode not in ("NOTSET", "VALID") or any(_numbers(node.attributes.get_ints("pads")))


def _numbers(numbers: Sequence[int] | None) -> list[int]:
    return [int(i) for i in numbers] if numbers is not None else []


def _line(lines: Lines, value: ir.Value | None, axis: int) -> Line | None:
    line = None if value is None else lines.get(value)
    return line if line is not None and line.axis == axis else None


def array_of(value: ir.Value | None) -> npt.NDArray[np.generic]:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def vector_of(value: ir.Value | None) -> Numbers | None:
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    array = value.const_value.numpy()
    return array.astype(np.float64) if array.ndim == 1 else None
