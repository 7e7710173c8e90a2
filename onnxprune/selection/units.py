"""Which units go: the least important ones, in steps that keep counts round, until the budget is met."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxprune.scoring.units import Scores
from onnxprune.selection.rounding import RoundTo, kept_counts, step_of
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools, Ids
from onnxprune.structure.weights import Weight

OVERSHOOT = 0.005
"""A step that goes further beyond the target than this share is left out."""

Price = Callable[[Group, Scores, int, int], float]
"""From a group, its units' scores in rising order, and from which to which of them go: how dear they are."""


@dataclass(frozen=True)
class UnitBudget:
    """How much goes, and in which steps.

    Attributes:
        sparsity: The share of prunable parameters that should be gone, 0 to 1.
        round_to: The step of kept counts.
        floor: No axis falls below so many indices.
        most: The share that the last step of a schedule brings what is gone to. The steps before may reach it: a cut
            from 64 channels to 48 is more than a small step, and the group would never be cut.
        of_cost: Whether the share is one of the cost, which has to be saved, with as little beyond it as can be: the
            last group may end between two round counts, since these matter less than what they waste.
    """

    sparsity: float
    round_to: RoundTo = "auto"
    floor: int = 1
    most: float = 0.0
    of_cost: bool = False

    @property
    def limit(self) -> float:
        """The share that a single cut may bring what is gone to: a little more than what should be gone."""
        return max(self.sparsity, self.most) + OVERSHOOT


@dataclass(frozen=True)
class UnitSelection:
    """What goes.

    Attributes:
        removed: Flags by atom id.
        prunable: The parameters that could go, by the groups on offer.
        gone: The parameters that go.
    """

    removed: Bools
    prunable: int
    gone: int

    @property
    def sparsity(self) -> float:
        """The share of prunable parameters that go."""
        return self.gone / self.prunable if self.prunable else 0.0


def select_units(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, budget: UnitBudget,
    price: Price,
) -> UnitSelection:  # fmt: skip
    """Take units, the cheapest first, until the budget is met, or the nearest below it.

    Args:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id; the order in which the units of a group go.
        budget: How much goes.
        price: How groups compete: the cheapest units go first, whatever their group.
    """
    ledger = Ledger(structure, weights, groups, budget.floor)
    target, limit = budget.sparsity * ledger.prunable, budget.limit * ledger.prunable
    queue = [_Queue(structure, group, scores, budget, price) for group in groups]
    heap = [(q.priority(), i) for i, q in enumerate(queue) if q.more()]
    heapq.heapify(heap)
    while heap and ledger.gone < target:
        _, i = heapq.heappop(heap)
        atoms = queue[i].take()
        if ledger.remove(atoms, limit=limit) and queue[i].more():
            heapq.heappush(heap, (queue[i].priority(), i))
    return UnitSelection(ledger.removed, ledger.prunable, int(ledger.gone))


class _Queue:
    """The units of one group, least important first, in chunks that end at allowed counts."""

    def __init__(self, structure: Structure, group: Group, scores: Scores, budget: UnitBudget, price: Price) -> None:
        values = scores[group.atoms]
        order = np.argsort(values, kind="stable")
        self.atoms = group.atoms[order]
        self.values = values[order]
        self.price = partial(price, group, self.values)
        self.counts = kept_counts(len(group), step_of(structure, group, budget.round_to), budget.floor)
        self.level = 0
        self.last = 0.0

    def more(self) -> bool:
        """Say whether there is another chunk."""
        return self.level + 1 < len(self.counts)

    def _chunk(self) -> slice:
        n = len(self.atoms)
        return slice(n - self.counts[self.level], n - self.counts[self.level + 1])

    def priority(self) -> float:
        """Return how dear the next chunk is, never less than the chunk before."""
        chunk = self._chunk()
        self.last = max(self.last, self.price(chunk.start, chunk.stop))
        return self.last

    def take(self) -> Ids:
        """Return the atoms of the next chunk and go on to the one behind it."""
        chunk = self._chunk()
        self.level += 1
        return self.atoms[chunk]
