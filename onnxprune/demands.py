"""What a method demands beside the model, and what is refused before any work because it is not there."""

from __future__ import annotations

from onnxprune.calibration import AnyArrays, has_labels
from onnxprune.errors import RecipeError
from onnxprune.recipe import Recipe
from onnxprune.recovery import METHODS
from onnxprune.schedules import get_schedule
from onnxprune.scoring import find_criterion
from onnxprune.selection.allocation import NEEDS_INPUTS

DEFAULT_RECOVERY = ("least-squares",)
"""What ``--recover auto`` does where calibration data are given."""


def check_method(recipe: Recipe, calibration: AnyArrays | None, *, retrains: bool) -> None:
    """Refuse names that do not exist, and a method whose data are not given.

    Args:
        recipe: The recipe.
        calibration: What was given as calibration data.
        retrains: Whether there are training data, which can stand in for them.

    Raises:
        RecipeError: See above.
        DataError: The calibration data cannot be read.
    """
    get_schedule(recipe.schedule)
    _check_criterion(recipe, calibration, retrains)
    missing = calibration is None and not retrains
    if recipe.allocation in NEEDS_INPUTS and missing:
        raise RecipeError(f"--allocation {recipe.allocation} scans the layers on inputs: give --calibration FILE.npz")
    if recipe.recover in (("auto",), ("no",)):
        return
    for name in recipe.recover:
        if name not in METHODS:
            raise RecipeError(f"--recover: there is no {name!r}; choose auto, no, or of {', '.join(METHODS)}")
    if missing and any(METHODS[name].needs != "nothing" for name in recipe.recover):
        raise RecipeError(f"--recover {','.join(recipe.recover)} needs inputs: give --calibration FILE.npz")
    if recipe.prune_every is not None:
        raise RecipeError(
            "--recover: with --prune-every the training itself is under way at each pruning: leave it out"
        )
    if recipe.survivors in ("rewind", "reinit"):
        raise RecipeError(
            f"--recover: --survivors {recipe.survivors} puts other weights in the place of recovered ones"
        )


def _check_criterion(recipe: Recipe, calibration: AnyArrays | None, retrains: bool) -> None:
    criterion = find_criterion(recipe.criterion)
    wanted = "blocks" if recipe.parts.depth else "weights" if recipe.parts.zeros is not None else "units"
    if wanted not in criterion.scores:
        called = {"weights": "single weights", "units": "whole units", "blocks": "residual blocks"}
        fit = "channels" if "units" in criterion.scores else "blocks"
        raise RecipeError(
            f"--criterion {criterion.name} scores {called[criterion.scores[0]]}, not {called[wanted]}: use it with "
            f"--structure {fit}"
        )
    if criterion.needs == "nothing":
        return
    labels = needs_labels(recipe)
    what = "inputs with their labels" if labels else "inputs"
    if calibration is None:
        if not retrains:
            raise RecipeError(f"--criterion {criterion.name} needs {what} to look at: give --calibration FILE.npz")
    elif labels and not has_labels(calibration):
        raise RecipeError(f"--criterion {criterion.name} needs {what}, and --calibration has no array 'label'")


def needs_labels(recipe: Recipe) -> bool:
    """Say whether the criterion looks at labels."""
    return find_criterion(recipe.criterion).needs in ("labels", "training")


def looks_at_data(recipe: Recipe) -> bool:
    """Say whether criterion or allocation cannot do without data."""
    return find_criterion(recipe.criterion).needs != "nothing" or recipe.allocation in NEEDS_INPUTS


def recovery_methods(recipe: Recipe, *, given: bool) -> tuple[str, ...]:
    """Return the methods of recovery of a run, in order.

    Args:
        recipe: The recipe, as `check_method` let it pass.
        given: Whether calibration data were given, which asks for recovery.
    """
    if recipe.recover == ("auto",):
        lasting = recipe.survivors not in ("rewind", "reinit")
        return DEFAULT_RECOVERY if given and lasting else ()
    return () if recipe.recover == ("no",) else recipe.recover
