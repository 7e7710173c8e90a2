"""How groups of units compete for what goes: a registry of functions from a `UnitContext` and a budget to a selection.

    chosen = UNIT_ALLOCATIONS["cost"](UnitContext(structure, weights, groups, scores), UnitBudget(0.5))

Inside a group the units of the lowest scores go first, always; an allocation only says which group is next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.data.batches import Inputs
from onnxprune.errors import DataError
from onnxprune.plugins import Registry, judged, summary
from onnxprune.recipe.fields import Effort
from onnxprune.scoring.cache import ScoreCache
from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.units import Scores
from onnxprune.selection.allocation import PLUGINS, Needs
from onnxprune.selection.by_cost import select_by_cost
from onnxprune.selection.measured import measure_effects
from onnxprune.selection.sensitivity import OutputError, Sensitivity, scan_units
from onnxprune.selection.units import Price, UnitBudget, UnitSelection, select_units
from onnxprune.structure.costs import CostName, find_cost
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight


@dataclass(eq=False)
class UnitContext:
    """What an allocation of units knows.

    Attributes:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id.
        inputs: Unlabelled samples by input name; None where there are none.
        cost: What is to be saved.
        cache: Keeps a scan for the next time that one is asked for.
        table: The scan, once one was made.
        evidence: Statistics of the model on these inputs.
        effort: How many samples effects are measured on.
    """

    structure: Structure
    weights: Sequence[Weight]
    groups: Sequence[Group]
    scores: Scores
    inputs: Inputs | None = None
    cost: CostName = "balanced"
    cache: ScoreCache = field(default_factory=ScoreCache)
    table: Sensitivity | None = None
    evidence: Evidence | None = None
    effort: Effort = "low"

    def cheapest(self, budget: UnitBudget, price: Price) -> UnitSelection:
        """Take the units of the lowest price, until the budget is met."""
        return select_units(self.structure, self.weights, self.groups, self.scores, budget, price)


SelectUnits = Callable[[UnitContext, UnitBudget], UnitSelection]


@dataclass(frozen=True)
class UnitAllocation:
    """A way in which groups of units compete.

    Attributes:
        select: The function.
        needs: Whether it needs calibration inputs.
        of_cost: Whether it can take a share of the cost in place of one of the parameters: `UnitBudget.of_cost`.
    """

    select: SelectUnits
    needs: Needs = "nothing"
    of_cost: bool = False

    def __call__(self, context: UnitContext, budget: UnitBudget) -> UnitSelection:
        return self.select(context, budget)

    @property
    def formula(self) -> str:
        """The first sentence of the docstring."""
        return summary(self.select)


def _fault(selection: object, *_: object) -> str:
    """What is wrong with what a user's function chose."""
    return "" if isinstance(selection, UnitSelection) else "is no UnitSelection, as context.cheapest() returns one"


UNIT_ALLOCATIONS: Registry[UnitAllocation] = Registry(
    "allocation of whole units",
    PLUGINS,
    flag="--allocation",
    of_function=lambda name, function: UnitAllocation(judged(function, name, _fault)),
)


def unit_allocation(
    name: str, *, needs: Needs = "nothing", of_cost: bool = False
) -> Callable[[SelectUnits], SelectUnits]:
    """Register an allocation of units."""

    def register(function: SelectUnits) -> SelectUnits:
        UNIT_ALLOCATIONS.add(name, UnitAllocation(function, needs, of_cost), function)
        return function

    return register


@unit_allocation("cost", of_cost=True)
def by_cost(context: UnitContext, budget: UnitBudget) -> UnitSelection:
    """By importance lost per cost saved: of parameters and multiply-adds together, or of what a target asks for.

    See `select_by_cost`, and `find_cost` for what a cost is.
    """
    cost = find_cost(context.cost, context.structure)
    return select_by_cost(context.structure, context.weights, context.groups, context.scores, budget, cost)


@unit_allocation("global")
def together(context: UnitContext, budget: UnitBudget) -> UnitSelection:
    """All are ranked together by their scores, which are relative to their group's mean."""
    return context.cheapest(budget, lambda group, values, start, stop: float(values[start:stop].mean()))


@unit_allocation("lamp")
def by_lamp(context: UnitContext, budget: UnitBudget) -> UnitSelection:
    """All are ranked together by s^2 over the sum of the squares of their group's scores that are no smaller.

    Source: Lee et al. 2021, Layer-adaptive Sparsity for Magnitude-based Pruning, equation 4, of units.
    """

    def price(group: Group, values: Scores, start: int, stop: int) -> float:
        left = float(np.square(values[start:]).sum())
        return float(np.square(values[start:stop]).mean()) / left if left else 0.0

    return context.cheapest(budget, price)


@unit_allocation("uniform")
def uniform(context: UnitContext, budget: UnitBudget) -> UnitSelection:
    """The same share of every group."""
    return context.cheapest(budget, lambda group, values, start, stop: stop / len(values))


@unit_allocation("sensitivity", needs="calibration")
def by_sensitivity(context: UnitContext, budget: UnitBudget) -> UnitSelection:
    """By a scan: the units of each group are zeroed alone to several levels; what adds the least error a weight goes.

    Raises:
        DataError: There are no inputs to scan on.
    """
    if context.inputs is None:
        raise DataError("the allocation 'sensitivity' scans groups on calibration data, and there are none.")
    measure = OutputError(context.structure.model, context.inputs)
    parts = (context.structure, context.weights, context.groups, context.scores)
    context.table = table = context.cache.recall("scan", lambda: scan_units(*parts, measure))
    numbers = {group: i for i, group in enumerate(context.groups)}

    def price(group: Group, values: Scores, start: int, stop: int) -> float:
        shares, errors = table.curve(numbers[group])
        before, after = np.interp([start / len(values), stop / len(values)], shares, errors)
        size = max(1, table.sizes[numbers[group]]) * (stop - start) / len(values)
        return float(after - before) / size if stop / len(values) <= shares[-1] else np.inf

    return context.cheapest(budget, price)


@unit_allocation("measured", needs="calibration", of_cost=True)
def by_effect(context: UnitContext, budget: UnitBudget) -> UnitSelection:
    """By the change of the outputs when a group is cut alone and its consumers make up for it, per cost saved.

    See `measure_effects`; the cost is that of ``cost``.

    Raises:
        DataError: There are no inputs to measure on.
    """
    if context.inputs is None or context.evidence is None:
        raise DataError("the allocation 'measured' runs the model on calibration data, and there are none.")
    parts = (context.structure, context.groups, context.scores, context.evidence, context.effort)
    losses = context.cache.recall("effects", lambda: measure_effects(*parts)).losses(context.groups)
    cost = find_cost(context.cost, context.structure)
    return select_by_cost(context.structure, context.weights, context.groups, context.scores, budget, cost, losses)
