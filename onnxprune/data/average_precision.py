"""Mean average precision as COCO defines it, over intersections over union of .5 to .95.

Source: Lin et al. 2014, and the evaluation of pycocotools, whose numbers these are: boxes of any size, 101 levels of
recall, at most 100 detections of a class in a picture. A crowd may be found any number of times, or not at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data.boxes import areas, overlaps, shared_areas

Array = npt.NDArray[Any]

LEVELS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MOST = 100
_SURE = 0.25  # the score from which a detection of the original counts as an object: what YOLOs show by default


def mean_average_precision(outputs: tuple[Array, ...], targets: tuple[Array, ...]) -> float:
    """COCO's mean average precision of boxes: the mean over classes and over overlaps of .5 to .95."""
    return _mean(outputs[0], targets[0], LEVELS)


def map_at_half(outputs: tuple[Array, ...], targets: tuple[Array, ...]) -> float:
    """Mean average precision of boxes that overlap their labels by at least a half."""
    return _mean(outputs[0], targets[0], LEVELS[:1])


def as_labels(detections: Array) -> Array:
    """Detections [N, D, 6] as labels [N, D, 6]: what a model is sure of counts as an object."""
    labels = np.concatenate([detections[..., 5:6], detections[..., :4], np.zeros_like(detections[..., :1])], -1)
    labels[detections[..., 4] < _SURE] = -1
    return labels


def _mean(detections: Array, labels: Array, levels: Array) -> float:
    """The mean average precision.

    Args:
        detections: [N, D, 6]: left, top, right, bottom, score, class; the score is 0 where there is none.
        labels: [N, M, 6]: class, left, top, right, bottom, and 1 for a crowd; the class is -1 where there is none.
        levels: The intersections over union from which a detection counts.

    Returns:
        NaN where there are no labels.
    """
    classes = np.unique(labels[..., 0])
    means = [_average_precision(detections, labels, number, levels) for number in classes[classes >= 0]]
    counted = [mean for mean in means if mean is not None]
    return float(np.mean(counted)) if counted else float("nan")


def _average_precision(detections: Array, labels: Array, number: float, levels: Array) -> float | None:
    """The average precision of a class; None where it has no labels but crowds."""
    scores, hits, counted, wanted = [], [], [], 0
    for found, label in zip(detections, labels, strict=True):
        mine = found[(found[:, 5] == number) & (found[:, 4] > 0)]
        mine = mine[np.argsort(-mine[:, 4], kind="stable")][:_MOST]
        theirs = label[label[:, 0] == number]
        theirs = theirs[np.argsort(theirs[:, 5], kind="stable")]  # crowds last
        wanted += int((theirs[:, 5] == 0).sum())
        if len(mine):
            hit, ignored = _matches(mine[:, :4], theirs, levels)
            scores.append(mine[:, 4])
            hits.append(hit & ~ignored)
            counted.append(~ignored)
    if not wanted:
        return None
    if not scores:
        return 0.0
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right, looked = (np.concatenate(parts, 1)[:, order].cumsum(1) for parts in (hits, counted))
    return float(np.mean([_area(r, c, wanted) for r, c in zip(right, looked, strict=True)]))


def _matches(boxes: Array, labels: Array, levels: Array) -> tuple[Array, Array]:
    """For each level and detection, the best first: whether it finds a label, and whether it counts for nothing."""
    count = (len(levels), len(boxes))
    hit, ignored = np.zeros(count, bool), np.zeros(count, bool)
    if not len(labels):
        return hit, ignored
    crowd = labels[:, 5] == 1
    nearness = np.where(crowd, _within(boxes, labels[:, 1:5]), overlaps(boxes, labels[:, 1:5]))
    taken = np.zeros((len(levels), len(labels)), bool)
    rows, enough = np.arange(len(levels)), np.minimum(levels, 1 - 1e-10)[:, None]
    for i, near in enumerate(nearness):
        free = (near[None] >= enough) & ~(taken & ~crowd)
        free &= ~(crowd[None] & (free & ~crowd).any(1, keepdims=True))  # a label goes before a crowd
        value = np.where(free, near[None], -1.0)
        chosen = value.shape[1] - 1 - value[:, ::-1].argmax(1)  # the last of equal ones
        hit[:, i] = free.any(1)
        ignored[:, i] = hit[:, i] & crowd[chosen]
        taken[rows[hit[:, i]], chosen[hit[:, i]]] = True
    return hit, ignored


def _within(boxes: Array, crowds: Array) -> Array:
    """The share of each box that lies in each crowd."""
    area = areas(boxes)[:, None]
    return np.asarray(shared_areas(boxes, crowds) / np.where(area > 0, area, 1))


def _area(right: Array, looked: Array, wanted: int) -> float:
    """The mean over 101 levels of recall of the largest precision at that recall or above."""
    recall = right / wanted
    precision = right / np.maximum(looked, np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())
