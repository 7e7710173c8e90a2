"""A run: the only place that knows the order of its stages.

    preflight -> load -> loop [choose -> apply -> removed == masked? -> recover -> train] -> verify -> deliver -> save

The loop (loop.py) does what is in brackets once for each sparsity of the schedule; a recipe with a target looks for
the sparsity by runs of its own (target.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune import model_io
from onnxprune.data.calibration import Calibration
from onnxprune.data.readers import AnyData, Data, open_data
from onnxprune.data.working import give_inputs, give_samples
from onnxprune.errors import RecipeError
from onnxprune.model_io.atomic import together
from onnxprune.pipeline.aim import Aim, figures_wanted
from onnxprune.pipeline.clock import Clock, Progress
from onnxprune.pipeline.compete import BUDGETS, NO_SAMPLES, compete
from onnxprune.pipeline.deliver import deliver, write
from onnxprune.pipeline.loop import run_loop
from onnxprune.pipeline.narrow import free_interface
from onnxprune.pipeline.preflight import check_labels, looks_at_data, preflight, recovery_methods
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.record import FileId
from onnxprune.pipeline.result import Result, result_of
from onnxprune.pipeline.resume import open_journal
from onnxprune.pipeline.run_folder import begin_search, folder_of_try, forgotten_unless_started, holds_run
from onnxprune.pipeline.run_inputs import AnyModel, RunInputs
from onnxprune.pipeline.runtime_settings import write_beside
from onnxprune.pipeline.step import State, Steps
from onnxprune.pipeline.target import figure_of, is_limit, reach
from onnxprune.recipe.fields import is_synthetic
from onnxprune.recipe.recipe import Recipe, make_recipe
from onnxprune.recipe.schedules import sparsities
from onnxprune.recipe.settings import Settings
from onnxprune.runtime.heap import few_collections
from onnxprune.runtime.in_blocks import checked_by
from onnxprune.runtime.jobs import with_jobs
from onnxprune.runtime.libraries import custom_operators
from onnxprune.scoring.cache import ScoreCache
from onnxprune.structure.structure import Structure
from onnxprune.synthetic.samples import NOTE, calibration_of
from onnxprune.verification.verdict import verify

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from onnxprune.pipeline.trainer import Trainer

__all__ = ["prune", "save"]


def prune(
    model: AnyModel,
    recipe: Recipe | None = None,
    *,
    verification: bool = True,
    latency: bool = True,
    data: AnyData | None = None,
    eval_data: AnyData | None = None,
    metric: str | None = None,
    calibration: AnyData | None = None,
    inputs: AnyData | None = None,
    custom_ops: Sequence[str | Path] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Prune a model.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        recipe: All settings; or give them by keyword: ``prune(model, sparsity=0.9, structure="channels")``.
        verification: Measure the result in ONNX Runtime; without it nothing is known of it.
        latency: Measure the latency ratio as part of the verification.
        data: What to retrain on (``retrain=True``): a path, ``module:function``, or arrays by name.
        eval_data: Labelled inputs, to measure a metric before and after; by default what retraining holds out.
        metric: Its name, such as ``accuracy``, or ``module:function``; by default the first that fits the data.
        calibration: Inputs for criteria, recovery (which they turn on) and int8; ``synthetic`` makes them up.
        inputs: Inputs that the model runs with, one array for each, instead of made-up ones.
        custom_ops: Libraries of custom operators that the model needs, loaded in every session.
        checkpoint: Folder that keeps the state after each training, or each layer fitted where nothing is trained.
        resume: Go on with the run that the checkpoint holds; what it holds is replaced otherwise.
        jobs: Tries or layers measured at a time, as joblib has it; None is one, or what ``parallel_config`` says.
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

    >>> import onnxprune
    >>> result = onnxprune.prune("models/digits_mlp.onnx", sparsity=0.5, structure="channels")
    >>> result.verdict.after.parameters < 0.6 * result.verdict.before.parameters
    True
    """
    recipe = recipe or make_recipe(**settings)
    folder = None if checkpoint is None else Path(checkpoint)
    asked = RunInputs(data, eval_data, metric, calibration, None, folder, resume, verification, latency, inputs=inputs)
    preflight(recipe, asked)
    clock, run = Clock(progress), _run if recipe.target is None else _search
    with custom_operators(custom_ops), with_jobs(jobs), checked_by(recipe.verify_by):
        with few_collections():
            original = clock("load", lambda: model_io.load_any(model))
        return run(original, recipe, _opened(original, recipe, asked, clock), clock)


