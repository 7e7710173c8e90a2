"""Weights as they act: multiplied by what scales their layer's outputs right behind it.

An exporter that folds BatchNormalization multiplies the weights of each output by gamma / sqrt(variance + epsilon). A
criterion that looked at the weights alone would rank the same network in two ways.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.graph.following import output_scale
from onnxprune.graph.layers import matrix_axes
from onnxprune.structure.weights import Weight

_LAST_AXIS = {"MatMul", "Gemm"}
_CHANNELS = {"Conv", "ConvTranspose"}


def acting_numbers(weight: Weight) -> npt.NDArray[np.float32]:
    """Return the numbers of a weight, times what their outputs are multiplied by behind the layer.

    Example:
        A Conv before a BatchNormalization with scale 2, variance 4 and epsilon 0 acts with its weights times 1.
    """
    numbers, scale = weight.numbers(), _scale(weight)
    return numbers if scale is None else np.asarray(numbers * scale, np.float32)


def _scale(weight: Weight) -> npt.NDArray[np.float64] | None:
    """The factors in a shape that broadcasts over the weight; None where they are all 1."""
    node, axes = weight.node, matrix_axes(weight.value, weight.node)
    if axes is None or node.op_type not in _LAST_AXIS | _CHANNELS or node.inputs[1] is not weight.value:
        return None
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return None
    width = weight.shape[axes.output]
    scale = output_scale(node.outputs[0], width, last_axis=node.op_type in _LAST_AXIS)
    if (scale == 1).all():
        return None
    shape = [1] * len(weight.shape)
    shape[axes.output] = width
    return scale.reshape(shape)
