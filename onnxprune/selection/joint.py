"""Units, tiles and whole residual blocks compete: what goes first loses least for what it saves.

    division = divide(structure, weights, offers, budget, cost)

All losses are changes of the model's outputs on the same samples, so that they can be compared: units as
`measure_effects` has them, tiles and blocks as joint_effects.py has them. Savings are those of the model as it is left
by the steps before: a layer in tiles saves less by fewer channels, and a block that is gone saves nothing any more.
Frantar et al. 2022 (SPDY) and Kurtic et al. 2023 (ZipLM) divide a latency target among layers of one granularity by
loss per time; here all granularities are on offer at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.size import Shapes
from onnxprune.scoring.units import Scores
from onnxprune.selection.by_cost import Loss, UnitOffer
from onnxprune.selection.units import UnitBudget
from onnxprune.selection.walk import Walk, spend
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.costs import Cost
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Change, Ledger
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight, total_size

_LEAST_LOSS = 0.1
"""A block loses at least this share of its effect, however much was lost inside it before."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TileOffer:
    """Layers that read the same value and may be written in tiles.

    Attributes:
        weights: Their weights.
        shares: Shares of the weights that become zero, rising, the first 0.
        effects: What the outputs change by at each.
        factors: What share of their cost is left at each.
    """

    weights: Sequence[Weight]
    shares: Numbers
    effects: Numbers
    factors: Numbers


@dataclass(frozen=True, eq=False)
class Offers:
    """All that may go.

    Attributes:
        groups: Groups of units.
        scores: By atom id: the order in which the units of a group go.
        losses: What each group loses on the way to fewer units.
        tiles: Layers that may be written in tiles.
        blocks: Residual blocks, each with what the outputs change by without it.
    """

    groups: Sequence[Group] = ()
    scores: Scores = field(default_factory=lambda: np.zeros(0))
    losses: Mapping[Group, Loss] = field(default_factory=dict)
    tiles: Sequence[TileOffer] = ()
    blocks: Sequence[tuple[ResidualBlock, float]] = ()


GroupKey = tuple[str, str, int]
"""The name of a group, its kind, and its place among those that share both."""


def group_keys(groups: Sequence[Group]) -> list[GroupKey]:
    """Return what tells groups apart, in another analysis of the model as well."""
    seen = Counter[tuple[str, str]]()
    keys = []
    for group in groups:
        keys.append((group.name, group.kind, seen[group.name, group.kind]))
        seen[group.name, group.kind] += 1
    return keys


@dataclass(frozen=True)
class Division:
    """What goes of each granularity. All is told by names, which outlive a removal.

    Attributes:
        blocks: The residual blocks that go, by the names of their sums.
        units: How many units are left of a group, by its key (`group_keys`).
        tiles: The share of what is left of a weight that becomes zero, by its name.
    """

    blocks: frozenset[str]
    units: Mapping[GroupKey, int]
    tiles: Mapping[str, float]


def divide(structure: Structure, weights: Sequence[Weight], offers: Offers, budget: UnitBudget, cost: Cost) -> Division:
    """Take what loses least for what it saves, until the budget is met: see `spend`.

    Args:
        structure: The analysis of the model.
        weights: The weights that count where a share of the parameters goes.
        offers: All that may go.
        budget: How much goes, and in which steps of units.
        cost: What is to be saved.
    """
    steps: list[_Units | _Tiles | _Block] = []

    def start() -> Walk:
        left = _Left(structure, weights, offers, budget, cost)
        units = zip(offers.groups, group_keys(offers.groups), strict=True)
        steps[:] = [
            *(_Units(left, group, key, offers, budget) for group, key in units),
            *(_Tiles(left, tiles) for tiles in offers.tiles),
            *(_Block(left, block, effect) for block, effect in offers.blocks),
        ]
        return Walk(left, list(steps))

    return _division(steps, spend(start, budget, again=True).places)


def _division(steps: Sequence[_Units | _Tiles | _Block], places: Sequence[int]) -> Division:
    """What went where each of some steps is at its place."""
    units, tiles, blocks = dict[GroupKey, int](), dict[str, float](), set[str]()
    gone = set[ir.Value]()
    for step, place in zip(steps, places, strict=True):
        if isinstance(step, _Block) and not place:
            blocks.add(step.block.name)
            gone |= step.block.weights.keys()
    for step, place in zip(steps, places, strict=True):
        if isinstance(step, _Units) and place < step.whole:
            units[step.key] = place
        elif isinstance(step, _Tiles) and place < step.whole:
            share = float(step.offer.shares[step.whole - place])
            tiles |= {weight.name: share for weight in step.offer.weights if weight.value not in gone}
    return Division(frozenset(blocks), units, tiles)


