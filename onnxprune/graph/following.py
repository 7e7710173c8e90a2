"""What scales and shifts a layer's outputs right behind it: a BatchNormalization, an Add or Mul of constants.

A change of a layer's bias may be written there (`Linear.shift`), BatchNormalizations are re-estimated, and training
changes both. So Z of the pruned and of the dense network are comparable only through what follows them:

    scale_p Z_p + shift_p = scale_d Z_d + shift_d
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import activation_of
from onnxprune.graph.linear import Linear, Matrix, lies_along_outputs


@dataclass(frozen=True, eq=False)
class Follow:
    """One value behind a layer, as a function of the layer's output: value = scale * Z + shift, each [outputs]."""

    name: str
    scale: Matrix
    shift: Matrix


def dense_to_pruned(dense: Linear, pruned: Linear, rows: npt.NDArray[np.int64] | None) -> tuple[Matrix, Matrix]:
    """Return factor and offset, each [g, O]: the pruned layer should give factor * Z_dense + offset.

    The layers are compared at the last value that both networks have before the first node that is not affine. An
    output that the pruned network multiplies by 0 gets the factor 1 and the offset 0.

    Args:
        dense: The layer of the dense network.
        pruned: The same layer of the pruned one.
        rows: The outputs of the dense layer that the pruned one still has; None for all.

    Example:
        A bias of 0.5 that was written into the constant of a following Add gives the offset -0.5.
    """
    shape = pruned.matrix().shape[:2]
    if pruned.stack is not None:  # what follows it is another number for each expert, and stays as it was
        return np.ones(shape), np.zeros(shape)
    before, after = list(follow(dense)), list(follow(pruned))
    theirs = {f.name: f for f in before}
    last = max(i for i, f in enumerate(after) if f.name in theirs)
    target, ours = theirs[after[last].name], _with_new_nodes(after, last, dense)
    kept = slice(None) if rows is None else rows
    scale, shift = target.scale[kept], target.shift[kept]
    alive = ours.scale != 0
    divisor = np.where(alive, ours.scale, 1.0)
    factor = np.where(alive, scale / divisor, 1.0)
    offset = np.where(alive, (shift - ours.shift) / divisor, 0.0)
    return factor.reshape(shape), offset.reshape(shape)


def scale_behind(layer: Linear) -> Matrix:
    """Return what a layer's outputs are multiplied by before the first node that is not affine, shape [g, O].

    It is what an exporter that folds BatchNormalization multiplies the weights by.
    """
    shape = layer.matrix().shape[:2]
    if layer.stack is not None:
        return np.ones(shape)
    *_, last = follow(layer)
    return last.scale.reshape(shape)


def _with_new_nodes(chain: list[Follow], last: int, dense: Linear) -> Follow:
    """The end of the nodes behind a place that the dense network does not have: an Add of constants that went."""
    graph = dense.node.graph
    names = {str(out.name) for node in graph or () for out in node.outputs}
    while last + 1 < len(chain) and chain[last + 1].name not in names:
        last += 1
    return chain[last]


def output_scale(output: ir.Value, width: int, *, axis: int) -> Matrix:
    """Return what the outputs of any layer are multiplied by before the first node that is not affine.

    Args:
        output: The layer's output.
        width: How many outputs it has.
        axis: The axis of the output that counts them: 1 for channels of a map, -1 or -2.
    """
    *_, last = _follow_value(output, width, axis=axis)
    return last.scale


def affine_behind(value: ir.Value, width: int, *, axis: int) -> tuple[Matrix, Matrix]:
    """Return scale and shift, each [width], of a value before the first node that is not affine.

    Args:
        value: Any value, such as a graph input that is normalised inside the graph.
        width: The extent of the axis.
        axis: The axis that each scale belongs to an index of.

    Example:
        (x - 127) / 128 has the scale 1 / 128 and the shift -127 / 128.
    """
    *_, last = _follow_value(value, width, axis=axis)
    return last.scale, last.shift


def follow(layer: Linear) -> Iterator[Follow]:
    """The layer's output, and each value that only scales and shifts it, in order."""
    return _follow_value(layer.output, int(np.prod(layer.matrix().shape[:2])), axis=layer.result_axis)


def _follow_value(value: ir.Value, width: int, *, axis: int) -> Iterator[Follow]:
    scale, shift = np.ones(width), np.zeros(width)
    yield Follow(str(value.name), scale, shift)
    maker = value.producer()
    fused = maker is not None and activation_of(maker) != ""
    while not fused and len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        node, index = uses[0]
        step = _step(node, index, width, axis=axis)
        if step is None:
            return
        scale, shift = step[0] * scale, step[0] * shift + step[1]
        value = node.outputs[0]
        yield Follow(str(value.name), scale, shift)


def _step(node: ir.Node, index: int, width: int, *, axis: int) -> tuple[Matrix, Matrix] | None:
    """Scale and shift of one node; None where it is not affine by output."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        return _batchnorm(node, width) if index == 0 else None
    if len(node.inputs) != 2:
        return None
    other = _vector(node.inputs[1 - index], width, axis=axis)
    if other is None:
        return None
    ones, zeros = np.ones(width), np.zeros(width)
    match node.op_type:
        case "Add":
            return ones, other
        case "Sub" if index == 0:
            return ones, -other
        case "Mul":
            return other, zeros
        case "Div" if index == 0 and (other != 0).all():
            return 1 / other, zeros
        case _:
            return None


def _batchnorm(node: ir.Node, width: int) -> tuple[Matrix, Matrix] | None:
    if node.attributes.get_int("training_mode", 0) or any(v is None or v.const_value is None for v in node.inputs[1:5]):
        return None
    numbers = [v.const_value.numpy().astype(np.float64) for v in node.inputs[1:5] if v is not None and v.const_value]
    if any(n.shape != (width,) for n in numbers):
        return None
    gamma, beta, mean, variance = numbers
    scale = gamma / np.sqrt(variance + (node.attributes.get_float("epsilon", 1e-5) or 0.0))
    return scale, beta - scale * mean


def _vector(value: ir.Value | None, width: int, *, axis: int) -> Matrix | None:
    """A constant that holds one number for each output, or one for all; None for anything else."""
    tensor = None if value is None else value.const_value
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    array = tensor.numpy().astype(np.float64)
    if array.size == 1:
        return np.full(width, float(array.reshape(())))
    return array.reshape(-1) if lies_along_outputs(array.shape, width, axis=axis) else None
