"""How groups of units compete for what goes: a registry of functions from a `UnitLook` and a budget to a selection.

    chosen = UNIT_ALLOCATIONS["cost"](UnitLook(structure, weights, groups, scores), UnitBudget(0.5))

Inside a group the units of the lowest scores go first, always; an allocation only says which group is next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.data.batches import Inputs
from onnxprune.errors import DataError
from onnxprune.plugins import Registry, summary
from onnxprune.scoring.remembered import Memory
from onnxprune.scoring.units import Scores
from onnxprune.selection.allocation import PLUGINS, Needs
from onnxprune.selection.by_cost import select_by_cost
from onnxprune.selection.sensitivity import OutputError, Sensitivity, scan_units
from onnxprune.selection.units import Price, UnitBudget, UnitSelection, select_units
from onnxprune.structure.costs import CostName, find_cost
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight


@dataclass(eq=False)
class UnitLook:
    """What an allocation of units may look at.

    Attributes:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id.
        inputs: Unlabelled samples by input name; None where there are none.
        cost: What is to be saved.
        memory: Holds a scan, for when one is asked for again.
        table: What a scan found, once one was made.
    """

    structure: Structure
    weights: Sequence[Weight]
    groups: Sequence[Group]
    scores: Scores
    inputs: Inputs | None = None
    cost: CostName = "balanced"
    memory: Memory = field(default_factory=Memory)
    table: Sensitivity | None = None

    def cheapest(self, budget: UnitBudget, price: Price) -> UnitSelection:
        """Take the units of the lowest price, until the budget is met."""
        return select_units(self.structure, self.weights, self.groups, self.scores, budget, price)


SelectUnits = Callable[[UnitLook, UnitBudget], UnitSelection]


@dataclass(frozen=True)
class UnitAllocation:
    """A way in which groups of units compete.

    Attributes:
        select: The function.
        needs: Whether it needs calibration inputs.
    """

    select: SelectUnits
    needs: Needs = "nothing"

    def __call__(self, look: UnitLook, budget: UnitBudget) -> UnitSelection:
        return self.select(look, budget)

    @property
    def formula(self) -> str:
        """The first sentence of the docstring."""
        return summary(self.select)


UNIT_ALLOCATIONS: Registry[UnitAllocation] = Registry(
    "allocation of whole units",
    PLUGINS,
    flag="--allocation",
    of_function=lambda _, function: UnitAllocation(function),
)


def unit_allocation(name: str, *, needs: Needs = "nothing") -> Callable[[SelectUnits], SelectUnits]:
    """Register an allocation of units."""

    def register(function: SelectUnits) -> SelectUnits:
        UNIT_ALLOCATIONS.add(name, UnitAllocation(function, needs), function)
        return function

    return register


@unit_allocation("cost")
def by_cost(look: UnitLook, budget: UnitBudget) -> UnitSelection:
    """By importance lost per cost saved: of parameters and multiply-adds together, or of what a target asks for.

    See `select_by_cost`, and `find_cost` for what a cost is.
    """
    cost = find_cost(look.cost, look.structure)
    return select_by_cost(look.structure, look.weights, look.groups, look.scores, budget, cost)


@unit_allocation("global")
def together(look: UnitLook, budget: UnitBudget) -> UnitSelection:
    """All are ranked together by their scores, which are relative to their group's mean."""
    return look.cheapest(budget, lambda group, values, start, stop: float(values[start:stop].mean()))


@unit_allocation("lamp")
def by_lamp(look: UnitLook, budget: UnitBudget) -> UnitSelection:
    """All are ranked together by s^2 over the sum of the squares of their group's scores that are no smaller.

    Source: Lee et al. 2021, Layer-adaptive Sparsity for Magnitude-based Pruning, equation 4, of units.
    """

    def price(group: Group, values: Scores, start: int, stop: int) -> float:
        left = float(np.square(values[start:]).sum())
        return float(np.square(values[start:stop]).mean()) / left if left else 0.0

    return look.cheapest(budget, price)


@unit_allocation("uniform")
def uniform(look: UnitLook, budget: UnitBudget) -> UnitSelection:
    """The same share of every group."""
    return look.cheapest(budget, lambda group, values, start, stop: stop / len(values))


@unit_allocation("sensitivity", needs="calibration")
def by_sensitivity(look: UnitLook, budget: UnitBudget) -> UnitSelection:
    """By a scan: the units of each group are zeroed alone to several levels; what adds the least error a weight goes.

    Raises:
        DataError: There are no inputs to scan on.
    """
    if look.inputs is None:
        raise DataError("the allocation 'sensitivity' scans groups on calibration data, and there are none.")
    measure = OutputError(look.structure.model, look.inputs)
    parts = (look.structure, look.weights, look.groups, look.scores)
    look.table = table = look.memory.recall("scan", lambda: scan_units(*parts, measure))
    numbers = {group: i for i, group in enumerate(look.groups)}

    def price(group: Group, values: Scores, start: int, stop: int) -> float:
        shares, errors = table.curve(numbers[group])
        before, after = np.interp([start / len(values), stop / len(values)], shares, errors)
        size = max(1, table.sizes[numbers[group]]) * (stop - start) / len(values)
        return float(after - before) / size if stop / len(values) <= shares[-1] else np.inf

    return look.cheapest(budget, price)
