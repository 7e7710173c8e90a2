"""Scaler in PyTorch, for retraining and for criteria that look at gradients."""

from collections.abc import Sequence

import torch

from onnxprune.bridge.registry import op


@op("Scaler", domain="ai.onnx.ml")
def scaler(x: torch.Tensor, offset: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)) -> torch.Tensor:
    """(x - offset) * scale, for each feature."""
    return (x.float() - x.new_tensor(offset)) * x.new_tensor(scale)
