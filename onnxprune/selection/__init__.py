"""Budgets: from scores to what goes."""

from onnxprune.selection.units import UnitBudget
from onnxprune.selection.weights import select_weights

__all__ = ["UnitBudget", "select_weights"]
