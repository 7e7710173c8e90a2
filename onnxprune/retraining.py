"""Prune and retrain in turns: a Recipe becomes the callbacks of `bridge.training.iterate`, its result a `Result`.

    sets = data opened, a share held out                                            (retraining_data.py)
    iterate: for each iteration   prune   analyse, plan, mask or remove; removed == masked is checked here, on numbers
                                          that no training has touched yet
                                  train   masks held exactly
                                  clean   remove dead units, if the recipe says so
    verify: masks hold, the interface is kept, it loads and runs, the metric before and after in ONNX Runtime

What the iterations did to the original (kept indices, dead units) travels in the model's own metadata until the end,
so that a checkpoint holds model and history in one file and a resumed run ends with the same record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io, retraining_state
from onnxprune.bridge.parameters import Role, role_of, trainable_values
from onnxprune.bridge.training import Event, IterateResult, IterateSettings, Masks, TrainSettings, get_metric, iterate
from onnxprune.bridge.training.iterate import fingerprint
from onnxprune.bridge.training.progress import describe
from onnxprune.errors import ModelError, OnnxPruneError, RecipeError, VerificationError
from onnxprune.passes import Normalise, RemoveDeadUnits, Tidy
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.pipeline import AnyData, Clock, Result
from onnxprune.planning import Plan, apply_plan, make_plan, masked_twin, prepare, shortfall
from onnxprune.recipe import Recipe
from onnxprune.record import renamed_copies
from onnxprune.retraining_data import Sets, identity, measured, open_sets, training_metric
from onnxprune.scoring import prunable_weights
from onnxprune.scoring.weights import total_size
from onnxprune.selection.eligible import eligible_weights, protected_size
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.verification import Verdict, verify

_TRACE = "onnxprune.retraining"
_OF_VERIFY = ("accuracy", "top5", "mse")


@dataclass(frozen=True)
class Wishes:
    """What a run is given beside model and recipe; see `pipeline.prune`."""

    data: AnyData
    eval_data: AnyData | None = None
    metric: str | None = None
    checkpoint: Path | None = None
    resume: bool = False
    verification: bool = True
    latency: bool = True


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
    steps = clock("analyse", lambda: _Steps.of(original, recipe, wishes.verification))
    done = clock("retrain", lambda: _iterate(start, settings, steps, sets, wishes, clock))
    model, trace = done.model, _Trace.of(done.model)
    model.metadata_props.pop(_TRACE, None)
    model.graph.meta.update(original.graph.meta)
    verdict = None
    if wishes.verification:
        verdict = clock("verify", lambda: _verify(original, model, done, trace, sets, metric, recipe, wishes))
    return _result(model, recipe, steps, done, trace, verdict, sets, clock)


def for_delivery(eval_data: AnyData | None, metric: str | None) -> tuple[str | Path | None, str | None]:
    """What of these `verification.verify` can measure again on a packed model."""
    plain = isinstance(eval_data, (str, Path)) and Path(eval_data).suffix == ".npz"
    return (eval_data if plain else None), metric if metric in _OF_VERIFY else None  # type: ignore[return-value]


def _turns(recipe: Recipe, wishes: Wishes) -> IterateSettings:
    """The settings of the iterations, as the training code takes them.

    Raises:
        RecipeError: They contradict each other, or name a metric that does not exist.
    """
    assert recipe.retrain is not None
    train, last = _of_run(recipe.retrain, recipe, wishes), recipe.retrain_last
    get_metric(train.metric or "accuracy")
    if recipe.structure == "channels" and recipe.alternate:
        raise RecipeError("--alternate prunes single weights of one kind of layer at a time: --structure weights")
    if recipe.structure == "channels" and recipe.survivors == "rewind":
        raise RecipeError("--survivors rewind goes back to weights of the original's shapes: --structure weights")
    if (recipe.survivors == "rewind") != (recipe.rewind_to is not None):
        raise RecipeError("--survivors rewind and --rewind-to, the file with the weights, go together")
    if recipe.initial_sparsity > recipe.sparsity and recipe.quality is None:
        raise RecipeError("--initial-sparsity is more than --sparsity")
    return IterateSettings(
        sparsity=recipe.sparsity,
        initial_sparsity=recipe.initial_sparsity,
        iterations=recipe.iterations,
        schedule=recipe.schedule,
        weights=recipe.survivors,
        rewind_to=recipe.rewind_to,
        alternate=recipe.alternate,
        train=train,
        last=None if last is None else _of_run(last, recipe, wishes),
    )


def _of_run(train: TrainSettings, recipe: Recipe, wishes: Wishes) -> TrainSettings:
    """The settings with the run's seed and metric, where they name none of their own."""
    update: dict[str, Any] = {} if "seed" in train.model_fields_set else {"seed": recipe.seed}
    if train.metric is None:
        update["metric"] = wishes.metric
    return train.model_copy(update=update)


