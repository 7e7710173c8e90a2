"""Boxes as arrays [..., 4] of left, top, right, bottom: from other forms, how far they overlap, the best of many."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def from_centres(boxes: Array) -> Array:
    """Corners of boxes that are given by centre, width and height."""
    middle, half = boxes[..., :2], boxes[..., 2:4] / 2
    return np.concatenate([middle - half, middle + half], -1)


def areas(boxes: Array) -> Array:
    """The area of each box; 0 where right lies left of left."""
    return np.asarray(np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1))


def shared_areas(first: Array, second: Array) -> Array:
    """The area that each of the first boxes [A, 4] shares with each of the second [B, 4]: [A, B]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.asarray(np.maximum(high - low, 0).prod(-1))


def overlaps(first: Array, second: Array) -> Array:
    """Intersection over union of each of the first boxes [A, 4] with each of the second [B, 4]: [A, B]."""
    shared = shared_areas(first, second)
    union = areas(first)[:, None] + areas(second)[None] - shared
    return np.asarray(shared / np.where(union > 0, union, 1))


def best_of_overlapping(boxes: Array, classes: Array, most: float) -> Array:
    """The numbers of the boxes that stay: none overlaps a better one of its class by more than `most`.

    Args:
        boxes: [A, 4], the best first.
        classes: [A].
        most: The largest intersection over union.
    """
    near = (overlaps(boxes, boxes) > most) & (classes[:, None] == classes[None])
    stays = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        if stays[i]:
            stays[i + 1 :] &= ~near[i, i + 1 :]
    return np.flatnonzero(stays)
