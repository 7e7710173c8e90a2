"""Units in the order of importance lost per cost saved: parameters, multiply-adds, latency.

A group that keeps the share E of the sum of its scores has lost -n log E, n being the number of weights that its units
run through. What is greatest for the cost, then, is the product over all layers of the importance that stays: the
fair division between unlike claims of Kelly et al. 1998 (Rate control for communication networks, section 2). Layers
that cost more are cut deeper, none for little gain, and none is emptied while others stay whole.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np

from onnxprune.scoring.units import Scores
from onnxprune.selection.rounding import SMALLEST_BLOCK, kept_counts, step_of
from onnxprune.selection.units import UnitBudget, UnitSelection
from onnxprune.selection.walk import Walk, spend
from onnxprune.structure.costs import Cost
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Change, Ledger
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Ids
from onnxprune.structure.weights import Weight

Loss = Callable[[int, int], float]
"""From the units of a group that are left, now and then, to what is lost on the way."""


def select_by_cost(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, budget: UnitBudget,
    cost: Cost, losses: Mapping[Group, Loss] | None = None,
) -> UnitSelection:  # fmt: skip
    """Take units in the order of importance lost per cost saved, until the budget is met: see `spend`.

    Args:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id, not negative; the order in which the units of a group go.
        budget: How much goes, and in which steps.
        cost: What is to be saved.
        losses: What each group loses; by default what its scores say, as above.
    """
    offers: list[UnitOffer] = []

    def start() -> Walk:
        ledger = Ledger(structure, weights, groups, budget.floor, cost)
        offers[:] = [UnitOffer(ledger, group, scores, budget, (losses or {}).get(group)) for group in groups]
        return Walk(ledger, list(offers))

    spent = spend(start, budget, again=losses is not None)
    removed = np.zeros(structure.terms.count, bool)
    for offer, left in zip(offers, spent.places, strict=True):
        removed[offer.going(left)] = True
    return UnitSelection(removed, int(spent.prunable), int(spent.gone))


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
        part = step_of(ledger.structure, group, SMALLEST_BLOCK) if budget.round_to == "auto" else step
        finer = set(range(part, len(group), part)) | set(self.counts)
        self.finer = sorted((n for n in finer if n >= self.counts[-1]), reverse=True)  # counts that kernels run well
        self.place = len(group)  # how many units are left
        self.level = 0  # the last of the counts that are no less
        self.loss = loss or self._loss
        self._last: Change | None = None  # the step that was priced last: much of what goes has to do with other groups

    def price(self) -> tuple[float, Change] | None:
        """Return the loss per saved cost of the next step, and the step; one that saves nothing joins the one behind.

        None where no step is possible or none saves anything.
        """
        now = self.place
        if self._last is not None and (known := self.ledger.still(self._last)) is not None:
            return self.loss(now, now - len(known.atoms)) / (self.ledger.cost - known.cost), known
        for then in islice(self.counts, self.level + 1, None):
            change = self.to(then)
            if change is None:
                return None
            saved = self.ledger.cost - change.cost
            if saved > 0:
                self._last = change
                return self.loss(now, then) / saved, change
        return None

    def enough(self, cost: float) -> Change | None:
        """The smallest step, to a count between two round ones as well, with which the model costs no more."""
        counts = [n for n in self.finer if n < self.place]
        least = bisect_left(counts, True, key=lambda left: (change := self.to(left)) is None or change.cost <= cost)
        return self.to(counts[least]) if least < len(counts) else None

    def to(self, left: int) -> Change | None:
        """What going on to fewer units is; None where it is not possible."""
        return self.ledger.preview(self.going(left)[len(self.atoms) - self.place :])

    def after(self, change: Change) -> int:
        """How many units are left after a step."""
        return self.place - len(change.atoms)

    def lost(self, change: Change) -> float:
        """What a step loses."""
        return self.loss(self.place, self.after(change))

    def take(self, change: Change) -> None:
        """Do the step."""
        self.ledger.commit(change)
        self._last = None
        self.place = self.after(change)
        while self.level + 1 < len(self.counts) and self.counts[self.level + 1] >= self.place:
            self.level += 1

    def going(self, left: int) -> Ids:
        """The units that go where so many are left of the whole group."""
        return self.atoms[: len(self.atoms) - left]

    @property
    def least_loss(self) -> float:
        """What the smallest step loses, to a count between two round ones as well."""
        after = next((n for n in self.finer if n < self.place), None)
        return math.inf if after is None else self.loss(self.place, after)

    @property
    def share_gone(self) -> float:
        """The share of the group's units that went."""
        return 1 - self.place / len(self.atoms)

    def _loss(self, now: int, then: int) -> float:
        before, after = self.worth[now - 1], self.worth[then - 1]
        if before <= 0:
            return 0.0
        return self.layers * math.log(before / after)
