"""A Recipe becomes a list of passes and is run. The only place that knows the order.

load -> [normalise -> analyse -> score -> select -> remove or mask -> removed == masked? -> recover] -> verify
     -> deliver (quantise, pack, limits) -> save

What is in brackets is one step (steps.py); there are as many as the recipe's iterations. With retraining a training
follows each (retraining.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import model_io
from onnxprune.data.calibration import AnyArrays, read_calibration
from onnxprune.errors import OnnxPruneError
from onnxprune.model_io.atomic import together
from onnxprune.pipeline import checkpoint as retraining_state
from onnxprune.pipeline import deliver as delivery
from onnxprune.pipeline import target as targets
from onnxprune.pipeline.given import AnyData, AnyModel, Given
from onnxprune.pipeline.preflight import check_data, check_method, check_target, ensure_measured, recovery_methods
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.record import FileId
from onnxprune.pipeline.result import Clock, Progress, Result, result_of
from onnxprune.pipeline.step import State, Steps
from onnxprune.recipe.recipe import Recipe, make_recipe
from onnxprune.recipe.schedules import sparsities
from onnxprune.verify.verdict import Verdict, verify

__all__ = ["AnyData", "AnyModel", "Clock", "Progress", "Result", "prepare", "prune", "save"]


def prune(
    model: AnyModel,
    recipe: Recipe | None = None,
    *,
    verification: bool = True,
    latency: bool = True,
    data: AnyData | None = None,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    calibration: AnyArrays | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Prune a model.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        recipe: All settings; or give them by keyword: ``prune(model, sparsity=0.9, structure="channels")``.
        verification: Measure the result in ONNX Runtime; without it nothing is known of it.
        latency: Measure the latency ratio as part of the verification.
        data: What to retrain on (``retrain=True``): a path, ``module:function``, or arrays by name.
        eval_data: Labelled inputs, to measure a metric before and after: an .npz; when retraining, anything that
            ``data`` may be, and by default the share of them that is held out.
        metric: ``accuracy``, ``top5`` or ``mse``, when retraining also ``agreement`` or ``module:function``; by default
            the first that fits the data.
        calibration: Inputs, as an .npz or as arrays by name, with ``label`` where there are labels: for criteria that
            look at data, for a scan of sensitivity, for recovery (which they turn on), and for ``quantize="int8"``.
            By default criteria take them from ``data`` when retraining, int8 from ``eval_data``.
        checkpoint: Folder that a retraining run keeps its state in.
        resume: Go on with the run that the checkpoint holds; what it holds is replaced otherwise.
        progress: Called with the name of each stage.
        **settings: Fields of `Recipe`; those that hold settings of their own also take a dict of them.

    Returns:
        The pruned model with its record and figures.

    Raises:
        ModelError: The model cannot be read.
        RecipeError: A setting is wrong, or the loss of the training is no longer a number.
        DataError: The data do not fit the model.
        NothingToPrune: No weight of the model may be pruned under this recipe.
        VerificationError: The result is not what was promised.
    """
    recipe = recipe or make_recipe(**settings)
    check_method(recipe, calibration, retrains=recipe.retrain is not None)
    has_metric = eval_data is not None or recipe.retrain is not None
    ensure_measured(recipe.require, verification=verification, latency=latency, metric=has_metric)
    check_data(recipe, data, eval_data, resume)
    check_target(recipe, metric=has_metric, verification=verification)
    clock = Clock(progress)
    original = clock("load", lambda: model_io.load_any(model))
    samples = None
    if calibration is not None:
        limit, seed = recipe.calibration_samples, recipe.seed
        samples = clock("read calibration", lambda: read_calibration(calibration, original, limit, seed))
    folder = None if checkpoint is None else Path(checkpoint)
    given = Given(data, eval_data, metric, calibration, samples, folder, resume, verification, latency)
    if recipe.target is None:
        return _run(original, recipe, given, clock)
    at = _begin_search(recipe, given)
    try:
        run = partial(_try, original, given, clock)
        return targets.reach(original, recipe, run, eval_data, metric, progress, at=at)
    except OnnxPruneError:
        if folder is not None:
            retraining_state.forget_unless_started(folder)
        raise


