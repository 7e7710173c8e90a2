"""Convolutions and matrix products seen alike: Z = A W^T + b, with one row of A for each place that the weights see.

A `Linear` is a convolution or a matrix product whose weight is a constant of its own, on either side, perhaps behind
a Transpose or another view. Its weight is a matrix [g, O, K]: groups, outputs of a group, and summed inputs of a group
(for a Conv: channels x kernel). Statistics and recovery know no more, so that every spelling of a layer is one to them.
A stack of matrices, one for each expert of a mixture, has its experts for groups: see `stacks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.caches import is_link
from onnxprune.graph.layers import MatrixAxes, activation_of, data_axis, matrix_axes, result_axis, slots_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot
from onnxprune.graph.stacks import Stack, stack_of
from onnxprune.graph.tensors import like

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linear:
    """One contraction with constant weights.

    Attributes:
        node: The convolution or matrix product.
        data: What it reads.
        weight: Its weights, an initializer that no other node reads.
        axes: The axes of the weight.
        slot: The inputs of the node that hold the weights and the data.
        shift: Where a change of the output's mean can be written: (constant of shape [outputs], sign), None if nowhere.
        stack: How it reads a stack of matrices; None where its weight is one matrix or a kernel.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    axes: MatrixAxes
    slot: Slot
    shift: tuple[ir.Value, float] | None
    stack: Stack | None = None

    @property
    def name(self) -> str:
        """The weight's name."""
        return str(self.weight.name)

    @property
    def output(self) -> ir.Value:
        """The node's output: Z, or its activation of Z."""
        return self.node.outputs[0]

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return operator_of(self.node).kind == "conv"

    @property
    def groups(self) -> int:
        """The number of groups g."""
        return self.axes.groups if self.stack is None else self.stack.experts

    @property
    def output_axis(self) -> int:
        """The axis of the weight that counts outputs."""
        return self.axes.output

    @property
    def input_axis(self) -> int:
        """The axis of the weight that counts inputs (of a group)."""
        return self.axes.reduction

    @property
    def data_axis(self) -> int:
        """The axis of the data that is summed over: 1 of a feature map, -1 of rows, -2 of columns."""
        return data_axis(self.slot, self.node, None)

    @property
    def result_axis(self) -> int:
        """The axis of Z that counts outputs: 1 of a feature map, -1 of rows, -2 of columns (the weight on the left)."""
        return result_axis(self.slot, self.node)

    @property
    def activation(self) -> str:
        """The activation that the node itself applies to Z, so that its output is not Z; empty for none."""
        return activation_of(self.node)

    @property
    def places(self) -> int:
        """How many positions the kernel has: columns of the matrix for each input."""
        return int(np.prod(tensor_of(self.weight).shape.numpy()[2:])) if self.is_conv else 1

    @property
    def scale(self) -> float:
        """The alpha of a Gemm: Z is the scale times the product."""
        return 1.0 if self.is_conv else float(self.node.attributes.get_float("alpha", 1.0))

    def to_matrix(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return an array of the weight's shape as [g, O, K]."""
        if self.is_conv:
            return array.reshape(self.groups, array.shape[0] // self.groups, -1)
        if self.stack is not None:
            return array.transpose(self._order(self.stack))
        return np.expand_dims(array if self.output_axis == 0 else array.T, 0)

    def from_matrix(self, matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return a matrix [g, O, K] in the weight's shape."""
        if self.is_conv:
            return matrix.reshape(tensor_of(self.weight).shape.numpy())
        if self.stack is not None:
            return np.asarray(matrix.transpose(np.argsort(self._order(self.stack))))
        (only,) = matrix
        return np.asarray(only if self.output_axis == 0 else only.T)

    def per_input(self, numbers: Matrix, rank: int) -> Matrix:
        """Return one number for each channel of the data in a shape that a weight of some rank is multiplied with.

        Those of a stack are one for each expert and channel, shape [experts, K].
        """
        if self.is_conv and self.groups > 1:
            by_output = np.repeat(numbers.reshape(self.groups, -1), self._outputs // self.groups, axis=0)
            return by_output.reshape(*by_output.shape, *[1] * (rank - 2))  # [O, C / g, 1...]
        if self.stack is not None:
            return np.asarray(self.from_matrix(numbers[:, None, :]), np.float64)
        shape = [1] * rank
        shape[self.input_axis] = -1
        return numbers.reshape(shape)

    def _order(self, stack: Stack) -> tuple[int, int, int]:
        return stack.axis, self.output_axis, self.input_axis

    @property
    def _outputs(self) -> int:
        return int(tensor_of(self.weight).shape.numpy()[self.output_axis])

    def matrix(self) -> Matrix:
        """Return the weights as they act, shape [g, O, K]."""
        return self.to_matrix(tensor_of(self.weight).numpy()).astype(np.float64) * self.scale

    def bias(self) -> Matrix:
        """Return the bias that is part of Z, shape [g, O]; zeros where there is none."""
        outputs = self.to_matrix(tensor_of(self.weight).numpy()).shape[:2]
        value = _bias_of(self.node)
        if value is None or value.const_value is None:
            return np.zeros(outputs)
        bias = value.const_value.numpy().astype(np.float64) * self.node.attributes.get_float("beta", 1.0)
        return np.broadcast_to(bias.reshape(-1), (outputs[0] * outputs[1],)).reshape(outputs)

    def write(self, matrix: Matrix, change: Matrix | None = None) -> None:
        """Write new weights [g, O, K], and add a change [g, O] to the mean of the output where that can be done."""
        set_numbers(self.weight, self.from_matrix(matrix if self.scale == 1 else matrix / self.scale))
        if change is not None and self.shift is not None:
            value, sign = self.shift
            old = tensor_of(value).numpy()
            set_numbers(value, old.astype(np.float64) + sign * change.reshape(old.shape))


def linear_layers(model: ir.Model, *, stacks: bool = False) -> tuple[list[Linear], dict[str, str]]:
    """Return the contractions of the main graph in topological order, and why others are none, by output name.

    Args:
        model: The model.
        stacks: Whether products with stacks of matrices are among them: not every reader of a layer knows these.
    """
    layers: list[Linear] = []
    refused: dict[str, str] = {}
    for node in model.graph:
        operator = operator_of(node)
        if operator.knows_zero_points or not operator.contracts or is_link(node):
            continue
        layer = _linear(node) if operator.weights and operator.kind in ("conv", "fc") else _not_followed(node)
        if isinstance(layer, Linear) and (stacks or layer.stack is None):
            layers.append(layer)
        elif isinstance(layer, Linear):
            refused[str(node.outputs[0].name)] = "it reads a stack of matrices"
        elif layer:
            refused[str(node.outputs[0].name)] = layer
    return layers, refused


def _not_followed(node: ir.Node) -> str:
    """Why an operator that has weights of another form is no `Linear`; empty where it has none."""
    operator = operator_of(node)
    return f"{node.op_type} is not reconstructed" if operator.weights or operator.equation else ""


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the content of a constant."""
    assert value.const_value is not None
    return value.const_value


def set_numbers(value: ir.Value, array: npt.NDArray[np.generic]) -> None:
    """Give an initializer other numbers, in its own element type."""
    old = tensor_of(value)
    new = np.ascontiguousarray(array).astype(old.numpy().dtype)
    value.const_value = like(old, new)


def _linear(node: ir.Node) -> Linear | str:
    """Return a node as a `Linear`, or why it is none: empty for a product of two activations."""
    operator = operator_of(node)
    if operator.kind == "conv" and not operator.sees_windows:
        return f"{node.op_type} is not reconstructed"
    if node.op_type == "FusedConv" and len(node.inputs) > 3 and node.inputs[3] is not None:
        return "another value is added in it"
    stacked = [x for slot in slots_of(node) if operator_of(node).kind == "fc" for x in _stacked(node, slot)]
    if len(stacked) == 1:
        return stacked[0]
    slots = [slot for slot in slots_of(node) if source_of(node.inputs[slot.input]) is not None]
    if not slots:
        weight = node.inputs[1]
        return (
            ""
            if weight is None or weight.producer() is None or not operator_of(node).biases
            else "its weight is computed"
        )
    slot = slots[0]
    data, operand = node.inputs[slot.data], node.inputs[slot.input]
    weight = source_of(operand)
    if data is None or weight is None or data.const_value is not None or len(slots) > 1:
        return "both of its operands are constants"
    axes = matrix_axes(weight, node)
    reason = _refusal(node, slot, weight, axes)
    if reason or axes is None:
        return reason
    return Linear(node, data, weight, axes, slot, _shift_of(node, slot, weight, axes))


def _stacked(node: ir.Node, slot: Slot) -> list[Linear]:
    """The layer of a stack of matrices that an operand is made of; empty where it is made of none."""
    found, data = stack_of(node, slot), node.inputs[slot.data]
    if isinstance(found, str) or data is None or data.const_value is not None:
        return []
    weight, stack = found
    axes = matrix_axes(weight, node)
    return [] if axes is None else [Linear(node, data, weight, axes, slot, None, stack)]


def _refusal(node: ir.Node, slot: Slot, weight: ir.Value, axes: MatrixAxes | None) -> str:
    """Why a constant is no weight that statistics and recovery can work on; empty where it is one."""
    if not tensor_of(weight).dtype.is_floating_point():
        return "its weight is not floating point"
    if not read_once(weight, node):
        return "its weight has other uses"
    is_conv = operator_of(node).kind == "conv"
    if not is_conv and (len(tensor_of(weight).shape) != 2 or axes is None):
        return "its weight is no matrix"
    if axes is None or (is_conv and (axes.output, axes.reduction) != (0, 1)):
        return "its weight is laid out in another way"
    if result_axis(slot, node) == -2 and _bias_of(node) is not None:
        return "its bias does not lie along its outputs"
    return ""


def source_of(operand: ir.Value | None) -> ir.Value | None:
    """Return the constant that an operand is, perhaps behind views of it."""
    while operand is not None and operand.const_value is None:
        node = operand.producer()
        operand = node.inputs[0] if node is not None and operator_of(node).view else None
    return operand


def read_once(weight: ir.Value, node: ir.Node) -> bool:
    """Say whether nothing but a node reads a constant, through views that nothing else reads."""
    value = weight
    while len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        reader = uses[0][0]
        if reader is node:
            return True
        value = reader.outputs[0]
    return False


def _bias_of(node: ir.Node) -> ir.Value | None:
    biases = operator_of(node).biases
    return node.inputs[biases[0]] if biases and biases[0] < len(node.inputs) else None


def _shift_of(node: ir.Node, slot: Slot, weight: ir.Value, axes: MatrixAxes) -> tuple[ir.Value, float] | None:
    """Find what moves the mean of a node's output: its bias, that of an Add behind it, or BatchNorm's running mean."""
    width = int(tensor_of(weight).shape.numpy()[axes.output])
    bias, axis = _bias_of(node), result_axis(slot, node)
    if bias is not None:
        beta = node.attributes.get_float("beta", 1.0)
        return (bias, 1 / beta) if beta and _own_vector(bias, width) else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output() or activation_of(node):
        return None
    after, index = uses[0]
    if after.op_type == "BatchNormalization" and index == 0 and not after.attributes.get_int("training_mode", 0):
        mean = after.inputs[3]
        return (mean, -1.0) if axis != -2 and mean is not None and _own_vector(mean, width) else None
    if after.op_type == "Add":
        other = after.inputs[1 - index]
        return (other, 1.0) if other is not None and _own_vector(other, width, axis=axis) else None
    return None


def _own_vector(value: ir.Value, width: int, *, axis: int = -1) -> bool:
    """Whether a constant is a float vector of this width (with axes of extent 1) that only one node reads."""
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or len(list(value.uses())) != 1:
        return False
    if value.is_graph_output():
        return False
    return lies_along_outputs(tensor.shape.numpy(), width, axis=axis)


def lies_along_outputs(shape: Sequence[int], width: int, *, axis: int) -> bool:
    """Whether a constant of this shape holds one number for each of a layer's outputs, where it meets these.

    Args:
        shape: The constant's shape.
        width: The number of outputs.
        axis: The axis of what it meets that counts outputs: `Linear.result_axis`.
    """
    if math.prod(shape) != width or not shape:
        return False
    if axis == -1:
        return shape[-1] == width
    if axis == -2:
        return len(shape) >= 2 and shape[-2] == width
    return len(shape) >= 3 and (shape[0] == width if len(shape) == 3 else shape[1] == width)
