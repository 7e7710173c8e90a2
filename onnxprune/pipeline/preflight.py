"""What is refused before any work: settings that what was given does not allow.

Settings that contradict each other are refused when the recipe is made (recipe/contradictions.py). Here the recipe is
held against the data, the metric, the calibration data and the verification of the run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable

from onnxprune.data.calibration import Calibration
from onnxprune.data.metrics import METRICS
from onnxprune.data.readers import AnyData
from onnxprune.data.text import check_text
from onnxprune.errors import RecipeError
from onnxprune.pipeline.run_inputs import RunInputs
from onnxprune.pipeline.task import allocations_of
from onnxprune.recipe.defaults import settled
from onnxprune.recipe.fields import is_synthetic
from onnxprune.recipe.granularity import NM, Weights
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.requirements import Limit, parse
from onnxprune.recipe.schedules import SCHEDULES
from onnxprune.recovery import METHODS
from onnxprune.scoring import find_criterion

DEFAULT_RECOVERY = ("least-squares",)
"""What ``--recover auto`` does where calibration data are given."""

RECOVERY_OF_ZEROS = ("alps",)
"""The same for single weights and N:M: which are zero is chosen anew; benchmarks/single_weights.py measures it."""


def preflight(recipe: Recipe, inputs: RunInputs) -> None:
    """Refuse a run that cannot do what it is asked for.

    Args:
        recipe: The recipe.
        inputs: What the run is given beside it.

    Raises:
        RecipeError: A name does not exist, or something is missing or left over; the sentence names the flag.
    """
    SCHEDULES.find(recipe.schedule)
    check_text(recipe.reading, (inputs.data, inputs.eval_data, inputs.calibration, inputs.inputs))
    check_scores(recipe, inputs.calibration, trains=recipe.retrain is not None)
    _check_recovery(recipe, calibrated=inputs.calibration is not None or recipe.retrain is not None)
    check_limits(map(parse, recipe.require), recipe, inputs)
    _check_data(recipe, inputs)
    _check_quantising(recipe, inputs)
    _check_target(recipe, inputs)


def check_scores(recipe: Recipe, calibration: AnyData | None, *, trains: bool) -> None:
    """Refuse a criterion or an allocation that does not fit the structure, or whose data are not given.

    Args:
        recipe: The recipe.
        calibration: What was given as calibration data.
        trains: Whether there are training data, which can stand in for them.

    Raises:
        RecipeError: The sentence names the flag.
    """
    criterion = find_criterion(settled(recipe, calibrated=calibration is not None).criterion)
    scored = (recipe.parts.zeros or recipe.parts.shape).scored
    if scored not in criterion.scores:
        called = {"weights": "single weights", "units": "whole units", "blocks": "residual blocks"}
        fit = "channels" if "units" in criterion.scores else "blocks"
        raise RecipeError(
            f"--criterion {criterion.name} scores {called[criterion.scores[0]]}, not {called[scored]}: use it with "
            f"--structure {fit}"
        )
    if criterion.needs_pytorch and importlib.util.find_spec("torch") is None:
        raise RecipeError(
            f"--criterion {criterion.name} needs PyTorch, which is not installed: pip install 'onnxprune[retrain]'."
        )
    if criterion.needs != "nothing":
        labels = needs_labels(recipe)
        what = "inputs with their labels" if labels else "inputs"
        if calibration is None and not trains:
            raise RecipeError(f"--criterion {criterion.name} needs {what} to look at: give --calibration FILE.npz")
        if labels and is_synthetic(calibration):
            raise RecipeError(f"--criterion {criterion.name} needs {what}, and inputs that are made up have none")
    if _allocation_scans(recipe) and calibration is None and not trains:
        raise RecipeError(f"--allocation {recipe.allocation} scans the layers on inputs: give --calibration FILE.npz")


def check_labels(recipe: Recipe, samples: Calibration) -> None:
    """Refuse calibration data without the labels that the criterion looks at.

    Raises:
        RecipeError: See above.
    """
    if needs_labels(recipe) and samples.labels is None:
        raise RecipeError(
            f"--criterion {recipe.criterion} needs inputs with their labels, and --calibration has no array 'label'"
        )


def _check_recovery(recipe: Recipe, *, calibrated: bool) -> None:
    aligns = "align" in recovery_methods(recipe, calibrated=calibrated)
    if aligns and importlib.util.find_spec("torch") is None:
        flag = "--recover align" if "align" in recipe.recover else f"--effort {recipe.effort}"
        raise RecipeError(f"{flag} needs PyTorch, which is not installed: pip install 'onnxprune[retrain]'.")
    if recipe.recover in (("auto",), ("no",)):
        return
    if any(METHODS.find(name).needs != "nothing" for name in recipe.recover) and not calibrated:
        raise RecipeError(f"--recover {','.join(recipe.recover)} needs inputs: give --calibration FILE.npz")


def check_limits(limits: Iterable[Limit], recipe: Recipe, inputs: RunInputs, flag: str = "--require") -> None:
    """Refuse limits on figures that the run would not measure.

    Raises:
        RecipeError: The sentence names the flag and the limit.
    """
    for limit in limits:
        if not inputs.verification and limit.name != "sparsity":
            raise RecipeError(f"{flag} {limit} cannot be checked with --no-verify")
        if limit.name == "metric_drop" and not _has_metric(recipe, inputs):
            raise RecipeError(f"{flag} {limit} needs labelled data to measure the metric on: give --eval-data")
        if limit.name == "latency" and not inputs.latency:
            raise RecipeError(f"{flag} {limit} cannot be checked where latency is not measured")


def _check_data(recipe: Recipe, inputs: RunInputs) -> None:
    """Refuse data that nothing would read, training on nothing, and a metric that does not exist."""
    if recipe.retrain is not None:
        if inputs.data is None:
            raise RecipeError("--retrain needs the data to train on: give --data")
        METRICS.find(recipe.retrain.metric or inputs.metric or "accuracy")
        _check_training_names(recipe)
        return
    if inputs.data is not None:
        raise RecipeError("--data is what --retrain trains on: give both, or --eval-data to measure a metric")
    if inputs.checkpoint is not None and recipe.target is not None:
        raise RecipeError(
            f"--checkpoint keeps the state of one run, but --{recipe.target.replace('_', '-')} looks for a sparsity by "
            "many: give --sparsity instead"
        )
    if inputs.resume and inputs.checkpoint is None:
        raise RecipeError("--resume goes on with the run that a checkpoint holds: name its folder")
    if inputs.metric is not None:
        METRICS.find(inputs.metric)


def _check_quantising(recipe: Recipe, inputs: RunInputs) -> None:
    """Refuse int8 without inputs from which ranges of activations can be taken."""
    if recipe.quantize == "int8" and inputs.calibration is None and inputs.eval_data is None:
        why = "" if recipe.engine is None else f", as --engine {recipe.engine} wants it,"
        raise RecipeError(f"--quantize int8{why} needs inputs to calibrate on: give --calibration or --eval-data")


def _check_training_names(recipe: Recipe) -> None:
    """Refuse optimisers, schedules, losses, augmentations and penalties that do not exist."""
    from onnxprune.training.losses import LOSSES
    from onnxprune.training.optim import LEARNING_RATES, OPTIMIZERS
    from onnxprune.training.shrink import PENALTIES
    from onnxprune.training.variation import AUGMENTATIONS

    for train in (recipe.retrain, recipe.retrain_last):
        if train is not None:
            OPTIMIZERS.find(train.optimizer)
            LEARNING_RATES.find(train.schedule)
            LOSSES.find(train.loss)
            for name in train.augment:
                AUGMENTATIONS.find(name)
    if recipe.shrink != "no":
        PENALTIES.find(recipe.shrink)


def _check_target(recipe: Recipe, inputs: RunInputs) -> None:
    """Refuse a target that the run cannot look for."""
    if recipe.target == "max_drop" and not _has_metric(recipe, inputs):
        raise RecipeError("--max-drop needs labelled data to measure the metric on: give --eval-data")
    if recipe.target == "target_latency" and not inputs.verification:
        raise RecipeError("--target-latency is measured, which cannot be done with --no-verify")
    if recipe.target == "max_drop" and not inputs.verification:
        raise RecipeError("--max-drop measures a metric, which cannot be done without verification")
    if recipe.target == "target_latency" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("--target-latency is measured in one process, so this run cannot be shared by several")


def _has_metric(recipe: Recipe, inputs: RunInputs) -> bool:
    """Whether a metric is measured: on labelled data, or on what is held out of the training data."""
    return inputs.eval_data is not None or recipe.retrain is not None


def _allocation_scans(recipe: Recipe) -> bool:
    """Whether the allocation runs the model on inputs."""
    return any(a is not None and a.needs == "calibration" for a in allocations_of(recipe))


def needs_labels(recipe: Recipe) -> bool:
    """Say whether the criterion looks at labels."""
    return find_criterion(settled(recipe, calibrated=False).criterion).needs in ("labels", "training")


def looks_at_data(recipe: Recipe) -> bool:
    """Say whether criterion or allocation cannot do without data."""
    criterion = find_criterion(settled(recipe, calibrated=False).criterion)
    return criterion.needs != "nothing" or _allocation_scans(recipe)


def recovery_methods(recipe: Recipe, *, calibrated: bool) -> tuple[str, ...]:
    """Return the methods of recovery of a run, in order.

    Args:
        recipe: The recipe, as `preflight` let it pass.
        calibrated: Whether calibration data were given, which asks for recovery.
    """
    if recipe.recover == ("auto",):
        replaced = recipe.survivors in ("rewind", "reinit") or recipe.alternate or recipe.prune_every is not None
        if not calibrated or replaced:
            return ()
        closed = RECOVERY_OF_ZEROS if isinstance(recipe.parts.zeros, (NM, Weights)) else DEFAULT_RECOVERY
        return closed if recipe.effort == "low" else (*closed, "align")
    return () if recipe.recover == ("no",) else recipe.recover
