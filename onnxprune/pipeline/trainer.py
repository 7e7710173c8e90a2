"""An iteration with training: what is about to go shrinks, it is pruned, what is left trains.

`open_trainer` reads the data and prepares the folder of the run; the loop (loop.py) then calls `Trainer.iteration` for
each sparsity of the schedule. `verify_trained` measures what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.bridge.parameters import Role, role_of, trainable_values
from onnxprune.data.calibration import Calibration, samples_of
from onnxprune.data.sets import Sets, identity, open_sets, training_metric
from onnxprune.errors import ModelError, RecipeError, VerificationError
from onnxprune.model_io.bodies import subgraphs_of
from onnxprune.passes import Normalise, Tidy
from onnxprune.pipeline.checkpoint import Store, fingerprint
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.loop import Pruning
from onnxprune.pipeline.preflight import needs_labels
from onnxprune.pipeline.run_folder import BEST, begin, is_main
from onnxprune.pipeline.run_inputs import RunInputs
from onnxprune.pipeline.step import Iteration, State
from onnxprune.pipeline.trace import Trace
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import TrainSettings
from onnxprune.runtime.countdown import Portion
from onnxprune.training.gradual import Gradual, shapes
from onnxprune.training.loop import make_accelerator
from onnxprune.training.masks import Masks, apply_masks, sparsity_of
from onnxprune.training.progress import Event, describe
from onnxprune.training.retraining import retrain
from onnxprune.training.shrink import Shrink
from onnxprune.training.task import TrainResult
from onnxprune.training.turn import (
    Phase,
    phases,
    rewind_weights,
    settings_of,
    settings_of_shrinking,
    span_of,
    start_weights,
)
from onnxprune.verification.evaluate import measured
from onnxprune.verification.verdict import Verdict, ensure_same_interface, verify


@dataclass(frozen=True)
class Trainer:
    """What every iteration of a run needs for its trainings.

    Attributes:
        recipe: The recipe. Its training has the run's seed and metric, where it names none of its own.
        original: The model before the first pruning, normalised: distillation and agreement compare with it.
        sets: The data.
        metric: The metric that the user asked for, if any.
        store: Where the state is kept; None where it is not.
        progress: Called while it trains.
    """

    recipe: Recipe
    original: ir.Model
    sets: Sets
    metric: str | None = None
    store: Store | None = None
    progress: Callable[[Event], None] | None = None

    def begin(self, state: State) -> State:
        """Return the state to start from: that of the checkpoint, where there is one.

        Raises:
            RecipeError: The checkpoint is that of another run.
            ModelError: The file with the weights to go back to, or the checkpoint, cannot be read.
        """
        state = replace(state, rewind=rewind_weights(self.recipe))
        return state if self.store is None else self.store.load(state)

    def save(self, state: State) -> None:
        """Keep the state after an iteration."""
        if self.store is not None:
            self.store.save(state)

    def iteration(self, state: State, steps: Pruning, sparsity: float, number: int) -> State:
        """Prune and train once: in one training, or in two where layers take turns, each after one that shrinks.

        Args:
            state: As the iterations before left it.
            steps: What prunes.
            sparsity: The share of the original that is gone afterwards.
            number: The number of the iteration, from 1.

        Returns:
            The state afterwards; `diverged` says so where a loss was no longer a number.
        """
        trainings: list[TrainResult] = []
        stages = (self._train,) if self.recipe.shrink == "no" else (self._shrink, self._train)
        for phase in phases(state.model, self.recipe, number):
            for stage in stages:
                if not state.diverged:
                    state, trained = stage(state, steps, phase, sparsity, number)
                    trainings.append(trained)
        iteration = Iteration(number, sparsity, sparsity_of(state.masks), tuple(trainings))
        return replace(state, history=(*state.history, iteration))

    def samples(self, recipe: Recipe) -> Calibration:
        """Draw samples of the training data, which stand in for calibration data.

        Raises:
            RecipeError: The criterion needs labels, and there are none.
        """
        samples = samples_of(self.original, self.sets.train, recipe.calibration_samples, recipe.seed)
        if needs_labels(recipe) and samples.labels is None:
            raise RecipeError(f"--criterion {recipe.criterion} needs labels, which --data have none of: --calibration")
        return samples

    def _shrink(
        self, state: State, steps: Pruning, phase: Phase, sparsity: float, number: int
    ) -> tuple[State, TrainResult]:
        """Drive what the pruning that follows will take towards zero."""
        stay = steps.chosen(state, sparsity, number)
        stay = {name: mask for name, mask in stay.items() if phase.prunes is None or name in phase.prunes}
        shrink = Shrink(self.recipe.shrink, self.recipe.shrink_strength, stay)
        settings = settings_of_shrinking(self.recipe)
        return self._retrain(state, state.model, phase, number, settings, " shrink", shrink=shrink)

    def _train(
        self, state: State, steps: Pruning, phase: Phase, sparsity: float, number: int
    ) -> tuple[State, TrainResult]:
        """Prune and train, or prune while training."""
        recipe, gradual, pruner = self.recipe, None, None
        if recipe.prune_every is None:
            state = _pruned(state, steps, sparsity, number, phase)
        else:
            if recipe.initial_sparsity:
                state = _pruned(state, steps, recipe.initial_sparsity, number, phase)
            pruner = _PruningWhileTraining(steps, state)
            gradual = Gradual(
                pruner, recipe.schedule, recipe.initial_sparsity, recipe.sparsity, recipe.prune_every, recipe.ramp
            )
        start = start_weights(state.model, state.masks, state.rewind, recipe, number)
        state, trained = self._retrain(
            state, start, phase, number, settings_of(recipe, number), "", span=span_of(recipe, phase), gradual=gradual
        )
        if pruner is not None and gradual is not None and gradual.done:
            state = replace(state, masks=gradual.masks, trace=pruner.state.trace)
        return state, trained

    def _retrain(
        self, state: State, start: ir.Model, phase: Phase, number: int, settings: TrainSettings, what: str, **more: Any
    ) -> tuple[State, TrainResult]:
        """One training, from the weights of `start`."""
        store = self.store
        done = retrain(
            start,
            self.sets.train,
            settings,
            masks=state.masks,
            validation=self.sets.validation,
            original=self.original,
            frozen=phase.frozen,
            progress=self.progress,
            checkpoint=None if store is None else store.training,
            tag="" if store is None else f"{store.mark} {phase.number}{what}",
            place=(number, self.recipe.iterations),
            layout=self.recipe.reading.layout,
            **more,
        )
        return replace(state, model=done.model, cache=None, diverged=done.result.diverged), done.result


class _PruningWhileTraining:
    """The steps as a training calls them; keeps the trace of what they did.

    Attributes:
        state: After the last pruning.
    """

    def __init__(self, steps: Pruning, state: State) -> None:
        self._steps = steps
        self.state = state

    def prune(self, model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        """Zero weights of a copy of the model."""
        self.state = self._steps.prune(replace(self.state, model=model), sparsity, number)
        return self.state.model, trained_masks(self.state)

    def journal(self) -> Mapping[str, Any]:
        """The trace, as plain data."""
        return self.state.trace.plain()

    def restore(self, journal: Mapping[str, Any]) -> None:
        """Go on with this trace."""
        self.state = replace(self.state, trace=Trace.of_plain(journal))


def _pruned(state: State, steps: Pruning, sparsity: float, number: int, phase: Phase) -> State:
    """Prune; masks of initializers that this training does not prune stay as they were.

    Raises:
        RecipeError: Only some layers are to be pruned, but the graph was changed.
        ModelError: A pruned weight cannot be held at zero.
    """
    pruned = steps.prune(state, sparsity, number)
    masks = trained_masks(pruned)
    if phase.prunes is None:
        return replace(pruned, model=apply_masks(pruned.model, masks), masks=masks)
    if shapes(state.model) != shapes(pruned.model):
        raise RecipeError("alternate zeroes weights; it does not go with a structure that removes units.")
    chosen = {name: mask for name, mask in masks.items() if name in phase.prunes}
    others = {name: state.masks.get(name, np.ones(mask.shape, bool)) for name, mask in masks.items()}
    masks = {**others, **chosen}
    return replace(pruned, model=apply_masks(state.model, masks), masks=masks)


def trained_masks(state: State) -> Masks:
    """Return the masks, by name, of the weights that a training could change.

    Raises:
        ModelError: A pruned weight lies in a subgraph, where the training could not hold it at zero.
    """
    pruned = state.model
    reached, opsets = trainable_values(pruned), dict(pruned.graph.opset_imports)
    inner = {name for graph in subgraphs_of(pruned.graph) for name in graph.initializers}
    masks = {}
    for name, mask in state.masks.items():
        if name in inner and not mask.all():
            raise ModelError(f"the weight '{name}' lies in a subgraph, where retraining cannot hold it: --exclude it")
        value = pruned.graph.initializers.get(name)
        if value is not None and role_of(value, reached, opsets).role is not Role.BUFFER:
            masks[name] = mask
    return masks


# --- the beginning and the end of a run that trains


def open_trainer(original: ir.Model, recipe: Recipe, inputs: RunInputs, clock: Clock) -> Trainer:
    """Read the data and prepare the folder of the run.

    Raises:
        DataError: The data do not fit the model.
        RecipeError: The folder holds another run.
    """
    assert recipe.retrain is not None and inputs.data is not None
    train, data = _of_run(recipe.retrain, recipe, inputs), inputs.data
    sets = clock("read data", lambda: open_sets(original, data, inputs.eval_data, train, recipe.reading))
    metric, train = train.metric, training_metric(train, sets)
    last = None if recipe.retrain_last is None else _of_run(recipe.retrain_last, recipe, inputs)
    trained_recipe = recipe.model_copy(update={"retrain": train, "retrain_last": last})
    start = original.clone()
    Normalise()(start)
    Tidy()(start)
    store = None
    if inputs.checkpoint is not None:
        store = Store(inputs.checkpoint, fingerprint(start, trained_recipe))
        run = {
            "recipe": recipe.model_dump(mode="json"),
            "metric": train.metric,
            "training data": identity(data),
            "calibration data": None if inputs.samples is None else inputs.samples.digest,
            "model": store.mark,
        }
        begin(store.folder, run, resume=inputs.resume)
        # No process reads the folder before the first one has prepared it.
        make_accelerator(train).wait_for_everyone()
    return Trainer(trained_recipe, start, sets, metric, store, _told(clock.progress))


def _of_run(train: TrainSettings, recipe: Recipe, inputs: RunInputs) -> TrainSettings:
    """The settings with the run's seed and metric, where they name none of their own."""
    update: dict[str, Any] = {} if "seed" in train.model_fields_set else {"seed": recipe.seed}
    if train.metric is None:
        update["metric"] = inputs.metric
    return train.model_copy(update=update)