def _opened(original: ir.Model, recipe: Recipe, inputs: RunInputs, clock: Clock) -> RunInputs:
    """Read the calibration data and open the evaluation data, before any work is done.

    Raises:
        DataError: They cannot be read, or do not fit the model.
        RecipeError: The criterion looks at labels, and the calibration data have none.
    """
    calibration, eval_data, samples = inputs.calibration, inputs.eval_data, None
    give_inputs(original, inputs.inputs, recipe.reading)
    if (asked := calibration) is not None:
        stage = "make up calibration" if is_synthetic(calibration) else "read calibration"
        samples = clock(stage, lambda: calibration_of(original, asked, recipe, clock.progress))
        check_labels(recipe, samples)
    if eval_data is not None:
        eval_data = open_data(original, eval_data, recipe.reading)
    if samples is not None:
        give_samples(original, samples.inputs)
    elif isinstance(eval_data, Data):
        give_samples(original, eval_data)
    if samples is not None and samples.made_up:
        calibration = dict(samples.inputs)
    if recipe.interface == "narrow":
        free_interface(original)
    return replace(inputs, eval_data=eval_data, calibration=calibration, samples=samples)


def save(result: Result, path: str | Path, *, force: bool = False, record: str | Path | None = None) -> FileId:
    """Write the pruned model, and its record where a path for it is given; each appears whole or not at all.

    Raises:
        ModelError: One of both is the input, exists (without ``force``), or cannot be written.

    >>> import onnxprune
    >>> result = onnxprune.prune("models/digits_mlp.onnx", sparsity=0.9, pack="auto", latency=False)
    >>> onnxprune.save(result, "small.onnx", record="small.json").file
    'small.onnx'
    """
    if record is not None:
        model_io.check_output(record, force=force, source=model_io.source_of(result.model))
    with together():
        if result.interface is not None:
            write_beside(Path(path), result.model, result.interface, force=force)
        output = FileId(file=str(path), sha256=write(result, path, force=force))
        if record is not None:
            result.record(output).save(record)
    return output


def _search(original: ir.Model, recipe: Recipe, inputs: RunInputs, clock: Clock) -> Result:
    """Look for the sparsity that the recipe's target asks for."""
    folder = None if recipe.retrain is None else inputs.checkpoint
    sparsity = None if folder is None else begin_search(folder, recipe, resume=inputs.resume)
    with forgotten_unless_started(folder):
        notes: tuple[str, ...] = ()
        if recipe.parts.joint and recipe.target in BUDGETS and inputs.samples is not None and recipe.retrain is None:
            cache = ScoreCache()  # of the samples that are fitted to
            winner = compete(
                original, recipe, inputs.samples, partial(_candidate, original, inputs, cache), clock.progress
            )
            recipe, notes = winner.recipe, (winner.note,)
        run, silent = partial(_try, original, inputs, clock), partial(_try, original, inputs, Clock())
        result = reach(original, recipe, run, silent, inputs.eval_data, inputs.metric, clock.progress, at=sparsity)
        return replace(result, notes=(*notes, *result.notes))


def _candidate(
    original: ir.Model, inputs: RunInputs, cache: ScoreCache, recipe: Recipe, samples: Calibration
) -> Result:
    """Bring a recipe to its target on some of the samples; nothing is verified."""
    some = replace(inputs, samples=samples, cache=cache, verification=False, latency=False, checkpoint=None)
    run = partial(_try, original, some, Clock())
    return reach(original, recipe, run, run, inputs.eval_data, inputs.metric, None)


def _try(original: ir.Model, inputs: RunInputs, clock: Clock, recipe: Recipe, *, whole: bool) -> Result:
    """One run of a search: without verification, unless it is whole."""
    if not whole:
        inputs = replace(inputs, verification=False, latency=False)
        return _run(original, recipe, inputs, Clock())
    if inputs.checkpoint is not None and recipe.target == "max_drop":
        folder = folder_of_try(inputs.checkpoint, recipe.sparsity)
        inputs = replace(inputs, checkpoint=folder, resume=inputs.resume and holds_run(folder))
    return _run(original, recipe, inputs, clock)


def _run(original: ir.Model, recipe: Recipe, inputs: RunInputs, clock: Clock) -> Result:
    """Prune, with training or without, and bring the model into the form that is delivered."""
    if recipe.retrain is None:
        result = _pruned(original, recipe, inputs, clock)
    else:
        result = _pruned_and_trained(original, recipe, inputs, clock)
    if inputs.samples is not None and inputs.samples.made_up:
        result = replace(result, notes=(*result.notes, NOTE.format(how=inputs.samples.made_up)))
    if recipe.parts.joint and inputs.samples is None and recipe.retrain is None:
        result = replace(result, notes=(*result.notes, NO_SAMPLES))

    def finish() -> Result:  # reads the file's hash as late as can be
        return _delivered(original, replace(result, source=_file_id(original)), inputs, clock.progress)

    return clock("deliver", finish)


def _delivered(original: ir.Model, result: Result, inputs: RunInputs, progress: Progress | None = None) -> Result:
    """The result in the form that is written."""
    return deliver(
        original,
        result,
        latency=inputs.latency,
        eval_data=inputs.eval_data,
        metric=inputs.metric,
        calibration=inputs.calibration,
        samples=inputs.samples,
        progress=progress,
    )


