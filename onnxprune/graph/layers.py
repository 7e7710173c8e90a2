"""Which axis of a weight is summed over and which counts outputs, seen through what stands between weight and node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.structure.weights import Weight

_SAME_AXES = {"Identity", "Cast", "DequantizeLinear"}


@dataclass(frozen=True)
class MatrixAxes:
    """The axes of a weight.

    Attributes:
        reduction: The axis that is summed over: input channels of a Conv, K of a MatMul or Gemm.
        output: The axis that counts outputs.
    """

    reduction: int
    output: int


def matrix_axes(weight: Weight) -> MatrixAxes | None:
    """Return the axes of a weight, None where its operator or what lies between gives it none."""
    at_node = _at_node(weight)
    if at_node is None:
        return None
    index, axes = at_node
    rank, node = len(weight.shape), weight.node
    found: tuple[int, int] | None = None
    if node.op_type in ("Conv", "FusedConv", "ConvInteger", "QLinearConv", "DeformConv") and rank > 2:
        found = 1, 0
    elif node.op_type == "ConvTranspose" and rank > 2:
        found = 0, 1
    elif node.op_type in ("LSTM", "GRU", "RNN") and rank == 3:
        found = 2, 1
    elif node.op_type in ("MatMul", "Gemm", "FusedMatMul", "QLinearMatMul", "MatMulInteger") and rank >= 2:
        left = index == 0
        flipped = bool(node.attributes.get_int("transA" if left else "transB", 0))
        found = (rank - 1, rank - 2) if left != flipped else (rank - 2, rank - 1)
    if found is None:
        return None
    return MatrixAxes(axes[found[0]], axes[found[1]])


def _at_node(weight: Weight) -> tuple[int, list[int]] | None:
    """The input of its node that a weight reaches, and the weight's axis for each axis there."""
    value: ir.Value = weight.value
    axes = list(range(len(weight.shape)))
    for _ in range(8):
        uses = list(value.uses())
        direct = [index for node, index in uses if node is weight.node]
        if direct:
            return direct[0], axes
        if len(uses) != 1:
            return None
        node, index = uses[0]
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm")
            axes = [axes[int(i)] for i in order] if order is not None else axes[::-1]
        elif node.op_type not in _SAME_AXES or index != 0:
            return None
        value = node.outputs[0]
    return None


def _output_axis(weight: Weight) -> int:
    """The axis of a weight that counts outputs, by its operator's definition."""
    node = weight.node
    if node.op_type == "MatMul":
        return len(weight.shape) - 1
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1 if node.op_type in ("ConvTranspose", "LSTM", "GRU", "RNN") else 0


def contraction_sites(node: ir.Node, constant: set[ir.Value]) -> list[tuple[int, int, int, int]]:
    """Return (data input, its axis, weight input, its axis) for each summed pair of axes of a contraction."""
    match node.op_type:
        case "Conv":
            return [(0, 1, 1, 1)]
        case "ConvTranspose":
            return [(0, 1, 1, 0)]
        case "Gemm":
            k = (0 if node.attributes.get_int("transA", 0) else 1, 1 if node.attributes.get_int("transB", 0) else 0)
            return [(0, k[0], 1, k[1])] if node.inputs[1] in constant else [(1, k[1], 0, k[0])]
        case "MatMul":
            rank = len(node.inputs[1].shape or (0, 0)) if node.inputs[1] is not None else 2
            k_b = 0 if rank == 1 else -2
            return [(0, -1, 1, k_b)] if node.inputs[1] in constant else [(1, k_b, 0, -1)]
        case _:
            return [(0, 2, 1, 2), (2, 2, 2, 2)]  # recurrent: inputs by W, states by R
