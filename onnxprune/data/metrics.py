"""What metrics count, on numpy arrays alone: the same whether outputs come from ONNX Runtime or from PyTorch.

Each gives one number for each thing that is counted; a metric is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array = npt.NDArray[Any]


def in_words(shape: Sequence[int | None]) -> str:
    """A shape in words, its first axis (the samples) free: [N, 3, ?]."""
    return "[" + ", ".join("N" if i == 0 else "?" if d is None else str(d) for i, d in enumerate(shape)) + "]"


def class_axis(output: Sequence[int], target: Sequence[int]) -> int:
    """The axis of an output that runs over the classes, given the shape of its labels.

    That is the axis whose removal leaves the labels' shape: 1 in [N, C] and [N, C, H, W], the last in [N, T, C].

    Raises:
        DataError: No axis does.
    """
    for axis in (1, len(output) - 1):
        if len(output) >= 2 and tuple(output[:axis]) + tuple(output[axis + 1 :]) == tuple(target):
            return axis
    raise DataError(f"Labels of shape {in_words(target)} do not fit the model's output of shape {in_words(output)}.")


def hits(output: Array, label: Array, k: int = 1) -> Array:
    """For each label, whether its class is among the k with the largest scores; the first of equal ones wins."""
    axis = class_axis(output.shape, label.shape)
    if k == 1:
        return np.asarray(output.argmax(axis) == label)
    scores = np.moveaxis(output, axis, -1).astype(np.float32)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    return np.asarray((best == label[..., None]).any(axis=-1))


def squared_differences(output: Array, target: Array) -> Array:
    """(output - target)^2 of each element, in float64."""
    return np.asarray(np.square(output.astype(np.float64) - target))


def same_classes(a: Array, b: Array) -> Array:
    """Whether two outputs choose the same class (on axis 1, or the last of three), for each choice."""
    axis = -1 if a.ndim == 3 else min(1, a.ndim - 1)
    return np.asarray(a.argmax(axis) == b.argmax(axis))


LOWER_IS_BETTER = frozenset({"mse"})
"""Metrics of which less is better: a drop is a rise of them."""


def drop(metric: str, before: float, after: float) -> float:
    """By how much a metric got worse, in its own unit."""
    return after - before if metric in LOWER_IS_BETTER else before - after
