"""Pruning while training: the sparsity rises along a schedule inside one training run.

Zhu and Gupta 2017 (To prune, or not to prune), section 3, called gradual magnitude pruning: every so many steps the
masks are made anew from the weights as they are, a little sparser each time; a pruned weight stays pruned. Which
weights go is the business of the `prune` function, so that any criterion and pattern can be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import onnx_ir as ir

from onnxprune.errors import RecipeError
from onnxprune.recipe.schedules import sparsities
from onnxprune.training.masks import Mask, Masks

Shapes = dict[str, tuple[int, ...]]


class Pruner(Protocol):
    """What prunes a model in the middle of its training. It may keep a journal of what it did."""

    def prune(self, model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        """Zero weights of a model.

        Args:
            model: The model with its weights as they are.
            sparsity: The sparsity to reach.
            number: The number of the pruning, from 1.

        Returns:
            The model with the pruned weights zero, and the masks.
        """

    def journal(self) -> Mapping[str, Any]:
        """Return what was done so far, as plain data for JSON."""

    def restore(self, journal: Mapping[str, Any]) -> None:
        """Go on where `journal` stood."""


def shapes(model: ir.Model) -> Shapes:
    """The shape of each initializer."""
    return {
        name: tuple(value.const_value.shape.numpy())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


class Gradual:
    """The prunings of one training, and how far they are.

    Attributes:
        masks: The masks of the last pruning; empty before the first.
        done: How many prunings there were.
    """

    def __init__(self, pruner: Pruner, schedule: str, initial: float, final: float, every: int, ramp: float) -> None:
        """Prepare the prunings.

        Args:
            pruner: What prunes.
            schedule: The schedule of the sparsity.
            initial: The sparsity before the first pruning.
            final: The sparsity after the last.
            every: Steps from one pruning to the next.
            ramp: The share of the training after which the last pruning is due.
        """
        self._pruner, self._schedule = pruner, schedule
        self._initial, self._final, self._every, self._ramp = initial, final, every, ramp
        self._wanted: list[float] = []
        self.masks: dict[str, Mask] = {}
        self.done = 0

    def plan(self, steps: int) -> None:
        """Spread the prunings over a training of so many steps.

        Raises:
            RecipeError: It is too short for one.
        """
        count = int(self._ramp * steps) // self._every
        if count < 1:
            raise RecipeError(
                f"--prune-every {self._every} over {self._ramp:.0%} of a training of {steps} steps prunes nothing: "
                "prune more often, or train longer."
            )
        self._wanted = sparsities(self._schedule, count, self._final, self._initial)

    def due(self, step: int) -> bool:
        """Whether to prune before step `step`, counted from 0."""
        return self.done < len(self._wanted) and step >= (self.done + 1) * self._every

    def next(self, model: ir.Model) -> Masks:
        """Prune the model as it is now; returns the new masks.

        Raises:
            RecipeError: The pruning removes units instead of zeroing weights.
        """
        pruned, masks = self._pruner.prune(model, self._wanted[self.done], self.done + 1)
        if shapes(pruned) != shapes(model):
            raise RecipeError("Pruning while training zeroes weights; it does not go with the removal of units.")
        self.masks, self.done = dict(masks), self.done + 1
        return self.masks

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the masks, as plain data for JSON."""
        return {"done": self.done, "journal": self._pruner.journal() if self.done else {}}

    def restore(self, masks: Masks, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self.masks, self.done = dict(masks), state["done"]
        if self.done:
            self._pruner.restore(state["journal"])
