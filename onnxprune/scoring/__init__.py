"""How much a weight or a unit matters: one module per family of criteria, all in one registry."""

from onnxprune.scoring.registry import Criterion, criteria, criterion, find_criterion
from onnxprune.scoring.units import unit_scores
from onnxprune.scoring.weights import Weight, prunable_weights

__all__ = [
    "Criterion",
    "Weight",
    "criteria",
    "criterion",
    "find_criterion",
    "prunable_weights",
    "unit_scores",
]
