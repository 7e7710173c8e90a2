"""Convolutions and matrix products seen alike: Z = A W^T + b, with one row of A for each place that the weights see.

A `Linear` is a Conv, Gemm or MatMul whose weight is a constant of its own. Its weight is a matrix [g, O, K]: groups,
outputs of a group, and summed inputs of a group (for a Conv: channels x kernel). Statistics and recovery know no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.tensors import like

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Linear:
    """One contraction with constant weights.

    Attributes:
        node: The Conv, Gemm or MatMul.
        data: What it reads.
        weight: Its weights, an initializer that no other node reads.
        shift: Where a change of the output's mean can be written: (constant of shape [outputs], sign), None if nowhere.
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    shift: tuple[ir.Value, float] | None

    @property
    def name(self) -> str:
        """The weight's name."""
        return str(self.weight.name)

    @property
    def output(self) -> ir.Value:
        """The node's output Z."""
        return self.node.outputs[0]

    @property
    def is_conv(self) -> bool:
        """Whether it is a Conv."""
        return self.node.op_type == "Conv"

    @property
    def groups(self) -> int:
        """The number of groups g."""
        return _int(self.node, "group", 1) if self.is_conv else 1

    @property
    def output_axis(self) -> int:
        """The axis of the weight that counts outputs."""
        return 0 if self.is_conv or self._transposed else 1

    @property
    def input_axis(self) -> int:
        """The axis of the weight that counts inputs (of a group)."""
        return 1 - self.output_axis

    @property
    def _transposed(self) -> bool:
        return bool(_int(self.node, "transB"))

    @property
    def places(self) -> int:
        """How many positions the kernel has: columns of the matrix for each input."""
        return int(np.prod(tensor_of(self.weight).shape.numpy()[2:])) if self.is_conv else 1

    @property
    def scale(self) -> float:
        """Gemm's alpha: Z is the scale times the product."""
        return float(self.node.attributes.get_float("alpha", 1.0)) if self.node.op_type == "Gemm" else 1.0

    def to_matrix(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return an array of the weight's shape as [g, O, K]."""
        if self.is_conv:
            return array.reshape(self.groups, array.shape[0] // self.groups, -1)
        return np.expand_dims(array if self._transposed else array.T, 0)

    def from_matrix(self, matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return a matrix [g, O, K] in the weight's shape."""
        if self.is_conv:
            return matrix.reshape(tensor_of(self.weight).shape.numpy())
        (only,) = matrix
        return np.asarray(only if self._transposed else only.T)

    def matrix(self) -> Matrix:
        """Return the weights as they act, shape [g, O, K]."""
        return self.to_matrix(tensor_of(self.weight).numpy()).astype(np.float64) * self.scale

    def bias(self) -> Matrix:
        """Return the bias that is part of Z, shape [g, O]; zeros where there is none."""
        outputs = self.to_matrix(tensor_of(self.weight).numpy()).shape[:2]
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        if value is None or value.const_value is None:
            return np.zeros(outputs)
        beta = self.node.attributes.get_float("beta", 1.0) if self.node.op_type == "Gemm" else 1.0
        bias = value.const_value.numpy().astype(np.float64) * beta
        return np.broadcast_to(bias.reshape(-1), (outputs[0] * outputs[1],)).reshape(outputs)

    def write(self, matrix: Matrix, change: Matrix | None = None) -> None:
        """Write new weights [g, O, K], and add a change [g, O] to the mean of the output where that can be done."""
        set_numbers(self.weight, self.from_matrix(matrix / self.scale))
        if change is not None and self.shift is not None:
            value, sign = self.shift
            old = tensor_of(value).numpy()
            set_numbers(value, old.astype(np.float64) + sign * change.reshape(old.shape))


def linear_layers(model: ir.Model) -> tuple[list[Linear], dict[str, str]]:
    """Return the contractions of the main graph in topological order, and why others are none, by output name."""
    layers: list[Linear] = []
    refused: dict[str, str] = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.domain == "":
            reason = _refusal(node)
            data, weight = node.inputs[0], node.inputs[1]
            if reason is None and data is not None and weight is not None:
                layers.append(Linear(node, data, weight, _shift_of(node)))
            elif reason:
                refused[str(node.outputs[0].name)] = reason
        elif node.op_type in ("ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "DeformConv"):
            refused[str(node.outputs[0].name)] = f"{node.op_type} is not reconstructed"
    return layers, refused


def tensor_of(value: ir.Value) -> ir.TensorProtocol:
    """Return the content of a constant."""
    assert value.const_value is not None
    return value.const_value


def set_numbers(value: ir.Value, array: npt.NDArray[np.generic]) -> None:
    """Give an initializer other numbers, in its own element type."""
    old = tensor_of(value)
    new = np.ascontiguousarray(array).astype(old.numpy().dtype)
    value.const_value = like(old, new)


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    return int(node.attributes.get_int(name, default) or 0)


def _refusal(node: ir.Node) -> str | None:
    """Why a node is no `Linear`: empty for a product of two activations."""
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None or data.const_value is not None:
        return "its first operand is a constant"
    if weight.const_value is None:
        return "" if weight.producer() is None or node.op_type == "MatMul" else "its weight is computed"
    if not tensor_of(weight).dtype.is_floating_point():
        return "its weight is not floating point"
    if len(list(weight.uses())) > 1 or weight.is_graph_output():
        return "its weight has other uses"
    if node.op_type == "Gemm" and _int(node, "transA"):
        return "its input is transposed"
    if node.op_type != "Conv" and len(tensor_of(weight).shape) != 2:
        return "its weight is no matrix"
    return None


def _shift_of(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Find what moves the mean of a node's output: its bias, that of an Add behind it, or BatchNorm's running mean."""
    weight = node.inputs[1]
    assert weight is not None
    rows_first = node.op_type == "Conv" or bool(_int(node, "transB"))
    width = tensor_of(weight).shape.numpy()[0 if rows_first else 1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
        return (bias, 1 / beta) if beta and _own_vector(bias, width) else None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    after, index = uses[0]
    if after.op_type == "BatchNormalization" and index == 0 and not _int(after, "training_mode"):
        mean = after.inputs[3]
        return (mean, -1.0) if mean is not None and _own_vector(mean, width) else None
    if after.op_type == "Add":
        other = after.inputs[1 - index]
        last = node.op_type != "Conv"
        return (other, 1.0) if other is not None and _own_vector(other, width, last_axis=last) else None
    return None


def _own_vector(value: ir.Value, width: int, *, last_axis: bool = True) -> bool:
    """Whether a constant is a float vector of this width (with axes of extent 1) that only one node reads."""
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or len(list(value.uses())) != 1:
        return False
    if value.is_graph_output():
        return False
    return lies_along_outputs(tensor.shape.numpy(), width, last_axis=last_axis)


def lies_along_outputs(shape: Sequence[int], width: int, *, last_axis: bool) -> bool:
    """Whether a constant of this shape holds one number for each of a layer's outputs, where it meets these.

    Args:
        shape: The constant's shape.
        width: The number of outputs.
        last_axis: Whether the outputs are the last axis of what it meets (MatMul, Gemm), else the channels of a map.
    """
    if math.prod(shape) != width or not shape:
        return False
    if last_axis:
        return shape[-1] == width
    return len(shape) >= 3 and (shape[0] == width if len(shape) == 3 else shape[1] == width)
