"""Retraining of ONNX models: data, losses, metrics, masks, the loop, and pruning and retraining in turns.

    data = read_data("train.npz", model)
    result = iterate(model, IterateSettings(sparsity=0.9, iterations=5), prune, data)

`retrain` does one training; `loop.train` trains any module. The settings are validated data that a Recipe embeds.
"""

from __future__ import annotations

from onnxprune.bridge.training.data import Arrays, Batch, Source
from onnxprune.bridge.training.gradual import Prune
from onnxprune.bridge.training.iterate import Clean, IterateResult, IterationResult, iterate
from onnxprune.bridge.training.masks import Masks, apply_masks, masks_of_zeros, sparsity
from onnxprune.bridge.training.metrics import METRICS, Metric, get_metric
from onnxprune.bridge.training.progress import Event, Progress, display
from onnxprune.bridge.training.readers import Data, read_data
from onnxprune.bridge.training.retrain import Retrained, measure, retrain
from onnxprune.bridge.training.settings import DataSettings, IterateSettings, TrainSettings
from onnxprune.bridge.training.task import EpochResult, TrainResult

__all__ = [
    "METRICS",
    "Arrays",
    "Batch",
    "Clean",
    "Data",
    "DataSettings",
    "EpochResult",
    "Event",
    "IterateResult",
    "IterateSettings",
    "IterationResult",
    "Masks",
    "Metric",
    "Progress",
    "Prune",
    "Retrained",
    "Source",
    "TrainResult",
    "TrainSettings",
    "apply_masks",
    "display",
    "get_metric",
    "iterate",
    "masks_of_zeros",
    "measure",
    "read_data",
    "retrain",
    "sparsity",
]
