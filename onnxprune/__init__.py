"""onnxprune: make any ONNX model smaller and faster by rewriting its graph.

result = onnxprune.prune("model.onnx", sparsity=0.5, structure="channels")
onnxprune.save(result, "smaller.onnx")
"""

from onnxprune.errors import (
    DataError,
    ModelError,
    NothingToPrune,
    OnnxPruneError,
    RecipeError,
    VerificationError,
)
from onnxprune.inspection import Inspection, inspect
from onnxprune.pipeline import Result, prune, save
from onnxprune.recipe import Recipe
from onnxprune.scanning import Scan, sensitivity

__all__ = [
    "DataError",
    "Inspection",
    "ModelError",
    "NothingToPrune",
    "OnnxPruneError",
    "Recipe",
    "RecipeError",
    "Result",
    "Scan",
    "VerificationError",
    "inspect",
    "prune",
    "save",
    "sensitivity",
]