def _iterate(
    start: ir.Model, settings: IterateSettings, steps: _Steps, sets: Sets, wishes: Wishes, clock: Clock
) -> IterateResult:
    """Run the iterations, with their state in the checkpoint's folder.

    Raises:
        RecipeError: The loss is no longer a number; the best so far is in the checkpoint's folder.
    """
    folder = wishes.checkpoint
    if folder is not None:
        run = {
            "recipe": steps.recipe.model_dump(mode="json"),
            "metric": settings.train.metric,
            "training data": identity(wishes.data),
            "model": fingerprint(start, settings),
        }
        retraining_state.begin(folder, run, resume=wishes.resume)
        _together(settings.train)
    try:
        done = iterate(
            start,
            settings,
            steps.prune,
            sets.train,
            validation=sets.validation,
            clean=steps.clean if steps.recipe.remove_dead else None,
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
    from onnxprune.bridge.training.loop import make_accelerator

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


@dataclass(frozen=True)
class _Trace:
    """What the iterations so far did.

    Attributes:
        kept: The kept indices of the original, by constant and axis.
        names: Copies of constants that were cut, with the names of their sources.
        dead: Dead units that went.
        left: Sentences on dead units that had to stay.
        difference: Largest difference between removed and masked, relative to the largest output.
    """

    kept: Kept = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    dead: int = 0
    left: tuple[str, ...] = ()
    difference: float = 0.0

    @staticmethod
    def of(model: ir.Model) -> _Trace:
        """The trace that the model carries."""
        text = model.metadata_props.get(_TRACE)
        if text is None:
            return _Trace()
        plain = json.loads(text)
        kept = {n: {int(a): np.asarray(i, np.int64) for a, i in axes.items()} for n, axes in plain["kept"].items()}
        return _Trace(kept, plain["names"], plain["dead"], tuple(plain["left"]), plain["difference"])

    def put(self, model: ir.Model) -> None:
        """Let the model carry this trace."""
        kept = {n: {str(a): np.asarray(i).tolist() for a, i in axes.items()} for n, axes in self.kept.items()}
        model.metadata_props[_TRACE] = json.dumps(asdict(replace(self, kept={})) | {"kept": kept})

    def and_kept(self, kept: Kept, names: Mapping[str, str], difference: float) -> _Trace:
        """This trace after another cut."""
        return replace(
            self,
            kept=compose_kept(self.kept, kept),
            names={**self.names, **names},
            difference=max(self.difference, difference),
        )


@dataclass(frozen=True)
class _Steps:
    """The callbacks of `iterate`. Sparsities are those of the original, however much is gone already.

    Attributes:
        recipe: The recipe.
        prunable: The original's parameters that could go.
        total: All its weights.
        verification: Whether removed == masked is checked.
    """

    recipe: Recipe
    prunable: int
    total: int
    verification: bool

    @staticmethod
    def of(original: ir.Model, recipe: Recipe, verification: bool) -> _Steps:
        """The steps for a model.

        Raises:
            NothingToPrune: No weight may be pruned.
        """
        plan = make_plan(prepare(original.clone()), recipe)
        return _Steps(recipe, plan.prunable, total_size(prunable_weights(plan.structure)), verification)

    def left(self, structure: Structure) -> int:
        """The parameters of the model, as pruned so far, that could still go (zeros among them)."""
        if self.recipe.structure == "channels":
            return self.prunable - (self.total - total_size(prunable_weights(structure)))
        return total_size(eligible_weights(structure, self.recipe)) + protected_size(structure, self.recipe)

    def prune(self, model: ir.Model, sparsity: float, iteration: int) -> tuple[ir.Model, Masks]:
        """Prune a copy of the model until `sparsity` of the original is gone."""
        structure = prepare(model.clone())
        left = self.left(structure)
        share = max(0.0, 1 - self.prunable * (1 - sparsity) / left)
        step = self.recipe.model_copy(update={"sparsity": share, "remove_dead": False})
        plan = make_plan(structure, step, again=iteration > 1 or step.alternate)
        done = apply_plan(plan, step)
        pruned = structure.model
        if done.kept:
            difference = self._checked(model, pruned, masked_twin(model, plan.removed))
            _Trace.of(model).and_kept(done.kept, done.renamed, difference).put(pruned)
        return pruned, _trained_masks(plan, pruned)

    def clean(self, model: ir.Model) -> tuple[ir.Model, Mapping[str, Mapping[int, Sequence[int]]]]:
        """Remove the dead units of a copy of the model."""
        smaller = model.clone()
        Normalise()(smaller)
        names, dead = renamed_copies(smaller), RemoveDeadUnits()
        dead(smaller)
        Tidy()(smaller)
        difference = self._checked(model, smaller, model) if dead.kept else 0.0
        trace = _Trace.of(model).and_kept(dead.kept, names, difference)
        replace(trace, dead=trace.dead + dead.removed, left=tuple(dead.left)).put(smaller)
        return smaller, {n: {axis: kept.tolist() for axis, kept in axes.items()} for n, axes in dead.kept.items()}

    def _checked(self, before: ir.Model, after: ir.Model, masked: ir.Model) -> float:
        """How far removed and masked are apart, both as they are before the training.

        Raises:
            VerificationError: Too far.
        """
        if not self.verification:
            return 0.0
        return verify(before, after, masked, seed=self.recipe.seed, latency=False).removed_vs_masked


def _trained_masks(plan: Plan, pruned: ir.Model) -> Masks:
    """The masks by name, of the weights that a training could change.

    Raises:
        ModelError: A pruned weight of a subgraph, which the training could not hold at zero.
    """
    reached, opsets = trainable_values(pruned), dict(pruned.graph.opset_imports)
    inner = {name for graph in pruned.graph.subgraphs() for name in graph.initializers}
    masks = {}
    for value, mask in plan.masks.items():
        name = str(value.name)
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
    trace: _Trace,
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
    verdict = verify(original, model, None, seed=recipe.seed, latency=wishes.latency)
    verdict = replace(verdict, removed_vs_masked=trace.difference)
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


def _same_interface(original: ir.Model, model: ir.Model) -> None:
    for what, a, b in (
        ("inputs", original.graph.inputs, model.graph.inputs),
        ("outputs", original.graph.outputs, model.graph.outputs),
    ):
        if [(v.name, v.dtype, str(v.shape)) for v in a] != [(v.name, v.dtype, str(v.shape)) for v in b]:
            raise VerificationError(f"the {what} of the retrained model are not those of the original")


def _result(
    model: ir.Model,
    recipe: Recipe,
    steps: _Steps,
    done: IterateResult,
    trace: _Trace,
    verdict: Verdict | None,
    sets: Sets,
    clock: Clock,
) -> Result:
    zeros = sum(int(np.count_nonzero(~mask)) for mask in done.masks.values())
    gone = steps.prunable - (steps.left(prepare(model.clone())) - zeros)
    sparsity = gone / steps.prunable
    copies = renamed_copies(model)
    notes = (shortfall(recipe, sparsity), *trace.left, sets.note, *_stops(done))
    return Result(
        model=model,
        recipe=recipe,
        sparsity=sparsity,
        prunable=steps.prunable,
        gone=gone,
        kept=trace.kept,
        renamed={
            copy: source for copy, source in {**trace.names, **copies}.items() if copy in trace.kept or copy in copies
        },
        verdict=verdict,
        dead=trace.dead,
        notes=tuple(note for note in notes if note),
        seconds=clock.seconds,
        retraining=tuple(asdict(entry) for entry in done.history),
    )


def _stops(done: IterateResult) -> list[str]:
    """Which trainings ended early, and why."""
    return [
        f"iteration {entry.iteration}: training stopped early, {training.stopped}"
        for entry in done.history
        for training in entry.trainings
        if training.stopped
    ]
