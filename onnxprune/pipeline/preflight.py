"""What a method demands beside the model, and what is refused before any work because it is not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from onnxprune.data.calibration import AnyArrays, has_labels
from onnxprune.errors import RecipeError
from onnxprune.pipeline.given import AnyData
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.requirements import parse
from onnxprune.recipe.schedules import SCHEDULES
from onnxprune.recovery import METHODS
from onnxprune.scoring import find_criterion
from onnxprune.selection.allocation import ALLOCATIONS, Allocation
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS, UnitAllocation

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
    SCHEDULES.find(recipe.schedule)
    _check_criterion(recipe, calibration, retrains)
    missing = calibration is None and not retrains
    if _allocation_scans(recipe) and missing:
        raise RecipeError(f"--allocation {recipe.allocation} scans the layers on inputs: give --calibration FILE.npz")
    if recipe.recover in (("auto",), ("no",)):
        return
    if any(METHODS.find(name).needs != "nothing" for name in recipe.recover) and missing:
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


def allocations_of(recipe: Recipe) -> tuple[UnitAllocation | None, Allocation | None]:
    """Return the allocation of whole units and that of single weights, each None where the structure has no use for it.

    Raises:
        RecipeError: It is not for this structure, or does not exist.
    """
    parts, name = recipe.parts, recipe.allocation
    of_units = of_weights = None
    if parts.units:
        if name in ALLOCATIONS and name not in UNIT_ALLOCATIONS:
            raise RecipeError(f"--allocation: {name} is for single weights, not for whole units")
        of_units = UNIT_ALLOCATIONS.find("cost" if name == "auto" else name)
    if parts.zeros is not None:
        if name in UNIT_ALLOCATIONS and name not in ALLOCATIONS:
            raise RecipeError(
                f"--allocation: {name} is for whole units, not for the weights of {parts.text}: leave it out"
            )
        of_weights = ALLOCATIONS.find("global" if name == "auto" else name)
    return of_units, of_weights


def _allocation_scans(recipe: Recipe) -> bool:
    return any(a is not None and a.needs == "calibration" for a in allocations_of(recipe))


def needs_labels(recipe: Recipe) -> bool:
    """Say whether the criterion looks at labels."""
    return find_criterion(recipe.criterion).needs in ("labels", "training")


def looks_at_data(recipe: Recipe) -> bool:
    """Say whether criterion or allocation cannot do without data."""
    return find_criterion(recipe.criterion).needs != "nothing" or _allocation_scans(recipe)


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


def ensure_measured(limits: Iterable[str], *, verification: bool, latency: bool, metric: bool) -> None:
    """Refuse, before any work is done, limits on figures that this run would not measure.

    Raises:
        RecipeError: Of a limit that could not be checked.
    """
    for limit in map(parse, limits):
        if not verification:
            raise RecipeError(f"--require {limit} cannot be checked without verification")
        if limit.name == "metric_drop" and not metric:
            raise RecipeError(f"--require {limit} needs labelled data to measure the metric on: give --eval-data")
        if limit.name == "latency" and not latency:
            raise RecipeError(f"--require {limit} cannot be checked where latency is not measured")


def check_data(recipe: Recipe, data: AnyData | None, eval_data: AnyData | None, resume: bool) -> None:
    """Refuse data that nothing would read, and retraining on nothing.

    Raises:
        RecipeError: See above.
    """
    if recipe.retrain is not None:
        if data is None:
            raise RecipeError("--retrain needs the data to train on: give --data")
        return
    if data is not None:
        raise RecipeError("--data is what --retrain trains on: give both, or --eval-data to measure a metric")
    if resume:
        raise RecipeError("--resume goes on with an interrupted run of --retrain: give that too")
    if isinstance(eval_data, Mapping):
        raise RecipeError("--eval-data is the path of an .npz file where nothing is retrained")


def check_target(recipe: Recipe, *, metric: bool, verification: bool) -> None:
    """Refuse, before any work is done, a target that this run cannot look for.

    Raises:
        RecipeError: See above.
    """
    if recipe.target == "max_drop" and not metric:
        raise RecipeError("--max-drop needs labelled data to measure the metric on: give --eval-data")
    if recipe.target == "max_drop" and not verification:
        raise RecipeError("--max-drop measures a metric, which cannot be done without verification")
    if recipe.target == "target_latency" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("--target-latency is measured in one process, so this run cannot be shared by several")