def _pruned(original: ir.Model, recipe: Recipe, inputs: RunInputs, clock: Clock) -> Result:
    """Prune without training."""
    with few_collections() if inputs.samples is None else nullcontext():  # samples make large garbage
        structure = clock("analyse", lambda: prepare(original.clone()))
        steps = _steps(structure, recipe, inputs, clock.progress)
        steps = replace(steps, journal=open_journal(original, recipe, inputs))
        start = State(original, structure=structure, cache=inputs.cache)
        run = partial(run_loop, remove_dead=recipe.remove_dead, keep_masks=recipe.parts.rewritten, clock=clock)
        run = partial(run, aim=_aim(original, recipe, inputs, steps))
        with forgotten_unless_started(inputs.checkpoint):
            state = run(start, steps, _schedule(recipe))
    verdict = None
    if inputs.verification:
        check = partial(verify, original, state.model, seed=recipe.seed)
        check = partial(check, removed_vs_masked=state.trace.difference, unproved=state.trace.unproved)
        check = partial(check, latency=inputs.latency, eval_data=inputs.eval_data, metric=inputs.metric)
        verdict = clock("verify", check)
    return result_of(state, recipe, steps.prunable, state.trace.gone, verdict, clock)


def _pruned_and_trained(original: ir.Model, recipe: Recipe, inputs: RunInputs, clock: Clock) -> Result:
    """Prune and train in turns.

    Raises:
        RecipeError: The loss is no longer a number; the best model so far is in the checkpoint's folder.
    """
    from onnxprune.pipeline.trainer import keep_best, notes_of_training, open_trainer, verify_trained

    trainer = open_trainer(original, recipe, inputs, clock)
    with forgotten_unless_started(inputs.checkpoint):
        structure = clock("analyse", lambda: prepare(original.clone()))
        steps = _steps(structure, recipe, inputs, clock.progress, trainer)
        schedule, start = _schedule(recipe), State(trainer.original)
        aim = _aim(original, recipe, inputs, steps)
        state = run_loop(start, steps, schedule, trainer, aim=aim, remove_dead=recipe.remove_dead, clock=clock)
    if state.diverged:
        raise RecipeError(state.diverged + keep_best(state, trainer.store))
    state.model.graph.meta.update(original.graph.meta)
    verdict = None
    if inputs.verification:
        verdict = clock("verify", lambda: verify_trained(original, state, trainer, latency=inputs.latency))
    zeros = sum(int((~mask).sum()) for mask in state.masks.values())
    gone = steps.prunable - (steps.left(prepare(state.model.clone())) - zeros)
    result = result_of(state, recipe, steps.prunable, gone, verdict, clock)
    return replace(result, notes=(*result.notes, *notes_of_training(state, trainer.sets)))


def _steps(
    structure: Structure, recipe: Recipe, inputs: RunInputs, progress: Progress | None, trainer: Trainer | None = None
) -> Steps:
    """What prunes; with training, samples of its data stand in for calibration data.

    Raises:
        NothingToPrune: No weight may be pruned.
    """
    methods = recovery_methods(recipe, calibrated=inputs.samples is not None)
    samples = inputs.samples
    if trainer is not None and samples is None and (methods or looks_at_data(recipe) or recipe.parts.joint):
        samples = trainer.samples(recipe)
    return Steps.of(
        structure,
        recipe,
        methods=methods,
        calibration=samples,
        verification=inputs.verification,
        eval_data=inputs.eval_data if trainer is None else None,
        progress=progress,
    )


def _aim(original: ir.Model, recipe: Recipe, inputs: RunInputs, steps: Steps) -> Aim | None:
    """What finds the sparsity of each of several steps towards a budget."""
    if not _aims(recipe):
        return None
    assert recipe.target is not None
    plain = recipe.model_copy(update={"require": ()})
    figure = figure_of(original, plain, inputs.eval_data, inputs.metric)
    unmeasured = replace(inputs, latency=False)

    def of_state(state: State) -> float:
        result = result_of(state, plain, steps.prunable, state.trace.gone, None, Clock())
        return figure(_delivered(original, result, unmeasured))

    wanted = figures_wanted(recipe, float(getattr(recipe, recipe.target)))
    return Aim(wanted, of_state, steps, under=is_limit(recipe.target))


def _aims(recipe: Recipe) -> bool:
    """Whether each step looks for its own sparsity."""
    return recipe.target in BUDGETS and recipe.iterations > 1


def _schedule(recipe: Recipe) -> list[float]:
    """The sparsity after each step, or what the steps will look for near."""
    if _aims(recipe):
        return [recipe.sparsity] * recipe.iterations
    return sparsities(recipe.schedule, recipe.iterations, recipe.sparsity, recipe.initial_sparsity)


def _file_id(model: ir.Model) -> FileId:
    """The file of a model and its hash.

    Raises:
        ModelError: It was changed since it was read.
    """
    source = model_io.source_of(model)
    if source is None:
        return FileId()
    file = FileId(file=str(source.path), sha256=model_io.sha256(source.path))
    model_io.ensure_unchanged(model)  # so this is the hash of what was read
    return file
