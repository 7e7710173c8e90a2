"""Mean average precision of one detector: the metric, with the way in which this model's outputs are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from onnxprune.data.detection.decode import detections, recognise
from onnxprune.data.detection.heads import Head, picture_size
from onnxprune.data.detection.pictures import BoxLabels
from onnxprune.data.metrics import METRICS, Metric, beside_original
from onnxprune.data.sources import Batch

Array = npt.NDArray[Any]


def head_of(batch: Batch, outputs: Sequence[Array], boxes: BoxLabels | None = None) -> Head | None:
    """Return how a detector's outputs are read, from what it gives for the first samples; None where it is none."""
    if boxes is None:
        return recognise(picture_size(batch.inputs), outputs)
    return recognise(picture_size(batch.inputs), outputs, boxes.boxes[: len(batch)], boxes.ids)


def of_detector(
    batch: Batch, outputs: Sequence[Array], boxes: BoxLabels | None = None, name: str = "map"
) -> Metric | None:
    """Return the mean average precision of the model that gives these outputs; None where it is no detector.

    Args:
        batch: The first samples.
        outputs: All outputs of the original for them.
        boxes: The labels of all samples; without them, the original's own detections take their place.
        name: Of the metric.
    """
    head = head_of(batch, outputs, boxes)
    if head is None:
        return None
    metric = METRICS[name] if boxes is not None else beside_original(METRICS[name])
    return replace(metric, keeps=lambda arrays: (detections(head, arrays),))
