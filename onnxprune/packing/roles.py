"""Which tensors may lose precision, and along which axis int8 gets its scales: decided by the operators that read them.

A lossy coding is for the weights of contractions and for embedding tables. Biases, normalisation parameters, anchors,
Resize scales and anything an unknown operator reads keep every bit.
"""

from __future__ import annotations

import onnx_ir as ir

# Operator -> axis of the output channels in its weight (input number 1 unless it is said below).
_CHANNEL_AXIS = {
    "Conv": 0,
    "DeformConv": 0,
    "ConvTranspose": 1,
    "Gather": 0,
    "LSTM": 1,
    "GRU": 1,
    "RNN": 1,
    "Einsum": 0,
}
_MATRIX_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
_PASS_THROUGH = ("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten")
_MAX_DEPTH = 4


def weight_axis(value: ir.Value) -> int | None:
    """The output-channel axis of a weight, or None where the value is no weight of a known operator.

    Every reader must be one that takes weights; the first decides the axis. Behind a Transpose or Reshape the axis is
    taken to be 0, the layout of PyTorch's Linear.
    """
    axes = _axes(value, 0)
    return axes[0] if axes and all(axis is not None for axis in axes) else None


def _axes(value: ir.Value, depth: int) -> list[int | None]:
    axes: list[int | None] = [None] if value.is_graph_output() else []
    for node, position in value.uses():
        if node.op_type in _PASS_THROUGH and position == 0 and depth < _MAX_DEPTH:
            behind = [a for output in node.outputs for a in _axes(output, depth + 1)]
            axes.extend(None if a is None else 0 for a in behind)
        else:
            axes.append(_axis_at(node, position, value))
    return axes


def _axis_at(node: ir.Node, position: int, value: ir.Value) -> int | None:
    shape = value.shape if value.const_value is None else value.const_value.shape
    rank = len(shape) if shape is not None else 0
    if node.op_type in _MATRIX_PRODUCTS and position < 2:
        flag = node.attributes.get(("transA", "transB")[position])
        transposed = flag is not None and bool(flag.as_int())
        keep_last = (position == 1) != transposed
        return max(rank - (1 if keep_last else 2), 0)
    expected = 0 if node.op_type == "Gather" else 1
    is_recurrent_weight = node.op_type in ("LSTM", "GRU", "RNN") and position == 2
    if node.op_type in _CHANNEL_AXIS and (position == expected or is_recurrent_weight or node.op_type == "Einsum"):
        return min(_CHANNEL_AXIS[node.op_type], max(rank - 1, 0))
    return None
