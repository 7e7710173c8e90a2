"""What a chooser of choose.py decides on: the weights that may go, the criterion on this model, the share, the cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.errors import NothingToPrune, RecipeError
from onnxprune.pipeline.plan import Plan
from onnxprune.pipeline.prunable import prunable_size, why_nothing
from onnxprune.recipe.defaults import settled
from onnxprune.recipe.recipe import Recipe
from onnxprune.scoring import Criterion, find_criterion
from onnxprune.scoring.cache import ScoreCache, cached
from onnxprune.scoring.evidence import Evidence
from onnxprune.selection.allocation import ALLOCATIONS, Allocation, AllocationContext, allocation_of
from onnxprune.selection.eligible import eligible_weights, protected_weights
from onnxprune.selection.sensitivity import Sensitivity
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS, UnitAllocation
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.costs import CostName
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight, total_size

_COSTS: Mapping[str, CostName] = {
    "target_latency": "latency", "target_macs": "macs", "target_size": "parameters",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Task:
    """What a chooser decides on.

    Attributes:
        structure, recipe, calibration, cache: See `choose`.
        weights: The weights that may go.
        criterion: The criterion, with the statistics of this model.
        unscored: Weights that the criterion cannot score, with the reason; they stay.
        most: The share that the last step of the schedule brings what is gone to.
        auto: Whether nobody asked for this criterion.
    """

    structure: Structure
    recipe: Recipe
    calibration: Calibration | None
    weights: list[Weight]
    criterion: Criterion
    cache: ScoreCache
    unscored: Mapping[str, str] = field(default_factory=dict)
    most: float = 0.0
    auto: bool = False

    @property
    def share(self) -> float:
        """The share of `weights` that becomes zero.

        Small first and last layers stay, but count in the sparsity: the other layers make up for them. Weights that
        the criterion cannot score are left out of both.
        """
        counted = total_size([*self.weights, *protected_weights(self.structure, self.recipe)])
        return min(1.0, self.recipe.sparsity * counted / total_size(self.weights))

    @property
    def prunable(self) -> int:
        """The parameters that count."""
        return prunable_size(self.structure, self.recipe)

    @property
    def allocation(self) -> Allocation:
        """The allocation of single weights."""
        _, allocation = allocations_of(self.recipe)
        assert allocation is not None
        return allocation

    def context(self) -> AllocationContext:
        """Return what an allocation of single weights knows beside the weights."""
        inputs = None if self.calibration is None else self.calibration.inputs
        return AllocationContext(self.criterion, inputs, self.recipe.seed, self.cache)

    def plan(
        self,
        masks: Mapping[ir.Value, Bools],
        sensitivity: Sensitivity | None = None,
        misfits: Mapping[str, str] = MappingProxyType({}),
    ) -> Plan:
        """The plan that these masks make."""
        gone = sum(m.size - int(np.count_nonzero(m)) for m in masks.values())
        bits = masks if isinstance(masks, BitMasks) else BitMasks(masks.items())
        none = np.zeros(self.structure.terms.count, bool)
        return Plan(self.structure, none, bits, self.prunable, gone, {**self.unscored, **misfits}, sensitivity)

    def without_unscored(self) -> Task:
        """Return the task without the weights that the criterion cannot score.

        Raises:
            RecipeError: It can score none.
        """
        unscored = {w.name: reason for w in self.weights if (reason := self.criterion.obstacle(w))}
        scored = [w for w in self.weights if w.name not in unscored]
        if not scored:
            name, reason = next(iter(unscored.items()))
            raise RecipeError(f"--criterion {self.criterion.name} can score no weight, as '{name}': {reason}")
        return replace(self, weights=scored, unscored=unscored)


def task_of(
    structure: Structure, recipe: Recipe, calibration: Calibration | None, *, cache: ScoreCache | None = None,
    progress: Callable[[str], None] | None = None,
) -> Task:  # fmt: skip
    """Return what a chooser decides on.

    Args:
        structure, recipe, calibration, cache, progress: As those of `choose`.

    Raises:
        NothingToPrune, DataError: As `choose`.
    """
    auto = recipe.criterion == "auto"
    recipe = settled(recipe, calibrated=calibration is not None)
    weights = eligible_weights(structure, recipe)
    if not weights:
        raise NothingToPrune(why_nothing(structure, recipe))
    cache = cache or ScoreCache()
    criterion = _criterion(structure, recipe, calibration, cache, progress)
    return Task(structure, recipe, calibration, weights, criterion, cache, auto=auto)


def _criterion(
    structure: Structure, recipe: Recipe, calibration: Calibration | None, cache: ScoreCache,
    progress: Callable[[str], None] | None,
) -> Criterion:  # fmt: skip
    """The criterion with the statistics of this model that it may use.

    Raises:
        DataError: It needs data or labels that are not there.
    """
    samples = Calibration({}) if calibration is None else calibration
    criterion = find_criterion(recipe.criterion).on(Evidence.of(structure, samples, recipe.seed, progress))
    _, allocation = allocations_of(recipe)
    again = recipe.target is not None or (allocation is not None and allocation.asks)
    return cached(criterion, cache, weights_too=again)


def allocations_of(recipe: Recipe) -> tuple[UnitAllocation | None, Allocation | None]:
    """Return the allocation of whole units and that of single weights, each None where the structure has no use for it.

    Raises:
        RecipeError: It is not for this structure, or does not exist.
    """
    parts, name = recipe.parts, recipe.allocation
    of_units = of_weights = None
    if parts.units:
        if name in ALLOCATIONS and name not in UNIT_ALLOCATIONS:
            raise RecipeError(f"--allocation: {name} is for single weights, not for whole units")
        of_units = UNIT_ALLOCATIONS.find("cost" if name == "auto" else name)
    if parts.zeros is not None and parts.zeros.ranks:
        if name in UNIT_ALLOCATIONS and name not in ALLOCATIONS:
            raise RecipeError(
                f"--allocation: {name} is for whole units, not for the weights of {parts.text}: leave it out"
            )
        of_weights = allocation_of(name, find_criterion(settled(recipe, calibrated=False).criterion))
    return of_units, of_weights


def cost_of(recipe: Recipe) -> CostName:
    """Return what a removal should save, by the target that is looked for."""
    return _COSTS.get(recipe.target or "", "balanced")


def takes_of_cost(recipe: Recipe) -> bool:
    """Whether the sparsity that is looked for is a share of the cost, as far as units go: see `UnitBudget.of_cost`."""
    allocation, _ = allocations_of(recipe)
    return recipe.target in _COSTS and allocation is not None and allocation.of_cost
