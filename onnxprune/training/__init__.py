"""Retraining of ONNX models: data, losses, metrics, masks, the loop, and pruning and retraining in turns.

    data = read_data("train.npz", model)
    result = iterate(model, IterateSettings(sparsity=0.9, iterations=5), prune, data)

`retrain` does one training; `loop.train` trains any module. The settings are validated data that a Recipe embeds.
"""

from __future__ import annotations

from onnxprune.recipe.training import DataSettings, IterateSettings, TrainSettings
from onnxprune.training.gradual import Prune
from onnxprune.training.masks import Masks, apply_masks, masks_of_zeros, sparsity
from onnxprune.training.progress import Event, Progress, display
from onnxprune.training.retrain import Retrained, measure, retrain
from onnxprune.training.task import EpochResult, TrainResult
from onnxprune.training.turn import Clean, IterateResult, IterationResult, iterate

__all__ = [
    "Clean",
    "DataSettings",
    "EpochResult",
    "Event",
    "IterateResult",
    "IterateSettings",
    "IterationResult",
    "Masks",
    "Progress",
    "Prune",
    "Retrained",
    "TrainResult",
    "TrainSettings",
    "apply_masks",
    "display",
    "iterate",
    "masks_of_zeros",
    "measure",
    "retrain",
    "sparsity",
]
