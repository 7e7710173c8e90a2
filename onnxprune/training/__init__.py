"""One training of an ONNX model: losses, masks, optimisers, and the way through PyTorch and back.

    data = read_data("train.npz", model)
    trained = retrain(model, data, TrainSettings(epochs=5), masks=masks)

`retrain` trains a model, `loop.train` any module. The settings are validated data that a Recipe embeds. Nothing here
knows of a schedule of prunings: that is `pipeline.loop`.
"""

from __future__ import annotations

from onnxprune.recipe.training import DataSettings, TrainSettings
from onnxprune.training.masks import Masks, apply_masks, masks_of_zeros, sparsity_of
from onnxprune.training.own_loop import OwnLoop
from onnxprune.training.progress import Event, Progress, display
from onnxprune.training.retraining import Retrained, retrain
from onnxprune.training.task import EpochResult, TrainResult

__all__ = [
    "DataSettings",
    "EpochResult",
    "Event",
    "Masks",
    "OwnLoop",
    "Progress",
    "Retrained",
    "TrainResult",
    "TrainSettings",
    "apply_masks",
    "display",
    "masks_of_zeros",
    "retrain",
    "sparsity_of",
]
