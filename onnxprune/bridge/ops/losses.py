"""The loss operators of ai.onnx."""

from __future__ import annotations

import torch

from onnxprune.bridge.registry import op


def _negative_log_likelihood(
    log_probabilities: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor | None,
    ignore_index: int | None,
    reduction: str,
) -> torch.Tensor:
    """Scores (N, C, ...), labels (N, ...); the mean is over the weights of the labels that count."""
    ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
    safe = torch.where(ignored, torch.zeros_like(labels), labels).to(torch.int64)
    picked = -torch.gather(log_probabilities, 1, safe.unsqueeze(1)).squeeze(1)
    weights = torch.ones_like(picked) if weight is None else weight[safe]
    weights = torch.where(ignored, torch.zeros_like(weights), weights)
    losses = torch.where(ignored, torch.zeros_like(picked), picked * weights)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


@op("NegativeLogLikelihoodLoss", fixed=(1,))
def negative_log_likelihood_loss(
    x: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Of log-probabilities."""
    return _negative_log_likelihood(x, target, weight, ignore_index, reduction)


@op("SoftmaxCrossEntropyLoss", fixed=(1,), multiple=True)
def softmax_cross_entropy_loss(
    scores: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of scores; also gives the log-probabilities."""
    logs = torch.log_softmax(scores, dim=1)
    return _negative_log_likelihood(logs, labels, weights, ignore_index, reduction), logs
