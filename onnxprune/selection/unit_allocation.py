"""How groups of units compete for what goes: a registry of functions from a `UnitLook` to a price.

A price says how dear it is to remove the next units of a group, those of the lowest scores; `select_units` always takes
the cheapest. The order inside a group is the criterion's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.runtime.statistics import Inputs
from onnxprune.scoring.units import Scores
from onnxprune.scoring.weights import Weight
from onnxprune.selection.sensitivity import OutputError, Sensitivity, scan_units
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure

Price = Callable[[Group, Scores, int, int], float]
"""From a group, its units' scores in rising order, and from which to which of them go: a number, never negative."""


@dataclass(eq=False)
class UnitLook:
    """What an allocation of units may look at.

    Attributes:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id.
        inputs: Unlabelled samples by input name; None where there are none.
        table: What a scan found, once one was made.
    """

    structure: Structure
    weights: Sequence[Weight]
    groups: Sequence[Group]
    scores: Scores
    inputs: Inputs | None = None
    table: Sensitivity | None = None


UNIT_ALLOCATIONS: dict[str, Callable[[UnitLook], Price]] = {}


def unit_allocation(name: str) -> Callable[[Callable[[UnitLook], Price]], Callable[[UnitLook], Price]]:
    """Register an allocation of units."""

    def register(function: Callable[[UnitLook], Price]) -> Callable[[UnitLook], Price]:
        UNIT_ALLOCATIONS[name] = function
        return function

    return register


def by_score(group: Group, values: Scores, start: int, stop: int) -> float:
    """The mean score."""
    return float(values[start:stop].mean())


@unit_allocation("global")
def together(look: UnitLook) -> Price:
    """The units of all groups are ranked together by their scores, which are relative to their group's mean."""
    return by_score


@unit_allocation("uniform")
def uniform(look: UnitLook) -> Price:
    """The same share of every group."""
    return lambda group, values, start, stop: stop / len(values)


@unit_allocation("sensitivity")
def by_sensitivity(look: UnitLook) -> Price:
    """By a scan: the units of each group are zeroed alone to several levels; what adds the least error a weight goes.

    Raises:
        DataError: There are no inputs to scan on.
    """
    if look.inputs is None:
        raise DataError("the allocation 'sensitivity' scans groups on calibration data, and there are none.")
    measure = OutputError(look.structure.model, look.inputs)
    look.table = table = scan_units(look.structure, look.weights, look.groups, look.scores, measure)
    numbers = {group: i for i, group in enumerate(look.groups)}

    def price(group: Group, values: Scores, start: int, stop: int) -> float:
        shares, errors = table.curve(numbers[group])
        before, after = np.interp([start / len(values), stop / len(values)], shares, errors)
        size = max(1, table.sizes[numbers[group]]) * (stop - start) / len(values)
        return float(after - before) / size if stop / len(values) <= shares[-1] else np.inf

    return price
