"""The registry of metrics, each with its direction: numpy functions that serve ONNX Runtime and PyTorch alike.

A built-in metric returns (sum, number of things summed) of one batch, so that a data set of any size can be measured.
A user's `module:function` gets the outputs and targets of the whole data set at once, since many metrics (AUC, F1) are
no sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError
from onnxprune.plugins import Plugins, Registry, summary

Array = npt.NDArray[Any]
Needs = Literal["labels", "targets", "original"]
Update = Callable[[Array, Array], tuple[float, int]]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: What ``--metric`` says.
        needs: labels (class numbers), targets (of any type), or the original model's outputs.
        higher_is_better: Whether a larger value is better.
        update: (output, target) -> (sum, count) of one batch; the target is the original model's output where `needs`
            is "original". None for a user's function.
        whole: A user's function (outputs, targets) -> float, each a tuple of arrays over all samples.
    """

    name: str
    needs: Needs
    higher_is_better: bool
    update: Update | None = None
    whole: Callable[[tuple[Array, ...], tuple[Array, ...]], float] | None = None

    @property
    def formula(self) -> str:
        """The first sentence of the docstring."""
        function = self.update or self.whole
        return "" if function is None else summary(function)

    def better(self, value: float, than: float | None) -> bool:
        """True where `value` is an improvement (NaN never is)."""
        if np.isnan(value):
            return False
        return than is None or (value > than if self.higher_is_better else value < than)


def _of_function(name: str, function: Callable[..., float]) -> Metric:
    return Metric(name, "targets", bool(getattr(function, "higher_is_better", True)), whole=function)


METRICS: Registry[Metric] = Registry("metric", Plugins("onnxprune.metrics"), flag="--metric", of_function=_of_function)
"""All metrics. A function that the user names takes (outputs, targets), tuples of arrays over the whole data set, and
returns a number. Larger is better, unless the function has an attribute `higher_is_better = False`."""


def metric(name: str, *, needs: Needs, higher_is_better: bool) -> Callable[[Update], Update]:
    """Register an (output, target) -> (sum, count) function of one batch."""

    def register(update: Update) -> Update:
        METRICS.add(name, Metric(name, needs, higher_is_better, update), update)
        return update

    return register


@metric("accuracy", needs="labels", higher_is_better=True)
def accuracy(output: Array, target: Array) -> tuple[float, int]:
    """Share of samples whose largest class score is the label's."""
    return _sum(hits(output, target))


@metric("top5", needs="labels", higher_is_better=True)
def top5(output: Array, target: Array) -> tuple[float, int]:
    """Share of samples whose label is among the five largest class scores."""
    return _sum(hits(output, target, 5))


@metric("mse", needs="targets", higher_is_better=False)
def mse(output: Array, target: Array) -> tuple[float, int]:
    """Mean squared difference from the target."""
    return _sum(squared_differences(output, target))


@metric("agreement", needs="original", higher_is_better=True)
def agreement(output: Array, original: Array) -> tuple[float, int]:
    """Share of samples for which the model and the original choose the same class (axis 1, or the last of rank 3)."""
    return _sum(same_classes(output, original))


ORIGINAL_MSE = Metric("mse", "original", False, mse)
"""The mean squared difference from the original's outputs, where the data have no targets."""


def _sum(counted: Array) -> tuple[float, int]:
    return float(counted.sum()), counted.size


def drop(before: float, after: float, *, higher_is_better: bool) -> float:
    """By how much a metric got worse, in its own unit: 0.01 is one point of accuracy, or of an error that grew."""
    return before - after if higher_is_better else after - before


def default_metric(target: Array | None, classes: bool) -> Metric:
    """What suits the data: accuracy for labels, mse for real targets; agreement or mse with the original without.

    Args:
        target: The first target of the data, if there is one.
        classes: Whether the output holds scores of classes; asked only where there is no target.
    """
    if target is not None:
        return METRICS["accuracy" if target.dtype.kind in "iubOSU" else "mse"]
    return METRICS["agreement"] if classes else ORIGINAL_MSE


def check_metric(metric: Metric, target: Array | None) -> None:
    """Raise DataError where the data have not what the metric needs."""
    if metric.needs == "original":
        return
    if target is None:
        raise DataError(f"The metric '{metric.name}' needs targets, and the data have none; 'agreement' needs none.")
    if metric.needs == "labels" and target.dtype.kind not in "iubOSU":
        raise DataError(f"The metric '{metric.name}' needs class numbers, but the targets are of type {target.dtype}.")


# --- what metrics count


def in_words(shape: Sequence[int | None], sample_axis: int | None = 0) -> str:
    """A shape in words, the axis of the samples free: [N, 3, ?]."""
    words = ("N" if i == sample_axis else "?" if d is None else str(d) for i, d in enumerate(shape))
    return "[" + ", ".join(words) + "]"


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


def chooses_classes(output: Array) -> bool:
    """Whether an output names classes itself (numbers or texts), as scikit-learn's classifiers do, without scores."""
    return output.dtype.kind in "iubOSU"


def hits(output: Array, label: Array, k: int = 1) -> Array:
    """For each label, whether its class is among the k with the largest scores; the first of equal ones wins.

    An output that names the classes itself has to name the label's.

    Raises:
        DataError: There are no scores to take the k largest of, or shapes do not fit.
    """
    if chooses_classes(output) and output.shape == label.shape:
        if k > 1:
            raise DataError(f"The metric 'top{k}' needs scores, but the model's output names classes.")
        return np.asarray(output == label)
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
    if chooses_classes(a):
        return np.asarray(a == b)
    axis = -1 if a.ndim == 3 else min(1, a.ndim - 1)
    return np.asarray(a.argmax(axis) == b.argmax(axis))
