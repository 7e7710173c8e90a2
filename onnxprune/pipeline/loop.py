"""The one loop over the schedule, with a training after each pruning or without.

    for each sparsity of the schedule, or the one that brings the model, as it is by then, to its part of a budget:
        prune        steps.prune; with training: shrink, prune, train (trainer.py)
        clean        remove dead units, where the recipe says so: after each training, without training at the end
        save         with training: the state, so that a run that is killed loses at most one iteration

Han et al. 2015 (section 3.4) prune and retrain in turns. The loop knows neither how weights are chosen (`Pruning`) nor
how they are trained (`Training`); nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.errors import ModelError
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.step import State
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.terms import Bools


class Pruning(Protocol):
    """What prunes: `step.Steps`."""

    def prune(self, state: State, sparsity: float, number: int) -> State:
        """Return the state with `sparsity` of the original gone; `masks` say what of the masked weights stays."""

    def chosen(self, state: State, sparsity: float, number: int) -> Mapping[str, Bools]:
        """Return which numbers `prune` would leave as they are, by the name of the constant."""

    def clean(self, state: State) -> tuple[State, Kept]:
        """Return the state without dead units, and the kept indices of its model by constant and axis."""


class Training(Protocol):
    """What trains between the prunings: `trainer.Trainer`."""

    def begin(self, state: State) -> State:
        """Return the state to start from: that of the checkpoint, where there is one."""

    def iteration(self, state: State, steps: Pruning, sparsity: float, number: int) -> State:
        """Prune and train once."""

    def save(self, state: State) -> None:
        """Keep the state after an iteration."""


def run_loop(
    state: State,
    steps: Pruning,
    sparsities: Sequence[float],
    training: Training | None = None,
    *,
    aim: Callable[[State, int], tuple[float, State]] | None = None,
    remove_dead: bool = False,
    keep_masks: bool = False,
    clock: Clock | None = None,
) -> State:
    """Prune to one sparsity after the other.

    Args:
        state: The original.
        steps: What prunes.
        sparsities: The sparsity after each step, in order.
        training: What trains after each pruning; None where nothing does.
        aim: From the state and the number of a step to the sparsity that takes the place of `sparsities`, and the
            state with what was found of its model.
        remove_dead: Whether dead units are removed.
        keep_masks: Whether the masks are needed afterwards, where nothing trains.
        clock: Runs each stage.

    Returns:
        The state after the last step. If the loss of a training was no longer a number, `diverged` says so: the model
        is the best of that training, and no further steps were done.

    Raises:
        RecipeError: The checkpoint is that of another run.
        DataError, ModelError, NothingToPrune, VerificationError: See `Steps` and `training.retrain`.
    """
    clock, count = clock or Clock(), len(sparsities)
    state = state if training is None else training.begin(state)
    while state.done < count and not state.diverged:
        number = state.done + 1
        name = ("prune" if training is None else "retrain") + (f" {number}/{count}" if count > 1 else "")
        prune = partial(_prune, keep_masks=keep_masks) if training is None else training.iteration
        sparsity, state = (sparsities[state.done], state) if aim is None else aim(state, number)
        stage = partial(prune, state, steps, sparsity)
        state = replace(clock(name, partial(stage, number)), done=number)
        if state.diverged:
            break
        if remove_dead and (training is not None or number == count):
            state = clock("remove dead units", partial(_clean, state, steps))
        if training is not None:
            training.save(state)
    return state


def _prune(state: State, steps: Pruning, sparsity: float, number: int, *, keep_masks: bool) -> State:
    """One step without training, so that there are no masks to hold."""
    state = steps.prune(state, sparsity, number)
    return state if keep_masks else replace(state, masks={})


def _clean(state: State, steps: Pruning) -> State:
    """Remove dead units; bring the masks, and the weights to go back to, to the smaller shapes.

    Raises:
        ModelError: The indices that are said to be kept are not those of the smaller model.
    """
    cleaned, kept = steps.clean(state)
    shapes = {
        name: tuple(value.const_value.shape.numpy())
        for name, value in cleaned.model.graph.initializers.items()
        if value.const_value is not None
    }
    masks = {name: _cut(mask, kept.get(name, {})) for name, mask in state.masks.items() if name in shapes}
    rewind = {name: _cut(array, kept.get(name, {})) for name, array in state.rewind.items() if name in shapes}
    for name, mask in masks.items():
        if mask.shape != shapes[name]:
            raise ModelError(f"Removing dead units left '{name}' with shape {shapes[name]}; its mask is {mask.shape}.")
    return replace(cleaned, masks=masks, rewind=rewind)


def _cut(array: npt.NDArray[Any], kept: Mapping[int, Any]) -> npt.NDArray[Any]:
    for axis, indices in kept.items():
        array = np.take(array, np.asarray(indices, dtype=np.int64), axis=int(axis))
    return array
