"""Prune and retrain in turns: a Recipe becomes the callbacks of `bridge.training.iterate`, its result a `Result`.

    sets = data opened, a share held out                                            (retraining_data.py)
    iterate: for each iteration   prune   one of `steps.Steps`: choose, mask or remove, check that removed == masked
                                          while no training has touched the numbers, recover
                                  train   masks held exactly
                                  clean   remove dead units, if the recipe says so
    verify: masks hold, the interface is kept, it loads and runs, the metric before and after in ONNX Runtime

What the iterations did to the original (kept indices, dead units) travels in the model's own metadata until the end,
so that a checkpoint holds model and history in one file and a resumed run ends with the same record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import ValidationError

from onnxprune import model_io
from onnxprune.bridge.parameters import Role, role_of, trainable_values
from onnxprune.data.measures import get_metric
from onnxprune.data.sets import Sets, identity, open_sets, samples_of, training_metric
from onnxprune.errors import ModelError, OnnxPruneError, RecipeError, VerificationError
from onnxprune.passes import Normalise, Tidy
from onnxprune.pipeline import checkpoint as retraining_state
from onnxprune.pipeline.given import Wishes
from onnxprune.pipeline.preflight import looks_at_data, needs_labels, recovery_methods
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.result import Clock, Result, result_of
from onnxprune.pipeline.step import State, Steps, Trace
from onnxprune.recipe.granularity import NM
from onnxprune.recipe.recipe import Recipe, sentence
from onnxprune.training import Event, IterateResult, IterateSettings, Masks, TrainSettings, iterate
from onnxprune.training.progress import describe
from onnxprune.training.turn import fingerprint
from onnxprune.verify.evaluate import measured
from onnxprune.verify.verdict import Verdict, _same_interface, verify

_TRACE = "onnxprune.pipeline.loop"


def prune_and_retrain(original: ir.Model, recipe: Recipe, wishes: Wishes, clock: Clock) -> Result:
    """Prune and retrain as often as the recipe says, then verify.

    Raises:
        DataError: The data do not fit the model.
        RecipeError: Settings that contradict each other, or a loss that is no longer a number.
        NothingToPrune: No weight may be pruned under this recipe.
        VerificationError: The result is not what was promised.
    """
    settings = _turns(recipe, wishes)
    sets = clock(
        "read data", lambda: open_sets(original, wishes.data, wishes.eval_data, settings.train, recipe.reading)
    )
    metric = settings.train.metric
    settings = settings.model_copy(update={"train": training_metric(settings.train, sets)})
    start = original.clone()
    Normalise()(start)
    Tidy()(start)
    steps = clock("analyse", lambda: _steps(original, recipe, wishes, sets, clock.progress))
    done = clock("retrain", lambda: _iterate(start, settings, steps, sets, wishes, clock))
    model, trace = done.model, _trace_of(done.model)
    model.metadata_props.pop(_TRACE, None)
    model.graph.meta.update(original.graph.meta)
    verdict = None
    if wishes.verification:
        verdict = clock("verify", lambda: _verify(original, model, done, trace, sets, metric, recipe, wishes))
    zeros = sum(int(np.count_nonzero(~mask)) for mask in done.masks.values())
    gone = steps.prunable - (steps.left(prepare(model.clone())) - zeros)
    result = result_of(model, recipe, steps.prunable, replace(trace, gone=gone), verdict, clock)
    notes = (*result.notes, *([sets.note] if sets.note else []), *_stops(done))
    return replace(result, notes=notes, retraining=tuple(asdict(entry) for entry in done.history))


def _steps(
    original: ir.Model, recipe: Recipe, wishes: Wishes, sets: Sets, progress: Callable[[str], None] | None
) -> Steps:
    """What happens before each training; samples of the training data stand in for calibration data.

    Raises:
        RecipeError: The criterion needs labels, and there are none.
        NothingToPrune: No weight may be pruned.
    """
    methods = recovery_methods(recipe, given=wishes.calibration is not None)
    if recipe.prune_every is not None:
        methods = ()  # the training itself is under way at each pruning
    calibration = wishes.calibration
    if calibration is None and (methods or looks_at_data(recipe)):
        calibration = samples_of(original, sets.train, recipe.calibration_samples, recipe.seed)
        if needs_labels(recipe) and calibration.labels is None:
            raise RecipeError(f"--criterion {recipe.criterion} needs labels, which --data have none of: --calibration")
    structure = prepare(original.clone())
    given: dict[str, Any] = {"methods": methods, "calibration": calibration, "progress": progress}
    return Steps.of(structure, recipe, verification=wishes.verification, **given)


def _turns(recipe: Recipe, wishes: Wishes) -> IterateSettings:
    """The settings of the iterations, as the training code takes them.

    Raises:
        RecipeError: They contradict each other, or name a metric that does not exist.
    """
    assert recipe.retrain is not None
    train, last = _of_run(recipe.retrain, recipe, wishes), recipe.retrain_last
    get_metric(train.metric or "accuracy")
    if recipe.parts.removes and recipe.alternate:
        raise RecipeError("--alternate prunes single weights of one kind of layer at a time: --structure weights")
    if recipe.parts.removes and recipe.survivors == "rewind":
        raise RecipeError("--survivors rewind goes back to weights of the original's shapes: --structure weights")
    if recipe.prune_every is not None and (
        recipe.parts.units or isinstance(recipe.parts.zeros, NM) or recipe.quality is not None
    ):
        raise RecipeError("--prune-every zeroes weights or blocks by share, neither units, N:M nor by --quality")
    if recipe.shrink != "no" and recipe.parts.mixed:
        raise RecipeError("--shrink needs to know what goes in one step: not with a mix of structures")
    if (recipe.survivors == "rewind") != (recipe.rewind_to is not None):
        raise RecipeError("--survivors rewind and --rewind-to, the file with the weights, go together")
    fields = {name: getattr(recipe, name) for name in IterateSettings.model_fields if name in Recipe.model_fields}
    fields |= {"weights": recipe.survivors, "train": train}
    fields |= {"last": None if last is None else _of_run(last, recipe, wishes)}
    try:
        return IterateSettings.model_validate(fields)
    except ValidationError as error:
        raise RecipeError(sentence(error)) from None


def _of_run(train: TrainSettings, recipe: Recipe, wishes: Wishes) -> TrainSettings:
    """The settings with the run's seed and metric, where they name none of their own."""
    update: dict[str, Any] = {} if "seed" in train.model_fields_set else {"seed": recipe.seed}
    if train.metric is None:
        update["metric"] = wishes.metric
    return train.model_copy(update=update)


