"""Weights as they act: multiplied by what scales their layer's outputs right behind it.

An exporter that folds BatchNormalization multiplies the weights of each output by gamma / sqrt(variance + epsilon). A
criterion that looked at the weights alone would rank the same network in two ways.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.graph.following import output_scale
from onnxprune.graph.layers import activation_of, matrix_axes, result_axis, slot_of
from onnxprune.graph.operators import operator_of
from onnxprune.structure.weights import Weight


def acting_numbers(weight: Weight) -> npt.NDArray[np.float32]:
    """Return the numbers of a weight, times what their outputs are multiplied by behind the layer.

    Example:
        A Conv before a BatchNormalization with scale 2, variance 4 and epsilon 0 acts with its weights times 1.
    """
    numbers, scale = weight.numbers(), _scale(weight)
    return numbers if scale is None else np.asarray(numbers * scale, np.float32)


def _scale(weight: Weight) -> npt.NDArray[np.float64] | None:
    """The factors in a shape that broadcasts over the weight; None where they are all 1."""
    node = weight.node
    axes, slot = matrix_axes(weight.value, node, weight.shape), slot_of(weight.value, node, weight.shape)
    if axes is None or slot is None or operator_of(node).kind not in ("conv", "fc") or activation_of(node):
        return None
    if axes.groups > 1 and axes.grouped == axes.reduction:
        return None
    width = weight.shape[axes.output]
    scale = output_scale(node.outputs[0], width, axis=result_axis(slot, node))
    if (scale == 1).all():
        return None
    shape = [1] * len(weight.shape)
    shape[axes.output] = width
    return scale.reshape(shape)
