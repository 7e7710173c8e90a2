"""Mean average precision is that of pycocotools, and what it does at its borders."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.data.average_precision import as_labels, map_at_half, mean_average_precision

Array = NDArray[Any]


def drawn(seed: int, pictures: int = 12, classes: int = 3) -> tuple[Array, Array]:
    """Detections that lie near labels, beside some that do not; a few labels are crowds."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((pictures, 6, 6))
    labels[..., 0] = -1
    found = np.zeros((pictures, 30, 6))
    found[..., 5] = -1
    for i in range(pictures):
        count = rng.integers(0, 7)
        corner, size = rng.uniform(0, 80, (count, 2)), rng.uniform(5, 40, (count, 2))
        labels[i, :count, 0] = rng.integers(0, classes, count)
        labels[i, :count, 1:5] = np.concatenate([corner, corner + size], 1)
        labels[i, :count, 5] = rng.random(count) < 0.2
        near = np.repeat(labels[i, :count], 3, 0)
        boxes = np.concatenate([near[:, 1:5] + rng.normal(0, 3, (3 * count, 4)), rng.uniform(0, 100, (6, 4))])
        boxes[:, 2:] = np.maximum(boxes[:, :2] + 1, boxes[:, 2:])
        kinds = np.concatenate([near[:, 0], rng.integers(0, classes, 6)])
        found[i, : len(boxes)] = np.column_stack([boxes, np.round(rng.random(len(boxes)), 1) + 0.01, kinds])
    return found, labels


def of_pycocotools(found: Array, labels: Array) -> tuple[float, float]:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")

    def as_list(box: Array) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations: list[dict[str, Any]] = []
    for i, rows in enumerate(labels):
        for row in rows[rows[:, 0] >= 0]:
            box = as_list(row[1:5])
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, "category_id": int(row[0]) + 1,
                                "bbox": box, "area": box[2] * box[3], "iscrowd": int(row[5])})  # fmt: skip
    results = [
        {"image_id": i + 1, "category_id": int(row[5]) + 1, "bbox": as_list(row[:4]), "score": float(row[4])}
        for i, rows in enumerate(found)
        for row in rows[rows[:, 4] > 0]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(len(labels))],
            "annotations": annotations,
            "categories": [{"id": number + 1} for number in range(3)],
        }
        truth.createIndex()
        judge = evaluation.COCOeval(truth, truth.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0]), float(judge.stats[1])


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_are_those_of_pycocotools(seed: int) -> None:
    found, labels = drawn(seed)
    mean, half = of_pycocotools(found, labels)
    assert 0.05 < mean < 0.95
    assert mean_average_precision((found,), (labels,)) == pytest.approx(mean, abs=1e-12)
    assert map_at_half((found,), (labels,)) == pytest.approx(half, abs=1e-12)


def test_labels_found_as_they_are_give_one() -> None:
    _, labels = drawn(0)
    labels[..., 5] = 0
    found = np.concatenate([labels[..., 1:5], (labels[..., :1] >= 0) * 0.9, labels[..., :1]], -1)
    assert mean_average_precision((found,), (labels,)) == 1


def test_nothing_found_is_zero_and_no_labels_are_no_number() -> None:
    found, labels = drawn(1)
    assert mean_average_precision((np.zeros_like(found),), (labels,)) == 0
    assert np.isnan(mean_average_precision((found,), (np.full_like(labels, -1),)))


def test_what_the_original_is_sure_of_counts_as_an_object() -> None:
    found = np.zeros((1, 3, 6))
    found[0, :, 4], found[0, :, 5] = (0.9, 0.3, 0.1), (2, 1, 0)
    assert as_labels(found)[0, :, 0].tolist() == [2, 1, -1]
