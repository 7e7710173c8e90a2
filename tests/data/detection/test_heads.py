"""Outputs of detectors are read by their shapes and numbers: objects that are put in come out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data.detection.decode import detections, recognise
from onnxprune.data.detection.heads import find_heads, grids, picture_size

Array = NDArray[Any]
SIZE = (96, 160)
STRIDES = (8, 16, 32)
CLASSES = 5


@dataclass(frozen=True)
class Scene:
    """Objects at the places of a pyramid of grids.

    Attributes:
        boxes: [N, places, 4], corners in pixels.
        scores: [N, places, classes].
        labels: What is there, [N, M, 6].
    """

    boxes: Array
    scores: Array
    labels: Array


def cells() -> tuple[Array, Array]:
    parts = []
    for stride in STRIDES:
        y, x = np.mgrid[: SIZE[0] // stride, : SIZE[1] // stride]
        parts.append(np.stack([x, y, np.full_like(x, stride)], -1).reshape(-1, 3))
    whole = np.concatenate(parts).astype(np.float64)
    return whole[:, :2], whole[:, 2:]


def scene(seed: int = 0, pictures: int = 4, objects: int = 3) -> Scene:
    rng = np.random.default_rng(seed)
    cell, stride = cells()
    middle = (cell + 0.5) * stride
    half = rng.uniform(0.5, 2, (pictures, len(cell), 2)) * stride
    boxes = np.concatenate([middle - half, middle + half], -1)
    scores = rng.uniform(0, 5e-4, (pictures, len(cell), CLASSES))
    labels = np.zeros((pictures, objects, 6))
    for i in range(pictures):
        for j, place in enumerate(rng.choice(len(cell), objects, replace=False)):
            kind = int(rng.integers(CLASSES))
            scores[i, place, kind] = rng.uniform(0.5, 0.9)
            labels[i, j] = (kind, *boxes[i, place], 0)
    return Scene(boxes, scores, labels)


def centred(boxes: Array) -> Array:
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], -1)


def in_cells(boxes: Array) -> Array:
    """What YOLOX puts out: offsets in cells, and logarithms of the sides in cells."""
    cell, stride = cells()
    form = centred(boxes)
    return np.concatenate([form[..., :2] / stride - cell, np.log(form[..., 2:] / stride)], -1)


def float32(*arrays: Array) -> tuple[Array, ...]:
    return tuple(array.astype(np.float32) for array in arrays)


def yolov8(s: Scene) -> tuple[Array, ...]:
    return float32(np.concatenate([centred(s.boxes), s.scores], -1).swapaxes(1, 2))


def yolov5(s: Scene) -> tuple[Array, ...]:
    sure = s.scores.max(-1, keepdims=True)
    return float32(np.concatenate([centred(s.boxes), sure, s.scores / sure], -1))


def yolox(s: Scene) -> tuple[Array, ...]:
    sure = s.scores.max(-1, keepdims=True)
    return float32(np.concatenate([in_cells(s.boxes), sure, s.scores / sure], -1))


def ssd(s: Scene) -> tuple[Array, ...]:
    nothing = 1 - s.scores.sum(-1, keepdims=True)
    shares = s.boxes / np.array([SIZE[1], SIZE[0]] * 2)
    return float32(np.concatenate([nothing, s.scores], -1), shares)


def keras(s: Scene) -> tuple[Array, ...]:
    """As an SSD of TensorFlow: after suppression, in four outputs, top first, classes from 1."""
    boxes, scores, classes = found(s)
    shares = boxes[..., [1, 0, 3, 2]] / np.array([SIZE[0], SIZE[1]] * 2)
    return (*float32(np.full((len(boxes),), boxes.shape[1]), shares, scores, classes + 1),)


def yolov10(s: Scene) -> tuple[Array, ...]:
    boxes, scores, classes = found(s)
    return float32(np.concatenate([boxes, scores[..., None], classes[..., None]], -1))


def found(s: Scene, most: int = 20) -> tuple[Array, Array, Array]:
    best, kinds = s.scores.max(-1), s.scores.argmax(-1)
    order = np.argsort(-best, 1)[:, :most]
    return np.take_along_axis(s.boxes, order[..., None], 1), *(np.take_along_axis(a, order, 1) for a in (best, kinds))


@pytest.mark.parametrize("export", [yolov8, yolov5, yolox, ssd, keras, yolov10])
def test_objects_come_out_again(export: Any) -> None:
    s = scene()
    outputs = export(s)
    head = recognise(SIZE, outputs, s.labels, range(CLASSES))
    assert head is not None
    out = detections(head, outputs)
    for i, label in enumerate(s.labels):
        seen = out[i][out[i, :, 4] > 0.4]
        assert len(seen) == len(label)
        order, wanted = np.lexsort(seen[:, :2].T), np.lexsort(label[:, 1:3].T)
        np.testing.assert_allclose(seen[order][:, :4], label[wanted][:, 1:5], atol=1e-2)
        assert seen[order][:, 5].tolist() == label[wanted][:, 0].tolist()


@pytest.mark.parametrize("export", [yolov8, yolov5, yolox, ssd, yolov10])
def test_without_labels_the_boxes_are_the_same(export: Any) -> None:
    s = scene(1)
    outputs = export(s)
    head = recognise(SIZE, outputs)
    assert head is not None
    out = detections(head, outputs)
    assert [(rows[:, 4] > 0.4).sum() for rows in out] == [len(label) for label in s.labels]


def test_a_transposed_head_without_objectness_is_told_by_the_classes_of_the_labels() -> None:
    s = scene(2)
    (joined,) = yolov8(s)
    head = recognise(SIZE, (joined.swapaxes(1, 2),), s.labels, range(CLASSES))
    assert head is not None and head.objectness is None


def test_classes_that_are_numbered_as_in_the_file_of_the_labels() -> None:
    s = scene(3)
    ids = (1, 2, 4, 7, 9)
    boxes, scores, classes = found(s)
    outputs = float32(boxes, scores, np.array(ids)[classes])
    head = recognise(SIZE, outputs, s.labels, ids)
    assert head is not None and head.numbers == ids


def test_boxes_of_one_picture_without_an_axis_of_samples() -> None:
    s = scene(4, pictures=1)
    boxes, scores, classes = found(s)
    head = recognise(SIZE, float32(boxes[0], scores[0], classes[0]), s.labels, range(CLASSES))
    assert head is not None and not head.batched


def test_boxes_of_a_class_that_overlap_are_one_detection() -> None:
    s = scene(5, pictures=1, objects=1)
    (kind,) = s.labels[0, :, 0].astype(int)
    s.boxes[0, :5] = s.labels[0, 0, 1:5] + np.arange(5)[:, None] * 0.1
    s.scores[0, :5, kind] = 0.45
    outputs = yolov8(s)
    head = recognise(SIZE, outputs)
    assert head is not None
    assert (detections(head, outputs)[0, :, 4] > 0.4).sum() == 1


@pytest.mark.parametrize(
    "outputs",
    [
        (np.zeros((4, 10), np.float32),),
        (np.zeros((4, 77, 512), np.float32),),
        (np.random.default_rng(0).normal(size=(4, 9, 315)).astype(np.float32),),  # scores beyond 0 to 1
        (np.zeros((4, 3, 96, 160), np.float32),),
    ],
)
def test_other_outputs_are_no_detections(outputs: tuple[Array, ...]) -> None:
    assert find_heads(SIZE, outputs) == []


def test_offsets_from_anchors_that_are_not_in_the_graph_are_no_boxes() -> None:
    scores, boxes = ssd(scene())
    offsets = np.random.default_rng(0).normal(size=boxes.shape).astype(np.float32)
    assert find_heads(SIZE, (scores, offsets)) == []


def test_no_pictures_no_detector() -> None:
    assert picture_size([np.zeros((2, 77))]) is None
    assert find_heads(None, yolov8(scene())) == []


def test_the_grids_of_yolos_at_640_pixels() -> None:
    known = grids((640, 640))
    assert known[8_400] == (1, (8, 16, 32))  # version 6 and later
    assert known[25_200] == (3, (8, 16, 32))  # version 5
