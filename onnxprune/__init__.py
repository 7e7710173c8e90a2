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
from onnxprune.pipeline.inspect import Inspection, inspect
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.run import prune, save
from onnxprune.pipeline.scan import Scan, sensitivity
from onnxprune.recipe.recipe import Recipe

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