def _begin_search(recipe: Recipe, given: Given) -> float | None:
    """Prepare the checkpoint's folder for a search that trains; the sparsity to go on with, where it holds one.

    Raises:
        RecipeError: It holds another search.
    """
    folder = given.checkpoint
    if folder is None or recipe.retrain is None:
        return None
    if recipe.target == "max_drop":
        retraining_state.begin(folder, {"recipe": recipe.model_dump(mode="json")}, resume=given.resume)
        return None
    return retraining_state.held_sparsity(folder) if given.resume else None


def _try(original: ir.Model, given: Given, clock: Clock, recipe: Recipe, *, whole: bool) -> Result:
    """One run of a search: without verification, unless it is whole."""
    if whole:
        if given.checkpoint is not None and recipe.target == "max_drop":
            folder = retraining_state.folder_of_try(given.checkpoint, recipe.sparsity)
            held = (folder / retraining_state.RUN).exists()
            given = replace(given, checkpoint=folder, resume=given.resume and held)
        return _run(original, recipe, given, clock)
    data, metric = delivery.measurable(given.eval_data, given.metric)
    given = replace(given, eval_data=data, metric=metric, verification=False, latency=False)
    return _run(original, recipe, given, Clock(None))


def _run(original: ir.Model, recipe: Recipe, given: Given, clock: Clock) -> Result:
    """Prune, with training or without, and bring the model into the form that is delivered."""
    latency = given.latency
    if recipe.retrain is None:
        assert not isinstance(given.eval_data, Mapping)
        eval_data, metric = given.eval_data, given.metric
        check = partial(verify, original, seed=recipe.seed, latency=latency, eval_data=eval_data, metric=metric)
        checks = {"verification": given.verification, "eval_data": eval_data}
        result = _prune_once(original, recipe, given, clock, check if given.verification else None, checks)
    else:
        from onnxprune.pipeline.given import Wishes
        from onnxprune.pipeline.loop import prune_and_retrain

        assert given.data is not None
        wishes = Wishes(
            given.data, given.eval_data, given.metric, given.samples, given.checkpoint, given.resume,
            given.verification, latency,
        )  # fmt: skip
        result = prune_and_retrain(original, recipe, wishes, clock)
        eval_data, metric = delivery.measurable(given.eval_data, given.metric)
    result = replace(result, source=_file_id(original))
    finish = partial(delivery.deliver, original, result, latency=latency, eval_data=eval_data, metric=metric)
    finish = partial(finish, calibration=given.calibration)
    delivered: Result = clock("deliver", finish)
    return delivered


def _prune_once(
    original: ir.Model,
    recipe: Recipe,
    given: Given,
    clock: Clock,
    check: Callable[..., Verdict] | None,
    checks: Mapping[str, Any],
) -> Result:
    """Prune without training, in as many steps as the recipe says.

    Args:
        check: Measures the result; None where nothing is verified.
        checks: How each step is checked: fields of `Steps`.
    """
    structure = clock("analyse", lambda: prepare(original.clone()))
    methods = recovery_methods(recipe, given=given.samples is not None)
    own: dict[str, Any] = {"methods": methods, "calibration": given.samples, "progress": clock.progress}
    steps = Steps.of(structure, recipe, memory=given.memory, **own, **checks)
    state = State(original)
    wanted = sparsities(recipe.schedule, recipe.iterations, recipe.sparsity, recipe.initial_sparsity)
    for number, sparsity in enumerate(wanted, 1):
        name = "prune" if len(wanted) == 1 else f"prune {number}/{len(wanted)}"
        step = partial(steps.prune, state, sparsity, number, structure if number == 1 else None)
        state = clock(name, step)
    if recipe.remove_dead:
        state, _ = clock("remove dead units", partial(steps.clean, state))
    verdict = None
    if check is not None:
        verdict = clock("verify", lambda: check(state.model, removed_vs_masked=state.trace.difference))
    return result_of(state.model, recipe, steps.prunable, state.trace, verdict, clock)


def save(result: Result, path: str | Path, *, force: bool = False, record: str | Path | None = None) -> FileId:
    """Write the pruned model, and its record where a path for it is given; each appears whole or not at all.

    Raises:
        ModelError: The output is the input, exists (without ``force``), or one of both cannot be written.
    """
    with together():
        output = FileId(file=str(path), sha256=delivery.write(result, path, force=force))
        if record is not None:
            result.record(output).save(record)
    return output


def _file_id(model: ir.Model) -> FileId:
    source = model_io.source_of(model)
    if source is None:
        return FileId()
    return FileId(file=str(source.path), sha256=model_io.sha256(source.path))
