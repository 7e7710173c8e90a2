"""How much a weight or a unit matters: one module per family of criteria, all in one registry."""

from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.registry import Context, Criterion, criteria, criterion, find_criterion, unit_criterion
from onnxprune.scoring.units import unit_scores
from onnxprune.structure.weights import Weight, prunable_weights

__all__ = [
    "Context",
    "Criterion",
    "Evidence",
    "Weight",
    "criteria",
    "criterion",
    "find_criterion",
    "prunable_weights",
    "unit_criterion",
    "unit_scores",
]
