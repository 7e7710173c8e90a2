"""Constant units leave: what they contribute goes into the bias of the nodes that read them.

The weights that a constant came through are zeroed, so that nobody reads the unit any more. A padded convolution sees
zeros beside a constant that is not zero, so nothing is folded there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import data_axis, matrix_axes
from onnxprune.graph.linear import read_once, tensor_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot
from onnxprune.graph.tensors import like
from onnxprune.structure.constants import (
    Line,
    Lines,
    Numbers,
    array_of,
    constant_weight,
    is_padded,
    is_product,
    vector_of,
)
from onnxprune.structure.structure import Structure


def fold_constants(structure: Structure, lines: Lines) -> tuple[int, list[str]]:
    """Fold constant units that could go into the biases of all that consume them, in place.

    Returns:
        How many columns were folded, and a sentence for each node where a fold would not be exact.
    """
    folded, left = 0, []
    edit = Editor(structure.model)
    for node in list(structure.model.graph):
        weight = constant_weight(node) if is_product(node) else None
        if weight is None or node.attributes.get_int("group", 1) != 1:
            continue
        slot, w = weight
        x, place = node.inputs[slot.data], _summed_axis(w, node)
        if x is None or place is None or x not in lines or not read_once(w, node):
            continue
        line = lines[x]
        if line.axis != data_axis(slot, node, len(structure.axes[x])) % len(structure.axes[x]):
            continue
        array = array_of(w)
        columns = np.flatnonzero(np.isfinite(line.numbers) & structure.removable(x, line.axis) & _nonzero(array, place))
        shifts = columns[line.numbers[columns] != 0]
        if len(shifts) and is_padded(node):
            left.append(
                f"{node.op_type} {node.name}: {len(shifts)} constant channels stay, its padding is not constant"
            )
            columns = np.setdiff1d(columns, shifts)
            shifts = shifts[:0]
        if len(columns) and (
            not len(shifts) or _add_to_bias(edit, node, _shift(slot, array, place, line, shifts), array.dtype)
        ):
            _zero_columns(w, array, place, columns)
            folded += len(columns)
    return folded, left


def _summed_axis(w: ir.Value, node: ir.Node) -> int | None:
    """The axis of a stored weight that its product sums over, None where it is not known."""
    axes = matrix_axes(w, node)
    if axes is None:
        return 0 if len(tensor_of(w).shape) == 1 else None
    return axes.reduction


def _shift(
    slot: Slot, array: npt.NDArray[np.generic], place: int, line: Line, columns: npt.NDArray[np.int64]
) -> Numbers:
    """Return what the constant columns add to the node's output, in a shape that is added to it.

    That is one number each output; [batch..., 1, outputs] of a batched MatMul; [..., outputs, 1] where the weight is
    the left operand.
    """
    moved = np.moveaxis(array.astype(np.float64), place, 0)[columns]
    if slot.data_axis == 1:  # a kernel: [columns, outputs, places...]
        moved = moved.reshape(*moved.shape[:2], -1).sum(axis=2)
    shift: Numbers = np.tensordot(line.numbers[columns], moved, axes=1)
    if slot.data > slot.input:
        return np.expand_dims(shift, -1)
    return shift if shift.ndim == 1 else np.expand_dims(shift, -2)


def _add_to_bias(edit: Editor, node: ir.Node, shift: Numbers, dtype: np.dtype[np.generic]) -> bool:
    """Add to a node's bias, making one where it has none; say whether that could be done."""
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
    old = vector_of(bias)
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
