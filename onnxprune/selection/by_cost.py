"""Units in the order of importance lost per cost saved: parameters, multiply-adds, latency.

A group that keeps the share E of the sum of its scores has lost -n log E, n being the number of weights that its units
run through. What is greatest for the cost, then, is the product over all layers of the importance that stays: the
fair division between unlike claims of Kelly et al. 1998 (Rate control for communication networks, section 2). Layers
that cost more are cut deeper, none for little gain, and none is emptied while others stay whole.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice

import numpy as np

from onnxprune.scoring.units import Scores
from onnxprune.selection.rounding import SMALLEST_BLOCK, kept_counts, step_of
from onnxprune.selection.units import UnitBudget, UnitSelection
from onnxprune.structure.costs import Cost
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Change, Ledger
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

_SHORT, _TRIES = 0.01, 8  # a result this share below the target is tried again without one of the last steps

_Step = tuple[int, int]  # the number of a group, and how many of its units are left

Loss = Callable[[int, int], float]
"""From the units of a group that are left, now and then, to what is lost on the way."""


def select_by_cost(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, budget: UnitBudget,
    cost: Cost, losses: Mapping[Group, Loss] | None = None,
) -> UnitSelection:  # fmt: skip
    """Take units in the order of importance lost per cost saved, until the sparsity is met, or the nearest below it.

    Args:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id, not negative; the order in which the units of a group go.
        budget: How much goes, and in which steps.
        cost: What is to be saved.
        losses: What each group loses; by default what its scores say, as above.
    """
    walk = partial(_walk, structure, weights, groups, scores, budget, cost, losses or {})
    ledger, steps = walk(frozenset())
    for refused in reversed(steps[-_TRIES:]) if losses else ():
        if ledger.gone >= (budget.sparsity - _SHORT) * ledger.prunable:
            break
        other, _ = walk(frozenset([refused]))  # a large step may leave no room for what fits the rest
        ledger = other if other.gone > ledger.gone else ledger
    return UnitSelection(ledger.removed, ledger.prunable, ledger.gone)


def _walk(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, budget: UnitBudget,
    cost: Cost, losses: Mapping[Group, Loss], refused: frozenset[_Step],
) -> tuple[Ledger, list[_Step]]:  # fmt: skip
    """Take the cheapest steps but for those that are refused; returns what is left and the steps."""
    ledger = Ledger(structure, weights, groups, budget.floor, cost)
    target = budget.sparsity * ledger.prunable
    limit = budget.limit * ledger.prunable
    offers = [UnitOffer(ledger, group, scores, budget, losses.get(group)) for group in groups]
    heap = [(0.0, 0.0, i) for i in range(len(offers))]  # prices are found when an offer is first looked at
    steps: list[_Step] = []
    while heap and ledger.gone < target:
        _, share, i = heapq.heappop(heap)
        price_and_change = offers[i].price()
        if price_and_change is None:
            continue
        price, change = price_and_change
        step = (i, offers[i].left - len(change.atoms))
        if heap and price > heap[0][0]:  # dearer than when it was last looked at: others may come first
            heapq.heappush(heap, (price, share, i))
            continue
        if budget.fine and change.gone > target:
            change = offers[i].smallest(target) or change
        if change.gone <= limit and step not in refused:
            offers[i].take(change)
            steps.append(step)
            heapq.heappush(heap, (price, offers[i].share_gone, i))  # of equal prices, the group cut least comes first
    return ledger, steps


class UnitOffer:
    """The units of one group, least important first, in steps to the counts that it may shrink to."""

    def __init__(
        self, ledger: Ledger, group: Group, scores: Scores, budget: UnitBudget, loss: Loss | None = None
    ) -> None:
        order = np.argsort(scores[group.atoms], kind="stable")
        self.ledger = ledger
        self.atoms = group.atoms[order]
        self.worth = np.cumsum(scores[self.atoms][::-1])  # worth[k - 1]: of the k most important units
        self.layers = len({s.value for s in group.sites if s.value in ledger.structure.weights})
        step = step_of(ledger.structure, group, budget.round_to)
        self.counts = kept_counts(len(group), step, budget.floor)
        self.part = 1 if budget.round_to == "none" else step_of(ledger.structure, group, SMALLEST_BLOCK)
        self.level = 0  # the place of what is left among the counts
        self.loss = loss or self._loss
        self._last: Change | None = None  # the step that was priced last: much of what goes has to do with other groups

    def price(self) -> tuple[float, Change] | None:
        """Return the loss per saved cost of the next step, and the step; one that saves nothing joins the one behind.

        None where no step is possible or none saves anything.
        """
        now = self.left
        if self._last is not None and (known := self.ledger.still(self._last)) is not None:
            return self.loss(now, now - len(known.atoms)) / (self.ledger.cost - known.cost), known
        for then in islice(self.counts, self.level + 1, None):
            change = self.ledger.preview(self.atoms[len(self.atoms) - now : len(self.atoms) - then])
            if change is None:
                return None
            saved = self.ledger.cost - change.cost
            if saved > 0:
                self._last = change
                return self.loss(now, then) / saved, change
        return None

    def smallest(self, target: float) -> Change | None:
        """The smallest part of the next step with which so many parameters are gone; None where no part does.

        Counts stay multiples of `SMALLEST_BLOCK`, which kernels still run well.
        """
        now, then = self.counts[self.level : self.level + 2]
        for left in range((now - 1) // self.part * self.part, then, -self.part):
            change = self.ledger.preview(self.atoms[len(self.atoms) - now : len(self.atoms) - left])
            if change is not None and change.gone >= target:
                return change
        return None

    def take(self, change: Change) -> None:
        """Do the step."""
        self.ledger.commit(change)
        self._last = None
        left = self.left - len(change.atoms)
        while self.counts[self.level] > left:
            self.level += 1

    @property
    def left(self) -> int:
        """How many of the group's units are left."""
        return self.counts[self.level]

    @property
    def share_gone(self) -> float:
        """The share of the group's units that went."""
        return 1 - self.left / len(self.atoms)

    def _loss(self, now: int, then: int) -> float:
        before, after = self.worth[now - 1], self.worth[then - 1]
        if before <= 0:
            return 0.0
        return self.layers * math.log(before / after)
