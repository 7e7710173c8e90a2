"""Pruning while training: the sparsity rises along a schedule inside one training run.

Zhu and Gupta 2017 (To prune, or not to prune), section 3, called gradual magnitude pruning: every so many steps the
masks are made anew from the weights as they are, a little sparser each time; a pruned weight stays pruned. Which
weights go is the business of the `prune` function, so that any criterion and pattern can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxprune.errors import RecipeError
from onnxprune.recipe.schedules import sparsities
from onnxprune.training.masks import Mask, Masks

Prune = Callable[[ir.Model, float, int], tuple[ir.Model, Masks]]
"""(model, sparsity to reach, pruning from 1) -> (pruned model, masks). Pruned weights are zero or gone."""

Shapes = dict[str, tuple[int, ...]]


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
        masks: Of the last pruning; empty before the first.
        notes: The metadata that the pruned model came with: whoever prunes may keep book there.
        done: How many prunings there were.
    """

    def __init__(self, prune: Prune, schedule: str, initial: float, final: float, every: int, ramp: float) -> None:
        self._prune, self._schedule, self._range, self._every, self._ramp = (
            prune,
            schedule,
            (initial, final),
            every,
            ramp,
        )
        self._wanted: list[float] = []
        self.masks: dict[str, Mask] = {}
        self.notes: dict[str, str] = {}
        self.done = 0

    def plan(self, steps: int) -> None:
        """Spread the prunings over a training of so many steps.

        Raises:
            RecipeError: It is too short for one.
        """
        count = int(self._ramp * steps) // self._every
        if count < 1:
            raise RecipeError(
                f"Pruning every {self._every} steps over {self._ramp:.0%} of a training of {steps} steps prunes "
                "nothing: prune more often, or train longer."
            )
        initial, final = self._range
        self._wanted = sparsities(self._schedule, count, final, initial)

    def due(self, step: int) -> bool:
        """Whether to prune before step `step`, counted from 0."""
        return self.done < len(self._wanted) and step >= (self.done + 1) * self._every

    def next(self, model: ir.Model) -> Masks:
        """Prune the model as it is now; returns the new masks.

        Raises:
            RecipeError: The pruning removes units instead of zeroing weights.
        """
        model.metadata_props.update(self.notes)
        pruned, masks = self._prune(model, self._wanted[self.done], self.done + 1)
        if shapes(pruned) != shapes(model):
            raise RecipeError("Pruning while training zeroes weights; it does not go with the removal of units.")
        self.masks, self.notes, self.done = dict(masks), dict(pruned.metadata_props), self.done + 1
        return self.masks

    def restore(self, masks: Masks, notes: Mapping[str, str], done: int) -> None:
        """Go on where a checkpoint left off."""
        self.masks, self.notes, self.done = dict(masks), dict(notes), done
