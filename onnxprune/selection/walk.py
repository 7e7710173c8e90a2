"""Offers compete for a budget: the step that loses least for what it saves goes first, until the budget is met.

    spent = spend(start, budget, again=True)
    spent.places                                # how far each offer went

What is on offer, a group of units, a layer in tiles or a residual block, is an `Offer`: it stands at a place, a count
that falls with every step. How a budget ends is said here for all of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from onnxprune.selection.units import UnitBudget

_SHORT, _TRIES = 0.01, 8  # a result this share below the target is tried again without one of the last steps
_NEAR = 0.1  # where no more than this share of the cost is still to be saved, the last step of every offer is compared
_SWAPS = 4  # so many large steps at most are taken first, small ones being left out in return

_Step = tuple[int, int]  # the number of an offer, and the place that it goes to


class Left(Protocol):
    """What is left of a model: the parameters that could go and that went, and what it costs."""

    @property
    def prunable(self) -> float: ...
    @property
    def gone(self) -> float: ...
    @property
    def cost(self) -> float: ...


class Change(Protocol):
    """What would be after a step: the parameters gone, all that went before included, and what the model would cost."""

    @property
    def gone(self) -> float: ...
    @property
    def cost(self) -> float: ...


class Offer(Protocol):
    """Something that goes step by step. Changes are of its own making."""

    @property
    def place(self) -> int:
        """Where it is: less with every step."""
        ...

    @property
    def share_gone(self) -> float:
        """The share of it that went."""
        ...

    @property
    def least_loss(self) -> float:
        """No step loses less; infinite where there is none."""
        ...

    def price(self) -> tuple[float, Any] | None:
        """Return the loss per saved cost of the next step, and the step; None where none saves anything."""
        ...

    def enough(self, cost: float) -> Any | None:
        """The smallest step with which the model costs no more; None where there is none."""
        ...

    def to(self, place: int) -> Any | None:
        """The step to a place; None where it is not possible."""
        ...

    def after(self, change: Any) -> int:
        """The place after a step."""
        ...

    def lost(self, change: Any) -> float:
        """What a step loses."""
        ...

    def take(self, change: Any) -> None:
        """Do a step."""
        ...


@dataclass(frozen=True)
class Spent:
    """What a budget was spent on.

    Attributes:
        places: Where each offer ended.
        gone: The parameters that go.
        prunable: The parameters that could go.
        loss: What is lost with them, as far as it was added up: not where a share of the parameters goes.
    """

    places: tuple[int, ...]
    gone: float
    prunable: float
    loss: float = 0.0


def spend(start: Callable[[], Walk], budget: UnitBudget, *, again: bool) -> Spent:
    """Take steps until the budget is met.

    A share of the parameters is met, or the nearest below it. A share of the cost is saved in full, with as little
    beyond it as loses least: where a step goes too far, what smaller steps of other offers lose is compared with it,
    and what is lost with the large step and without some of the small ones before it.

    Args:
        start: Begins anew, nothing having gone.
        budget: How much goes.
        again: Whether a share of the parameters that is not met well is tried again without one of the last steps.
    """
    if budget.of_cost:
        return _saving(start, budget)
    best, steps = start().until(budget)
    for refused in reversed(steps[-_TRIES:]) if again else ():
        if best.gone >= (budget.sparsity - _SHORT) * best.prunable:
            break
        other, _ = start().until(budget, refused)  # a large step may leave no room for what fits the rest
        best = other if other.gone > best.gone else best
    return best


def _saving(start: Callable[[], Walk], budget: UnitBudget) -> Spent:
    """Save a share of the cost: of several ways, that which loses least."""
    if budget.most > budget.sparsity:  # a step before the last: what a large cut saves too much is of use to the next
        return start().saved(budget)
    best, too_large = start().ended(budget)
    first: list[_Step] = []
    while too_large is not None and len(first) < _SWAPS:
        first.append(too_large)
        other, too_large = start().ended(budget, first, best)
        if other is best:
            break
        best = other
    return best


class Walk:
    """Steps of offers, the cheapest first.

    Attributes:
        left: What is left of the model; the steps of the offers change it.
        offers: The offers.
    """

    def __init__(self, left: Left, offers: Sequence[Offer]) -> None:
        self.left, self.offers = left, offers
        self._heap = [(0.0, 0.0, i) for i in range(len(offers))]  # prices are found when an offer is first looked at

    def until(self, budget: UnitBudget, refused: _Step | None = None) -> tuple[Spent, list[_Step]]:
        """Take steps but for one until a share of the parameters is gone; return what was spent and the steps."""
        left, steps = self.left, list[_Step]()
        target, limit = (share * left.prunable for share in (budget.sparsity, budget.limit))
        while left.gone < target and (found := self._next()) is not None:
            price, i, change = found
            step = (i, self.offers[i].after(change))
            if change.gone <= limit and step != refused:
                steps.append(step)
                self._take(price, i, change)
        return self._spent(), steps

    def saved(self, budget: UnitBudget) -> Spent:
        """Take steps until a share of the cost is saved."""
        left = self.left
        target, limit = ((1 - share) * left.cost for share in (budget.sparsity, budget.limit))
        while left.cost > target and (found := self._next()) is not None:
            price, i, change = found
            if change.cost <= target:
                change = self.offers[i].enough(target) or change
            if change.cost >= limit:
                self._take(price, i, change)
        return self._spent()

    def ended(
        self, budget: UnitBudget, first: Sequence[_Step] = (), best: Spent | None = None
    ) -> tuple[Spent, _Step | None]:
        """Take some steps, then the cheapest of those that save too little; one more of any offer makes an end.

        Args:
            budget: With the share of the cost that is to be saved.
            first: The steps to begin with.
            best: An end that is known.

        Returns:
            The end that loses least, or all steps where no end saves enough; and the first step that saved too much.
        """
        left, loss = self.left, 0.0
        whole, target = left.cost, (1 - budget.sparsity) * left.cost
        for i, place in first:
            if (change := self.offers[i].to(place)) is not None:
                loss += self.offers[i].lost(change)
                self.offers[i].take(change)
        too_large: _Step | None = None
        while left.cost > target and (best is None or loss < best.loss):
            near = left.cost - target <= _NEAR * whole
            best = self._best_end(range(len(self.offers) if near else 0), target, loss, best)
            if (found := self._next()) is None:
                break
            price, i, change = found
            if change.cost > target:
                loss += self.offers[i].lost(change)
                self._take(price, i, change)
            else:
                too_large = too_large or (i, self.offers[i].after(change))
                best = self._best_end(() if near else (i,), target, loss, best)
        if best is None or (left.cost <= target and loss < best.loss):
            best = self._spent(loss)
        return best, too_large

    def _best_end(self, numbers: Iterable[int], target: float, loss: float, best: Spent | None) -> Spent | None:
        """The end that loses least: that which is known, or one more step of an offer, `loss` being lost before it."""
        for i in numbers:
            offer = self.offers[i]
            if best is not None and loss + offer.least_loss >= best.loss:
                continue
            change = offer.enough(target)
            if change is not None and (best is None or loss + offer.lost(change) < best.loss):
                places = [other.place for other in self.offers]
                places[i] = offer.after(change)
                best = Spent(tuple(places), change.gone, self.left.prunable, loss + offer.lost(change))
        return best

    def _spent(self, loss: float = 0.0) -> Spent:
        return Spent(tuple(offer.place for offer in self.offers), self.left.gone, self.left.prunable, loss)

    def _next(self) -> tuple[float, int, Change] | None:
        """The price of the cheapest step, the number of its offer, and the step."""
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
        heapq.heappush(self._heap, (price, self.offers[i].share_gone, i))  # of equal prices, the offer cut least first
