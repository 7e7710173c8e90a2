"""Steps towards a budget: each finds the sparsity that brings the model, as it is by then, to its part of the saving.

What a sparsity saves depends on what the steps before left: on their choice, their recovery and their training. So the
sparsities of one step at a time say nothing of the later ones. The schedule holds for what is saved instead: with
``--target-macs 0.5 --iterations 2`` the first step aims at 0.75 of the multiply-adds, the second at 0.5.

    aim = Aim((0.75, 0.5), figure, steps)
    sparsity, state = aim(state, 1)         # the state keeps the scores of its model, which the step asks for again
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from onnxprune.model_io.journal import Journal
from onnxprune.pipeline.planned import share_once
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.search import nearest_ratio
from onnxprune.pipeline.step import State, Steps
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.schedules import sparsities
from onnxprune.scoring.cache import ScoreCache


@dataclass(frozen=True)
class Aim:
    """Finds the sparsity of each step.

    Attributes:
        wanted: The figure after each step, a share of the original's.
        figure: From a state to its figure.
        steps: Those of the run.
        under: Whether the figure must not exceed what is wanted; else the nearest counts.
    """

    wanted: Sequence[float]
    figure: Callable[[State], float]
    steps: Steps
    under: bool

    def __call__(self, state: State, number: int) -> tuple[float, State]:
        """Return the sparsity for the step of this number, counted from 1, and the state with its model's scores."""
        state = replace(state, cache=state.cache or ScoreCache())
        return share_once(self.steps.journal, f"step {number}: share", lambda: self._share(state, number)), state

    def _share(self, state: State, number: int) -> float:
        recipe = self.steps.recipe
        trying = replace(
            self.steps, recipe=recipe.model_copy(update={"retrain": None}), dense=None, methods=(),
            verification=False, journal=Journal(),
        )  # fmt: skip

        def measure(sparsity: float) -> float:
            tried = trying.prune(replace(state, structure=prepare(state.model.clone())), sparsity, number)
            return self.figure(trying.clean(tried)[0] if recipe.remove_dead else tried)

        wanted, of_cost = self.wanted[number - 1], self.steps.whole is not None
        gone = self.steps.saved(prepare(state.model.clone())) if of_cost else state.trace.gone / self.steps.prunable
        whole = self.figure(state)
        found = nearest_ratio(measure, wanted, least=gone, whole=whole, under=self.under, of_cost=of_cost)
        if found.best is None:  # all that can go; whether that is enough the search before has found
            return min(found.tries, key=lambda one: one.value).sparsity
        return found.best.sparsity


def figures_wanted(recipe: Recipe, wanted: float) -> list[float]:
    """The figure after each step: the schedule holds for what is saved.

    Args:
        recipe: With its schedule and its number of steps.
        wanted: The figure after the last.

    Returns:
        One for each step, falling.
    """
    saved, first = 1 - wanted, min(recipe.initial_sparsity, 1 - wanted)
    return [1 - now for now in sparsities(recipe.schedule, recipe.iterations, saved, first)]
