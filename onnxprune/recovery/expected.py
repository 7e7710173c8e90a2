"""Bias correction without data: what a BatchNormalization says of the mean of its outputs.

Behind it channel c is taken as normal with mean beta_c and deviation |gamma_c|, so that behind an activation E[x_c] is
known. What the weights of a consumer lost on average goes into its bias:

    b += (W_dense - W_pruned) E[x],    E[relu(x)] = beta Phi(beta / gamma) + gamma phi(beta / gamma)

(Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction, section 4.2.1 and appendix
C, with the change of the weights that pruning makes in the place of that of rounding.) Zero padding is left out of it.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxprune.graph.linear import Linear, Matrix
from onnxprune.graph.operators import operator_of
from onnxprune.structure.structure import Structure


def expected_inputs(structure: Structure, layer: Linear) -> Matrix | str:
    """Return E[x] of each input of a layer, shape [inputs of its weight's axis], or why it is not known."""
    value, low, high = layer.data, -np.inf, np.inf
    bounded = False
    while (node := value.producer()) is not None and node.domain == "" and node.inputs[0] is not None:
        if node.op_type == "BatchNormalization":
            return _by_input(structure, layer, node, low, high)
        if operator_of(node).cuts_off and not bounded:
            limits = _limits(node)
            if limits is None:
                break
            (low, high), bounded = limits, True
        elif not operator_of(node).keeps_mean or bounded:
            break
        value = node.inputs[0]
    return "no BatchNormalization tells the means of its inputs"


def clipped_mean(mean: Matrix, deviation: Matrix, low: float, high: float) -> Matrix:
    """E[min(max(x, low), high)] for x normal, elementwise; deviations may be 0, limits infinite."""
    deviation = np.maximum(deviation, 1e-12)
    a, b = (low - mean) / deviation, (high - mean) / deviation
    inside = (_cumulative(b) - _cumulative(a)) * mean + deviation * (_density(a) - _density(b))
    below = low * _cumulative(a) if np.isfinite(low) else 0.0
    above = high * (1 - _cumulative(b)) if np.isfinite(high) else 0.0
    return np.asarray(inside + below + above)


def _limits(node: ir.Node) -> tuple[float, float] | None:
    """What an activation cuts off; None where it is not a constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    limits = [
        float(node.attributes.get_float(name, limit) or 0.0) for name, limit in (("min", -np.inf), ("max", np.inf))
    ]
    for i, value in enumerate(node.inputs[1:3]):
        if value is not None:
            if value.const_value is None:
                return None
            limits[i] = float(value.const_value.numpy())
    return limits[0], limits[1]


def _by_input(structure: Structure, layer: Linear, node: ir.Node, low: float, high: float) -> Matrix | str:
    numbers = [None if v is None or v.const_value is None else v.const_value.numpy() for v in node.inputs[1:3]]
    scale, shift = numbers
    channels, inputs = structure.ids(node.outputs[0], 1), structure.ids(layer.weight, layer.input_axis)
    if scale is None or shift is None or node.attributes.get_int("training_mode", 0) != 0:
        return "its BatchNormalization has no fixed numbers"
    means = clipped_mean(shift.astype(np.float64), np.abs(scale.astype(np.float64)), low, high)
    if channels is None or inputs is None or layer.groups != 1:
        return "its inputs are not the channels of a BatchNormalization"
    if len(inputs) == len(channels):
        same = np.array_equal(structure.terms.find(channels), structure.terms.find(inputs))
        return means if same else "its inputs are not the channels of a BatchNormalization in order"
    flat = layer.data.producer()
    if flat is not None and flat.op_type == "Flatten" and len(inputs) % len(channels) == 0:
        return np.repeat(means, len(inputs) // len(channels))
    return "its inputs are not the channels of a BatchNormalization"


def _density(x: Matrix) -> Matrix:
    return np.asarray(np.exp(-np.minimum(np.square(x), 1e4) / 2) / math.sqrt(2 * math.pi))


def _cumulative(x: Matrix) -> Matrix:
    return np.asarray(0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))))
