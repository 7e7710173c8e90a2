from .errors import (
    DataError,
    ModelError,
    NothingToPrune,
    OnnxPruneError,
    RecipeError,
    VerificationError,
)
from .pipeline.check import Check, verify
from .pipeline.compare import compare
from .pipeline.inspect import Inspection, inspect
from .pipeline.result import Result
from .pipeline.run import prune, save
from .pipeline.scan import Scan, sensitivity
from .pipeline.sweep import Sweep, sweep
from .pipeline.trials import Trial
from .pipeline.version import __version__
from .recipe.recipe import Recipe
from .verification.verdict import Verdict

__all__ = [
    "Check",
    "DataError",
    "Inspection",
    "ModelError",
    "NothingToPrune",
    "OnnxPruneError",
    "Recipe",
    "RecipeError",
    "Result",
    "Scan",
    "Sweep",
    "Trial",
    "VerificationError",
    "Verdict",
    "__version__",
    "compare",
    "inspect",
    "prune",
    "save",
    "sensitivity",
    "sweep",
    "verify",
]
