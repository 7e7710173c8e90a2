"""What a change of a detector's outputs counts: where it sees something, boxes by their sides, classes beside them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.data.detection.heads import Head, Part
from onnxprune.runtime.stream.effects import Reference
from onnxprune.runtime.stream.gather import Batches

PLACES = 8 * 8 + 4 * 4 + 2 * 2  # of the grids of 64 pixels
OBJECT, NOTHING = 5, 70


def outputs() -> np.ndarray:
    """Boxes in pixels and scores of 3 classes, [2, 7, places]; an object at one place."""
    centres = [
        (np.stack(np.meshgrid(*[np.arange(64 // stride)] * 2), -1).reshape(-1, 2) + 0.5) * stride
        for stride in (8, 16, 32)
    ]
    sides = np.random.default_rng(0).uniform(10, 50, (2, 2, PLACES))
    boxes = np.concatenate([np.broadcast_to(np.concatenate(centres).T, (2, 2, PLACES)), sides], 1)
    scores = np.full((2, 3, PLACES), 1e-3)
    scores[:, 1, OBJECT] = 0.9
    return np.concatenate([boxes, scores], 1).astype(np.float32)


def reference() -> Reference:
    feeds = {"images": np.zeros((2, 3, 64, 64), np.float32)}
    return Reference.of([{"y": outputs()}], Batches([feeds], [None], 2))


def changed(part: slice, place: int, by: float) -> float:
    moved = outputs()
    moved[:, part, place] += np.float32(by)
    return reference().divergence([{"y": moved}])


def test_a_detector_is_recognised_by_its_inputs_and_outputs() -> None:
    assert reference().head == Head((64, 64), Part(0, 0, 4, 1), Part(0, 4, None, 1), strides=(8, 16, 32))
    assert Reference.of([{"y": outputs()}], Batches([{"x": np.zeros((2, 9), np.float32)}], [None], 2)).head is None


def test_a_class_that_is_lost_counts_as_much_as_a_box_that_is_off() -> None:
    lost = changed(slice(5, 6), OBJECT, -0.8)
    assert lost > 1 and lost > changed(slice(0, 4), OBJECT, 2.0)


def test_boxes_count_where_something_is_seen() -> None:
    assert changed(slice(0, 4), NOTHING, 20.0) < 0.05 * changed(slice(0, 4), OBJECT, 20.0)


def test_equal_outputs_have_no_distance() -> None:
    assert reference().divergence([{"y": outputs()}]) == pytest.approx(0, abs=1e-12)