def _iterate(
    start: ir.Model, settings: IterateSettings, steps: Steps, sets: Sets, wishes: Wishes, clock: Clock
) -> IterateResult:
    """Run the iterations, with their state in the checkpoint's folder.

    Raises:
        RecipeError: The loss is no longer a number; the best so far is in the checkpoint's folder.
    """
    folder, callbacks = wishes.checkpoint, _Callbacks(steps)
    if folder is not None:
        run = {
            "recipe": steps.recipe.model_dump(mode="json"),
            "metric": settings.train.metric,
            "training data": identity(wishes.data),
            "calibration data": None if wishes.calibration is None else wishes.calibration.digest,
            "model": fingerprint(start, settings),
        }
        retraining_state.begin(folder, run, resume=wishes.resume)
        _together(settings.train)
    try:
        done = iterate(
            start,
            settings,
            callbacks.prune,
            sets.train,
            validation=sets.validation,
            choose=callbacks.choose,
            clean=callbacks.clean if steps.recipe.remove_dead else None,
            checkpoint=folder,
            progress=_told(clock.progress),
        )
        if done.diverged:
            raise RecipeError(done.diverged + _keep_best(done.model, folder))
    except OnnxPruneError:
        if folder is not None:
            retraining_state.forget_unless_started(folder)
        raise
    return done


def _keep_best(model: ir.Model, folder: Path | None) -> str:
    """Keep the best so far in the checkpoint's folder; return the sentence on where it is."""
    if folder is None:
        return ""
    path = folder / retraining_state.BEST
    if retraining_state.is_main():
        model = model.clone()
        model.metadata_props.pop(_TRACE, None)
        model_io.save(model, path, force=True)
    return f" It is '{path}', and nothing else was written."


def _together(settings: TrainSettings) -> None:
    """Let several processes wait for each other, so that none reads the folder before the first has prepared it."""
    from onnxprune.training.loop import make_accelerator

    make_accelerator(settings).wait_for_everyone()


def _told(progress: Callable[[str], None] | None) -> Callable[[Event], None] | None:
    """Training events as stages of the run."""
    if progress is None:
        return None

    def tell(event: Event) -> None:
        place = f"retrain {event.iteration}/{event.iterations}, step {event.step:,} of {event.steps:,}"
        progress(f"{place}  {describe(event)}")

    return tell