def _told(progress: Callable[[str], None] | None) -> Callable[[Event], None] | None:
    """Training events as stages of the run."""
    if progress is None:
        return None

    def tell(event: Event) -> None:
        done = event.step / event.steps if event.steps else 0.0
        progress(Portion(describe(event), done))

    return tell


def keep_best(state: State, store: Store | None) -> str:
    """Write the best model so far to the folder of the run; return the sentence on where it is."""
    if store is None:
        return ""
    path = store.folder / BEST
    if is_main():
        model_io.save(state.model, path, force=True)
    return f" It is '{path}', and nothing else was written."


def verify_trained(original: ir.Model, state: State, trainer: Trainer, *, latency: bool) -> Verdict:
    """Measure the trained model against the original.

    Raises:
        VerificationError: A pruned weight is not zero, the interface is another, or it does not run.
        DataError: The evaluation data do not fit.
    """
    ensure_masks_hold(state.model, state.masks)
    ensure_same_interface(original, state.model)
    verdict = verify(
        original,
        state.model,
        removed_vs_masked=state.trace.difference,
        unproved=state.trace.unproved,
        seed=trainer.recipe.seed,
        latency=latency,
    )
    if trainer.sets.evaluation is None:
        return verdict
    name = state.history[-1].trainings[-1].metric_name if state.history else ""
    classes = name not in ("mse", "map")
    metric = measured(original, state.model, trainer.sets.evaluation, trainer.metric, classes=classes)
    return replace(verdict, metric=metric)


def ensure_masks_hold(model: ir.Model, masks: Masks) -> None:
    """Check that every pruned float weight is zero. A quantised weight is written back to its zero point.

    Raises:
        VerificationError: One is not.
    """
    for name, mask in masks.items():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None or not value.const_value.dtype.is_floating_point():
            continue
        array = value.const_value.numpy()
        if array.shape != mask.shape or np.any(array[~mask] != 0):
            raise VerificationError(f"pruned weights of '{name}' are not zero after retraining; please report this")


def notes_of_training(state: State, sets: Sets) -> tuple[str, ...]:
    """Return what the user should know: how the metric was measured, and which trainings ended early and why."""
    stopped = (
        f"iteration {entry.iteration}: training stopped early, {training.stopped}"
        for entry in state.history
        for training in entry.trainings
        if training.stopped
    )
    worse = (
        f"iteration {entry.iteration}: {training.worse}"
        for entry in state.history
        for training in entry.trainings
        if training.worse
    )
    return (*([sets.note] if sets.note else []), *stopped, *worse)
