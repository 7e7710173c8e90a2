from .errors import (
    DataError,
    ModelError,
    NothingToPrune,
    OnnxPruneError,
    RecipeError,
    VerificationError,
)
from .pipeline.inspect import Inspection, inspect
from .pipeline.result import Result
from .pipeline.run import prune, save
from .pipeline.scan import Scan, sensitivity
from .recipe.recipe import Recipe

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
