"""Units in the order of importance lost per cost saved: parameters, multiply-adds, latency.

A group that keeps the share E of the sum of its scores has lost -n log E, n being the number of weights that its units
run through. What is greatest for the cost, then, is the product over all layers of the importance that stays: the
fair division between unlike claims of Kelly et al. 1998 (Rate control for communication networks, section 2). Layers
that cost more are cut deeper, none for little gain, and none is emptied while others stay whole.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
_NEAR = 0.1  # where no more than this share of the cost is still to be saved, the last step of every group is compared
_SWAPS = 4  # so many large steps at most are taken first, small ones being left out in return

_Step = tuple[int, int]  # the number of a group, and how many of its units are left

Loss = Callable[[int, int], float]
"""From the units of a group that are left, now and then, to what is lost on the way."""


def select_by_cost(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, budget: UnitBudget,
    cost: Cost, losses: Mapping[Group, Loss] | None = None,
) -> UnitSelection:  # fmt: skip
    """Take units in the order of importance lost per cost saved, until the budget is met.

    A share of the parameters is met, or the nearest below it. A share of the cost is saved in full, with as little
    beyond it as loses least: where a step goes too far, what smaller steps of other groups lose is compared with it,
    and what is lost with the large step and without some of the small ones before it.

    Args:
        structure: The analysis of the model.
        weights: The weights that count.
        groups: The groups whose units may go.
        scores: By atom id, not negative; the order in which the units of a group go.
        budget: How much goes, and in which steps.
        cost: What is to be saved.
        losses: What each group loses; by default what its scores say, as above.
    """

    def walk() -> _Walk:
        ledger = Ledger(structure, weights, groups, budget.floor, cost)
        return _Walk(ledger, [UnitOffer(ledger, group, scores, budget, (losses or {}).get(group)) for group in groups])

    if budget.of_cost:
        return _saving(walk, budget)
    ledger, steps = walk().until(budget)
    for refused in reversed(steps[-_TRIES:]) if losses else ():
        if ledger.gone >= (budget.sparsity - _SHORT) * ledger.prunable:
            break
        other, _ = walk().until(budget, refused)  # a large step may leave no room for what fits the rest
        ledger = other if other.gone > ledger.gone else ledger
    return UnitSelection(ledger.removed, ledger.prunable, ledger.gone)


def _saving(walk: Callable[[], _Walk], budget: UnitBudget) -> UnitSelection:
    """Save a share of the cost: of several ways, that which loses least."""
    if budget.most > budget.sparsity:  # a step before the last: what a large cut saves too much is of use to the next
        return walk().saved(budget)
    best, too_large = walk().ended(budget)
    first: list[_Step] = []
    while too_large is not None and len(first) < _SWAPS:
        first.append(too_large)
        other, too_large = walk().ended(budget, first, best)
        if other is best:
            break
        best = other
    return best.selection


@dataclass(frozen=True, eq=False)
class _End:
    """What goes, and what is lost with it."""

    loss: float
    selection: UnitSelection


class _Walk:
    """Steps of groups, the cheapest first."""

    def __init__(self, ledger: Ledger, offers: Sequence[UnitOffer]) -> None:
        self.ledger, self.offers = ledger, offers
        self._heap = [(0.0, 0.0, i) for i in range(len(offers))]  # prices are found when an offer is first looked at

    def until(self, budget: UnitBudget, refused: _Step | None = None) -> tuple[Ledger, list[_Step]]:
        """Take steps but for one until a share of the parameters is gone; return what is left and the steps."""
        ledger, steps = self.ledger, list[_Step]()
        target, limit = (share * ledger.prunable for share in (budget.sparsity, budget.limit))
        while ledger.gone < target and (found := self._next()) is not None:
            price, i, change = found
            step = (i, self.offers[i].left - len(change.atoms))
            if change.gone <= limit and step != refused:
                steps.append(step)
                self._take(price, i, change)
        return ledger, steps

    def saved(self, budget: UnitBudget) -> UnitSelection:
        """Take steps until a share of the cost is saved."""
        ledger = self.ledger
        target, limit = ((1 - share) * ledger.cost for share in (budget.sparsity, budget.limit))
        while ledger.cost > target and (found := self._next()) is not None:
            price, i, change = found
            if change.cost <= target:
                change = self.offers[i].enough(target) or change
            if change.cost >= limit:
                self._take(price, i, change)
        return UnitSelection(ledger.removed, ledger.prunable, ledger.gone)

    def ended(
        self, budget: UnitBudget, first: Sequence[_Step] = (), best: _End | None = None
    ) -> tuple[_End, _Step | None]:
        """Take some steps, then the cheapest of those that save too little; one more of any group makes an end.

        Args:
            budget: With the share of the cost that is to be saved.
            first: The steps to begin with.
            best: An end that is known.

        Returns:
            The end that loses least, or all steps where no end saves enough; and the first step that saved too much.
        """
        ledger, loss = self.ledger, 0.0
        whole, target = ledger.cost, (1 - budget.sparsity) * ledger.cost
        for i, left in first:
            if (change := self.offers[i].to(left)) is not None:
                loss += self.offers[i].lost(change)
                self.offers[i].take(change)
        too_large: _Step | None = None
        while ledger.cost > target and (best is None or loss < best.loss):
            near = ledger.cost - target <= _NEAR * whole
            best = self._best_end(self.offers if near else (), target, loss, best)
            if (found := self._next()) is None:
                break
            price, i, change = found
            if change.cost > target:
                loss += self.offers[i].lost(change)
                self._take(price, i, change)
            else:
                too_large = too_large or (i, self.offers[i].left - len(change.atoms))
                best = self._best_end(() if near else self.offers[i : i + 1], target, loss, best)
        if best is None or (ledger.cost <= target and loss < best.loss):
            best = _End(loss, UnitSelection(ledger.removed, ledger.prunable, ledger.gone))
        return best, too_large

    def _best_end(self, offers: Sequence[UnitOffer], target: float, loss: float, best: _End | None) -> _End | None:
        """The end that loses least: that which is known, or one more step of an offer, `loss` being lost before it."""
        for offer in offers:
            if best is not None and loss + offer.least_loss >= best.loss:
                continue
            change = offer.enough(target)
            if change is not None and (best is None or loss + offer.lost(change) < best.loss):
                removed = self.ledger.removed.copy()
                removed[change.atoms] = True
                best = _End(loss + offer.lost(change), UnitSelection(removed, self.ledger.prunable, change.gone))
        return best

    def _next(self) -> tuple[float, int, Change] | None:
        """The price of the cheapest step, the number of its group, and the step."""
        while self._heap:
            _, share, i = heapq.heappop(self._heap)
            found = self.offers[i].price()
            if found is None:
                continue
            if self._heap and found[0] > self._heap[0][0]:  # dearer than when it was last looked at
                heapq.heappush(self._heap, (found[0], share, i))
                continue
            return found[0], i, found[1]
        return None

    def _take(self, price: float, i: int, change: Change) -> None:
        self.offers[i].take(change)
        heapq.heappush(self._heap, (price, self.offers[i].share_gone, i))  # of equal prices, the group cut least first


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
        counts = [n for n in self.finer if n < self.left]
        least = bisect_left(counts, True, key=lambda left: (change := self.to(left)) is None or change.cost <= cost)
        return self.to(counts[least]) if least < len(counts) else None

    def to(self, left: int) -> Change | None:
        """What going on to fewer units is; None where it is not possible."""
        return self.ledger.preview(self.atoms[len(self.atoms) - self.left : len(self.atoms) - left])

    def lost(self, change: Change) -> float:
        """What a step loses."""
        return self.loss(self.left, self.left - len(change.atoms))

    def take(self, change: Change) -> None:
        """Do the step."""
        self.ledger.commit(change)
        self._last = None
        left = self.left - len(change.atoms)
        while self.counts[self.level] > left:
            self.level += 1

    @property
    def least_loss(self) -> float:
        """What the smallest step loses, to a count between two round ones as well."""
        after = next((n for n in self.finer if n < self.left), None)
        return math.inf if after is None else self.loss(self.left, after)

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
