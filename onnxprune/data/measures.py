"""How good outputs are: a registry of metrics on numpy arrays, summed batch by batch.

A metric sees the outputs as the ONNX file gives them, and the same function serves PyTorch and ONNX Runtime. Built-in
ones return (sum, number of things summed) of a batch; a user's `module:function` gets the outputs and targets of the
whole data set at once, since many metrics (AUC, F1) are no sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxprune.data.metrics import hits, same_classes, squared_differences
from onnxprune.data.sources import Array
from onnxprune.errors import DataError, RecipeError
from onnxprune.plugins import load_function

Needs = Literal["labels", "targets", "original"]
Update = Callable[[Array, Array], tuple[float, int]]


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        update: (output, target) -> (sum, count) of one batch; the target is the original model's output where `needs`
            is "original". None for a user's function.
        needs: labels (class numbers), targets (of any type), or the original model's outputs.
        higher_is_better: Whether a larger value is better.
        whole: A user's function (outputs, targets) -> float, each a tuple of arrays over all samples.
    """

    name: str
    needs: Needs
    higher_is_better: bool
    update: Update | None = None
    whole: Callable[[tuple[Array, ...], tuple[Array, ...]], float] | None = None

    def better(self, value: float, than: float | None) -> bool:
        """True where `value` is an improvement (NaN never is)."""
        if np.isnan(value):
            return False
        return than is None or (value > than if self.higher_is_better else value < than)


METRICS: dict[str, Metric] = {}


def register(name: str, needs: Needs, higher_is_better: bool) -> Callable[[Update], Update]:
    """Enter the decorated (output, target) -> (sum, count) function into `METRICS`."""

    def enter(update: Update) -> Update:
        METRICS[name] = Metric(name, needs, higher_is_better, update)
        return update

    return enter


@register("accuracy", needs="labels", higher_is_better=True)
def accuracy(output: Array, target: Array) -> tuple[float, int]:
    """Share of samples whose largest class score is the label's."""
    return _sum(hits(output, target))


@register("top5", needs="labels", higher_is_better=True)
def top5(output: Array, target: Array) -> tuple[float, int]:
    """Share of samples whose label is among the five largest class scores."""
    return _sum(hits(output, target, 5))


@register("mse", needs="targets", higher_is_better=False)
def mse(output: Array, target: Array) -> tuple[float, int]:
    """Mean squared difference from the target."""
    return _sum(squared_differences(output, target))


@register("agreement", needs="original", higher_is_better=True)
def agreement(output: Array, original: Array) -> tuple[float, int]:
    """Share of samples for which the model and the original choose the same class (axis 1, or the last of rank 3)."""
    return _sum(same_classes(output, original))


def _sum(counted: Array) -> tuple[float, int]:
    return float(counted.sum()), counted.size


def get_metric(name: str) -> Metric:
    """The metric of that name, or the user's function where `name` is `module:function`.

    The function takes (outputs, targets), tuples of arrays over the whole data set, and returns a number. Larger is
    better, unless the function has an attribute `higher_is_better = False`.

    Raises:
        RecipeError: `name` is neither.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise RecipeError(f"Unknown metric '{name}'; choose one of {', '.join(METRICS)}, or module:function.")
    function = load_function(name, "metric")
    return Metric(name, "targets", bool(getattr(function, "higher_is_better", True)), whole=function)


def default_metric(target: Array | None, classes: bool) -> Metric:
    """What suits the data: accuracy for labels, mse for real targets; agreement or mse with the original without."""
    if target is not None:
        return METRICS["accuracy" if target.dtype.kind in "iub" else "mse"]
    return METRICS["agreement"] if classes else ORIGINAL_MSE


ORIGINAL_MSE = Metric("mse", "original", False, mse)


def check_metric(metric: Metric, target: Array | None) -> None:
    """Raise DataError where the data have not what the metric needs."""
    if metric.needs == "original":
        return
    if target is None:
        raise DataError(f"The metric '{metric.name}' needs targets, and the data have none; 'agreement' needs none.")
    if metric.needs == "labels" and target.dtype.kind not in "iub":
        raise DataError(f"The metric '{metric.name}' needs class numbers, but the targets are of type {target.dtype}.")
