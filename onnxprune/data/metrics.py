"""The registry of metrics, each with its direction: numpy functions that serve ONNX Runtime and PyTorch alike.

A built-in metric returns (sum, number of things summed) of one batch, so that a data set of any size can be measured.
A user's `module:function` gets the outputs and targets of the whole data set at once, since many metrics (AUC, F1) are
no sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxprune.data.average_precision import as_labels, map_at_half, mean_average_precision
from onnxprune.errors import DataError
from onnxprune.plugins import Plugins, Registry, summary

Array = npt.NDArray[Any]
Needs = Literal["labels", "targets", "original", "scores", "boxes"]
Whole = Callable[[tuple[Array, ...], tuple[Array, ...]], float]
Update = Callable[[Array, Array], tuple[float, int]]
_MOST_NATS = 700.0  # exp of more is infinite


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: What ``--metric`` says.
        needs: labels (class numbers), targets (of any type), the original model's outputs, pairs of sentences with
            their scores, or labelled boxes.
        higher_is_better: Whether a larger value is better.
        update: (output, target) -> (sum, count) of one batch; the target is the original model's output where `needs`
            is "original". None for a user's function.
        whole: A function (outputs, targets) -> float, each a tuple of arrays over all samples, such as a user's.
        finish: From the mean over all that was summed to the metric; None where the mean is it.
        pools: Whether it looks at one vector a sample: vectors of tokens are averaged before, where the mask is 1.
        keeps: What is kept of a batch's outputs for `whole`; None for all of them. Detections take the place of all
            boxes of a detector: see `of_detector`.
    """

    name: str
    needs: Needs
    higher_is_better: bool
    update: Update | None = None
    whole: Whole | None = None
    finish: Callable[[float], float] | None = None
    pools: bool = False
    keeps: Callable[[tuple[Array, ...]], tuple[Array, ...]] | None = None

    def of_sum(self, total: float, count: int) -> float:
        """Return the metric from the sums over all batches; NaN where nothing was counted."""
        mean = total / count if count else float("nan")
        return mean if self.finish is None else self.finish(mean)

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


def metric(name: str, *, needs: Needs, higher_is_better: bool, **more: Any) -> Callable[[Update], Update]:
    """Register an (output, target) -> (sum, count) function of one batch; `more` are other attributes of `Metric`."""

    def register(update: Update) -> Update:
        METRICS.add(name, Metric(name, needs, higher_is_better, update, **more), update)
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


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < _MOST_NATS else math.inf


@metric("perplexity", needs="labels", higher_is_better=False, finish=_exp)
def perplexity(output: Array, target: Array) -> tuple[float, int]:
    """exp of the mean of -log p(next token), p being the softmax of the logits at each position."""
    return _sum(negative_log_likelihoods(output, target))


@metric("cosine", needs="original", higher_is_better=True, pools=True)
def cosine(output: Array, original: Array) -> tuple[float, int]:
    """Mean cosine between the embeddings of the model and of the original."""
    return _sum(cosines(output, original))


def spearman(outputs: tuple[Array, ...], scores: tuple[Array, ...]) -> float:
    """Spearman's rank correlation of the cosine of two sentences' embeddings with the score of the pair."""
    embeddings = outputs[0]
    return rank_correlation(cosines(embeddings[::2], embeddings[1::2]), scores[0])


METRICS.add("spearman", Metric("spearman", "scores", True, whole=spearman, pools=True), spearman)

for _name, _precision in (("map", mean_average_precision), ("map50", map_at_half)):
    METRICS.add(_name, Metric(_name, "boxes", True, whole=_precision), _precision)


def beside_original(metric: Metric) -> Metric:
    """Mean average precision where there are no labels: the original's own detections take their place."""
    whole = metric.whole
    assert whole is not None
    return replace(metric, needs="original", whole=lambda outputs, targets: whole(outputs, (as_labels(targets[0]),)))


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
    if metric.needs == "boxes":
        raise DataError(
            f"The metric '{metric.name}' is for detectors, and this model's outputs are not understood as boxes and "
            "scores: docs/howto/yolo.md lists what is. --metric module:function takes any outputs."
        )
    if metric.needs == "scores":
        raise DataError(f"The metric '{metric.name}' is measured on pairs of sentences with scores: .jsonl or .csv "
                        "with sentence1, sentence2 and score.")  # fmt: skip
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


def negative_log_likelihoods(output: Array, target: Array) -> Array:
    """-log softmax(output)[target] at each position, in float64.

    Args:
        output: [rows, positions, classes] or [rows, classes].
        target: [rows, positions] or [rows].

    Raises:
        DataError: The shapes do not fit.
    """
    if output.dtype.kind in "iubOSU" or output.shape[:-1] != target.shape:
        raise DataError(f"The metric 'perplexity' needs scores of every token of the vocabulary; the targets have the "
                        f"shape {in_words(target.shape)} and the output {in_words(output.shape)}.")  # fmt: skip
    losses = np.empty(target.shape, np.float64)
    for row, (scores, wanted) in enumerate(zip(output, target, strict=True)):
        scores = np.asarray(scores, np.float64)
        shifted = scores - scores.max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, np.asarray(wanted)[..., None], -1)[..., 0]
        losses[row] = np.log(np.exp(shifted).sum(-1)) - chosen
    return losses


def cosines(a: Array, b: Array) -> Array:
    """The cosines between vectors along the last axis; 0 beside a vector of zeros."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.where(lengths > 0, lengths, 1))


def pooled(output: Array, mask: Array | None) -> Array:
    """One vector a sample: the mean of [samples, tokens, width] over the tokens whose mask is 1."""
    if output.ndim != 3:
        return output
    if mask is None:
        return np.asarray(output.mean(1))
    weights = (np.asarray(mask)[:, -output.shape[1] :] != 0).astype(np.float64)[..., None]
    return np.asarray((output * weights).sum(1) / np.maximum(weights.sum(1), 1))


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rank correlation; equal numbers share their mean rank, and NaN is that of numbers all alike."""
    a, b = _ranks(a), _ranks(b)
    spread = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean()) / spread if spread else float("nan")


def _ranks(numbers: Array) -> Array:
    _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places.reshape(-1)])
