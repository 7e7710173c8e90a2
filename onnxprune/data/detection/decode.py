"""From a detector's outputs to its detections, and which reading of the outputs is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.data.average_precision import map_at_half
from onnxprune.data.boxes import best_of_overlapping, from_centres
from onnxprune.data.detection.heads import Head, cells, find_heads

Array = npt.NDArray[Any]

DETECTIONS = 300
"""Kept of each picture."""

_LEAST_SCORE = 1e-3
_MOST_OVERLAP = 0.65
_COMPARED = 1_000  # boxes of a picture that are compared with each other


def detections(head: Head, outputs: Sequence[Array]) -> Array:
    """Return the detections of a batch, the best first.

    A box counts for each class whose score is at least .001. Of boxes of a class that overlap by more than .65, the
    best stays: the limits of YOLOX's evaluation.

    Args:
        head: How the outputs are read.
        outputs: All outputs of the model.

    Returns:
        [N, 300, 6]: left, top, right, bottom in pixels, score, class. Where there are fewer, the score is 0 and the
        class -1.
    """
    arrays = head.with_samples(outputs)
    boxes, scores, classes = corners(head, arrays), *_scores(head, arrays)
    found = np.zeros((len(boxes), DETECTIONS, 6), np.float32)
    found[..., 5] = -1
    for i in range(len(boxes)):
        kept = _best(head, boxes[i], scores[i], None if classes is None else classes[i])
        found[i, : len(kept)] = kept
    return found


def corners(head: Head, arrays: Sequence[Array]) -> Array:
    """Return all boxes as corners in pixels, [N, places, 4]."""
    boxes = np.asarray(head.boxes.of(arrays), np.float64)
    if head.form == "grid":
        cell, strides = cells(head)
        boxes = np.concatenate([boxes[..., :2] + cell, np.exp(np.minimum(boxes[..., 2:], 30.0))], -1) * strides
    if head.form == "corners, top first":
        boxes = boxes[..., [1, 0, 3, 2]]
    if head.shares:
        boxes = boxes * np.array([head.size[1], head.size[0]] * 2)
    return boxes if head.form.startswith("corners") else from_centres(boxes)


def _scores(head: Head, arrays: Sequence[Array]) -> tuple[Array, Array | None]:
    """Scores [N, places, classes of the labels], or [N, places, 1] with the class of each."""
    scores = np.array(head.scores.of(arrays), np.float64)
    if head.classes is not None:
        classes = np.round(np.asarray(head.classes.of(arrays)[..., 0])).astype(np.int64)
        return scores, classes if head.numbers is None else _renamed(classes, head.numbers)
    if head.background:
        scores[..., 0] = 0
    if head.objectness is not None:
        scores = scores * head.objectness.of(arrays)
    return (scores if head.numbers is None else scores[..., list(head.numbers)]), None


def _renamed(classes: Array, numbers: tuple[int, ...]) -> Array:
    """The label's number of each class; -1 where the labels do not know it."""
    places = np.full(max(int(classes.max(initial=0)), *numbers) + 2, -1)  # the last place serves -1
    places[list(numbers)] = np.arange(len(numbers))
    return np.asarray(places[classes])


def _best(head: Head, boxes: Array, scores: Array, classes: Array | None) -> Array:
    """The detections of one picture, [found, 6], the best first."""
    places, columns = np.nonzero(scores > _LEAST_SCORE)
    values = scores[places, columns]
    kinds = columns if classes is None else classes[places]
    known = kinds >= 0
    places, values, kinds = places[known], values[known], kinds[known]
    order = np.argsort(-values, kind="stable")[:_COMPARED]
    places, values, kinds = places[order], values[order], kinds[order]
    if not head.final:
        stays = best_of_overlapping(boxes[places], kinds, _MOST_OVERLAP)
        places, values, kinds = places[stays], values[stays], kinds[stays]
    return np.concatenate([boxes[places], values[:, None], kinds[:, None]], 1)[:DETECTIONS]


def recognise(
    size: tuple[int, int] | None,
    outputs: Sequence[Array],
    labels: Array | None = None,
    ids: Sequence[int] = (),
) -> Head | None:
    """Return how a detector's outputs are read; None for a model that is none.

    What shapes and numbers leave open (whether x or y stands first, which number a class has) the labels decide: that
    reading is taken which finds them best.

    Args:
        size: Height and width of the pictures; None where the model takes none.
        outputs: All outputs for a few pictures.
        labels: The boxes of these pictures, [N, M, 6] as in `precision`; None without labels.
        ids: The numbers of the labels' classes as their file has them.
    """
    heads = find_heads(size, outputs, ids)
    if len(heads) < 2 or labels is None:
        return heads[0] if heads else None
    values = [map_at_half((detections(head, outputs),), (labels,)) for head in heads]
    return heads[int(np.argmax(np.nan_to_num(values)))]
