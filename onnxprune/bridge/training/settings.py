"""The settings of retraining, under the name by which the training code knows them.

They live in `onnxprune.train_settings`, since the Recipe and the flags need them where PyTorch is not installed.
"""

from __future__ import annotations

from onnxprune.train_settings import DataSettings, IterateSettings, TrainSettings

__all__ = ["DataSettings", "IterateSettings", "TrainSettings"]