class _Left:
    """What is left of the model, and what was lost.

    Attributes:
        ledger: Counts parameters and costs.
        prunable: The parameters of all weights that count.
        limit: So many of them may go.
        factors: What share of its cost a node still has.
    """

    def __init__(
        self, structure: Structure, weights: Sequence[Weight], offers: Offers, budget: UnitBudget, cost: Cost
    ) -> None:
        self.factors: dict[ir.Node, float] = {}
        self.paid: list[tuple[frozenset[ir.Value], float]] = []

        def cost_now(node: ir.Node, shapes: Shapes) -> float:
            factor = self.factors.get(node, 1.0)
            return factor * cost(node, shapes) if factor else 0.0

        self.ledger = Ledger(structure, weights, offers.groups, budget.floor, cost_now)
        self.prunable = total_size(weights)
        self.limit = math.inf if budget.of_cost else budget.limit * self.prunable

    @property
    def gone(self) -> float:
        """The parameters that went."""
        return self.ledger.gone

    @property
    def cost(self) -> float:
        """What the model costs now."""
        return self.ledger.cost

    def there(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """Those of some nodes that went with no block."""
        return [node for node in nodes if self.factors.get(node, 1.0)]

    def change(self, nodes: Collection[ir.Node], factor: float, densities: Mapping[ir.Value, float]) -> None:
        """Note what share of their cost nodes still have, and what share of weights is left."""
        self.factors |= dict.fromkeys(nodes, factor)
        self.ledger.recount(nodes, densities)

    def lost_in(self, values: Set[ir.Value]) -> float:
        """What was lost at some weights and no others."""
        return sum(loss for where, loss in self.paid if where <= values)


class _Units(UnitOffer):
    """The units of one group."""

    def __init__(self, left: _Left, group: Group, key: GroupKey, offers: Offers, budget: UnitBudget) -> None:
        super().__init__(left.ledger, group, offers.scores, budget, offers.losses.get(group))
        self.left, self.whole, self.key = left, len(group), key
        weights = left.ledger.structure.weights
        self.values = frozenset(site.value for site in group.sites if site.value in weights)

    def take(self, change: Change) -> None:
        self.left.paid.append((self.values, self.lost(change)))
        super().take(change)


@dataclass(frozen=True)
class _Cut:
    """A step: the place after it, what is lost with it, and what would be then."""

    place: int
    loss: float
    gone: float
    cost: float


class _Cuts(ABC):
    """Something that goes in steps that are few, so that all of them are looked at.

    Attributes:
        left: What is left of the model.
        whole: The place that it begins at.
        place: The place that it is at.
    """

    def __init__(self, left: _Left, whole: int) -> None:
        self.left, self.whole, self.place = left, whole, whole

    @abstractmethod
    def cuts(self) -> Iterable[_Cut]:
        """The steps that save something, the smallest first."""

    @abstractmethod
    def take(self, cut: _Cut) -> None:
        """Do a step."""

    def price(self) -> tuple[float, _Cut] | None:
        fitting = [cut for cut in self.cuts() if cut.gone <= self.left.limit]
        prices = [cut.loss / (self.left.cost - cut.cost) for cut in fitting]
        return min(zip(prices, fitting, strict=True), key=lambda found: found[0], default=None)

    def enough(self, cost: float) -> _Cut | None:
        return next((cut for cut in self.cuts() if cut.cost <= cost), None)

    def to(self, place: int) -> _Cut | None:
        return next((cut for cut in self.cuts() if cut.place == place), None)

    def after(self, cut: _Cut) -> int:
        return cut.place

    def lost(self, cut: _Cut) -> float:
        return cut.loss

    @property
    def least_loss(self) -> float:
        return next((cut.loss for cut in self.cuts()), math.inf)

    @property
    def share_gone(self) -> float:
        return 1 - self.place / self.whole


class _Tiles(_Cuts):
    """Layers that are written in tiles."""

    def __init__(self, left: _Left, offer: TileOffer) -> None:
        super().__init__(left, len(offer.shares) - 1)
        self.offer = offer
        self.nodes = {weight.node for weight in offer.weights}
        self.values = frozenset(weight.value for weight in offer.weights)
        self.size = total_size(offer.weights)

    @property
    def share(self) -> float:
        """The share of the layers, as units left them, that is zero."""
        return float(self.offer.shares[self.whole - self.place])

    def cuts(self) -> Iterable[_Cut]:
        offer, now, ledger = self.offer, self.whole - self.place, self.left.ledger
        cost, size = ledger.cost_of(self.nodes), ledger.size_of(self.values)
        if not self.place or not cost:
            return []
        saved = cost * (1 - offer.factors / offer.factors[now])
        gone = size * (1 - (1 - offer.shares) / (1 - offer.shares[now]))
        lost = self._lost(size)
        return [
            _Cut(self.whole - i, float(lost[i] - lost[now]), self.left.gone + gone[i], self.left.cost - saved[i])
            for i in range(now + 1, len(offer.shares))
            if saved[i] > 0 and np.isfinite(lost[i])
        ]

    def take(self, cut: _Cut) -> None:
        self.place = cut.place
        self.left.paid.append((self.values, cut.loss))
        there = self.left.there(self.nodes)
        densities = {weight.value: 1 - self.share for weight in self.offer.weights if weight.node in there}
        self.left.change(there, float(self.offer.factors[self.whole - self.place]), densities)

    def _lost(self, size: float) -> Numbers:
        """What each share loses of the layers as they are: what went with units before counts as zero, too.

        Half of what is left of a layer that lost half of its inputs is a quarter of the layer, not another half.
        """
        left = size / (1 - self.share) / self.size
        gone = 1 - left * (1 - self.offer.shares)
        return np.interp(gone, self.offer.shares, self.offer.effects, right=np.inf)


class _Block(_Cuts):
    """A whole residual block."""

    def __init__(self, left: _Left, block: ResidualBlock, effect: float) -> None:
        super().__init__(left, 1)
        self.block, self.effect = block, effect

    def cuts(self) -> Iterable[_Cut]:
        block, left = self.block, self.left
        saved = left.ledger.cost_of(block.nodes) if self.place else 0.0
        if saved <= 0 or not math.isfinite(self.effect):
            return []
        loss = max(self.effect - left.lost_in(block.weights.keys()), _LEAST_LOSS * self.effect)
        return [_Cut(0, loss, left.gone + left.ledger.size_of(block.weights.keys()), left.cost - saved)]

    def take(self, cut: _Cut) -> None:
        self.place = 0
        self.left.paid.append((frozenset(self.block.weights), cut.loss))
        self.left.change(self.block.nodes, 0.0, dict.fromkeys(self.block.weights, 0.0))