# --- what one iteration does to the model


def _trace_of(model: ir.Model) -> Trace:
    """The trace that the model carries."""
    text = model.metadata_props.get(_TRACE)
    if text is None:
        return Trace()
    plain = json.loads(text)
    kept = {n: {int(a): np.asarray(i, np.int64) for a, i in axes.items()} for n, axes in plain.pop("kept").items()}
    left, steps, blocks = (tuple(plain.pop(name)) for name in ("left", "steps", "blocks"))
    return Trace(kept=kept, left=left, steps=steps, blocks=blocks, **plain)


def _put(trace: Trace, model: ir.Model) -> None:
    """Let the model carry this trace."""
    kept = {n: {str(a): np.asarray(i).tolist() for a, i in axes.items()} for n, axes in trace.kept.items()}
    model.metadata_props[_TRACE] = json.dumps(asdict(replace(trace, kept={})) | {"kept": kept})


@dataclass(frozen=True)
class _Callbacks:
    """The steps as `iterate` calls them, with the trace in the model."""

    steps: Steps

    def prune(self, model: ir.Model, sparsity: float, iteration: int) -> tuple[ir.Model, Masks]:
        """Prune a copy of the model until `sparsity` of the original is gone."""
        state = self.steps.prune(State(model, _trace_of(model)), sparsity, iteration)
        _put(state.trace, state.model)
        return state.model, _trained_masks(state)

    def choose(self, model: ir.Model, sparsity: float, iteration: int) -> Masks:
        """What `prune` would leave as it is."""
        return self.steps.chosen(State(model, _trace_of(model)), sparsity, iteration)

    def clean(self, model: ir.Model) -> tuple[ir.Model, Mapping[str, Mapping[int, Sequence[int]]]]:
        """Remove the dead units of a copy of the model."""
        state, kept = self.steps.clean(State(model, _trace_of(model)))
        _put(state.trace, state.model)
        return state.model, {n: {axis: at.tolist() for axis, at in axes.items()} for n, axes in kept.items()}


def _trained_masks(state: State) -> Masks:
    """The masks by name, of the weights that a training could change.

    Raises:
        ModelError: A pruned weight of a subgraph, which the training could not hold at zero.
    """
    pruned = state.model
    reached, opsets = trainable_values(pruned), dict(pruned.graph.opset_imports)
    inner = {name for graph in pruned.graph.subgraphs() for name in graph.initializers}
    masks = {}
    for name, mask in state.masks.items():
        if name in inner and not mask.all():
            raise ModelError(f"the weight '{name}' lies in a subgraph, where retraining cannot hold it: --exclude it")
        now = pruned.graph.initializers.get(name)
        if now is not None and role_of(now, reached, opsets).role is not Role.BUFFER:
            masks[name] = mask
    return masks


# --- the end


def _verify(
    original: ir.Model,
    model: ir.Model,
    done: IterateResult,
    trace: Trace,
    sets: Sets,
    metric: str | None,
    recipe: Recipe,
    wishes: Wishes,
) -> Verdict:
    """Measure the trained model against the original.

    Raises:
        VerificationError: A pruned weight is not zero, the interface is another, or it does not run.
        DataError: The evaluation data do not fit.
    """
    _masks_hold(model, done.masks)
    _same_interface(original, model)
    verdict = verify(original, model, removed_vs_masked=trace.difference, seed=recipe.seed, latency=wishes.latency)
    if sets.evaluation is None:
        return verdict
    name = done.history[-1].trainings[-1].metric_name if done.history else ""
    return replace(verdict, metric=measured(original, model, sets.evaluation, metric, name))


def _masks_hold(model: ir.Model, masks: Masks) -> None:
    for name, mask in masks.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None or not value.const_value.dtype.is_floating_point():
            continue  # a quantised weight is written back to its zero point
        array = value.const_value.numpy()
        if array.shape != mask.shape or np.any(array[~mask] != 0):
            raise VerificationError(f"pruned weights of '{name}' are not zero after retraining; please report this")


def _stops(done: IterateResult) -> list[str]:
    """Which trainings ended early, and why."""
    return [
        f"iteration {entry.iteration}: training stopped early, {training.stopped}"
        for entry in done.history
        for training in entry.trainings
        if training.stopped
    ]
