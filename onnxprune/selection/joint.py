"""Units, tiles and whole residual blocks compete: what goes first loses least for what it saves.

    division = divide(structure, weights, offers, budget, cost)

All losses are changes of the model's outputs on the same samples, so that they can be compared: units as
`measure_effects` has them, tiles and blocks as joint_effects.py has them. Savings are those of the model as it is left
by the steps before: a layer in tiles saves less by fewer channels, and a block that is gone saves nothing any more.
Frantar et al. 2022 (SPDY) and Kurtic et al. 2023 (ZipLM) divide a latency target among layers of one granularity by
loss per time; here all granularities are on offer at once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.size import Shapes
from onnxprune.scoring.units import Scores
from onnxprune.selection.by_cost import Loss, UnitOffer
from onnxprune.selection.units import UnitBudget
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.costs import Cost
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Ledger
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
    """Take what loses least for what it saves, until the sparsity is met.

    Args:
        structure: The analysis of the model.
        weights: The weights that count in the sparsity.
        offers: All that may go.
        budget: How much goes, as a share of these weights, and in which steps of units.
        cost: What is to be saved.
    """
    walk = _Walk(structure, weights, offers, budget, cost)
    steps: list[_Step] = [
        *(_Units(walk, *keyed, offers, budget) for keyed in zip(offers.groups, group_keys(offers.groups), strict=True)),
        *(_Tiles(walk, tiles) for tiles in offers.tiles),
        *(_Block(walk, block, effect) for block, effect in offers.blocks),
    ]
    total = total_size(weights)
    target, limit = budget.sparsity * total, budget.limit * total
    heap = [(0.0, i) for i in range(len(steps))]  # prices are found when an offer is first looked at
    while heap and walk.gone < target:
        _, i = heapq.heappop(heap)
        offer = steps[i].price(limit - walk.gone)
        if offer is None:
            continue
        price, take = offer
        if heap and price > heap[0][0]:  # dearer than when it was last looked at: others may come first
            heapq.heappush(heap, (price, i))
            continue
        take()
        heapq.heappush(heap, (price, i))
    return walk.division(steps)


Take = Callable[[], None]


class _Step:
    """Something that goes step by step."""

    def price(self, room: float) -> tuple[float, Take] | None:
        """Return the loss per saved cost of the next step, and what does it; None where there is none.

        Args:
            room: So many parameters may still go.
        """
        raise NotImplementedError


class _Walk:
    """What is left of the model, and what was lost."""

    def __init__(
        self, structure: Structure, weights: Sequence[Weight], offers: Offers, budget: UnitBudget, cost: Cost
    ) -> None:
        self.factors: dict[ir.Node, float] = {}
        self.paid: list[tuple[frozenset[ir.Value], float]] = []

        def cost_now(node: ir.Node, shapes: Shapes) -> float:
            factor = self.factors.get(node, 1.0)
            return factor * cost(node, shapes) if factor else 0.0

        self.ledger = Ledger(structure, weights, offers.groups, budget.floor, cost_now)
        self.weights = weights
        self._number = {weight.value: i for i, weight in enumerate(weights)}
        self._density = np.ones(len(weights))
        self._total = total_size(weights)
        self.gone = 0.0

    def number(self, value: ir.Value) -> int | None:
        """The place of a weight among those that count."""
        return self._number.get(value)

    def left(self, value: ir.Value) -> float:
        """How many parameters of a weight are left."""
        number = self._number.get(value)
        return 0.0 if number is None else float(self.ledger.sizes[number] * self._density[number])

    def density(self, value: ir.Value) -> float:
        """The share of a weight as it is that is not zero."""
        number = self._number.get(value)
        return 0.0 if number is None else float(self._density[number])

    def changed(self, densities: Mapping[ir.Value, float], factors: Mapping[ir.Node, float]) -> None:
        """Note that of weights other shares are left, and that nodes cost other shares of what they did."""
        for value, density in densities.items():
            if value in self._number:
                self._density[self._number[value]] = density
        self.factors.update(factors)
        self.ledger.recount(factors.keys())
        self.count()

    def count(self) -> None:
        """Count anew what is gone."""
        self.gone = self._total - float(np.dot(self.ledger.sizes, self._density))

    def lost(self, values: frozenset[ir.Value], loss: float) -> None:
        """Note what was lost at weights."""
        self.paid.append((values, loss))

    def division(self, steps: Sequence[_Step]) -> Division:
        """What went."""
        units, tiles, blocks = dict[GroupKey, int](), dict[str, float](), set[str]()
        gone = set[ir.Value]()
        for step in steps:
            if isinstance(step, _Block) and step.gone:
                blocks.add(step.block.name)
                gone |= step.block.weights.keys()
        for step in steps:
            if isinstance(step, _Units) and step.offer.left < len(step.group):
                units[step.key] = step.offer.left
            elif isinstance(step, _Tiles) and step.level:
                share = float(step.offer.shares[step.level])
                tiles |= {weight.name: share for weight in step.offer.weights if weight.value not in gone}
        return Division(frozenset(blocks), units, tiles)


class _Units(_Step):
    """The units of one group."""

    def __init__(self, walk: _Walk, group: Group, key: GroupKey, offers: Offers, budget: UnitBudget) -> None:
        self.walk, self.group, self.key = walk, group, key
        self.offer = UnitOffer(walk.ledger, group, offers.scores, budget, offers.losses.get(group))
        weights = walk.ledger.structure.weights
        self.values = frozenset(site.value for site in group.sites if site.value in weights)

    def price(self, room: float) -> tuple[float, Take] | None:
        found = self.offer.price()
        if found is None or found[1].gone - self.walk.ledger.gone > room:
            return None
        price, change = found
        saved = self.walk.ledger.cost - change.cost

        def take() -> None:
            self.offer.take(change)
            self.walk.count()
            self.walk.lost(self.values, price * saved)

        return price, take


class _Tiles(_Step):
    """Layers that are written in tiles."""

    def __init__(self, walk: _Walk, offer: TileOffer) -> None:
        self.walk, self.offer, self.level = walk, offer, 0
        self.nodes = {weight.node for weight in offer.weights}
        self.values = frozenset(weight.value for weight in offer.weights)

    def price(self, room: float) -> tuple[float, Take] | None:
        offer, now = self.offer, self.level
        whole = self.walk.ledger.cost_of(self.nodes) / offer.factors[now]
        saved = whole * (offer.factors[now] - offer.factors[now + 1 :])
        going = (offer.shares[now + 1 :] - offer.shares[now]) / (1 - offer.shares[now])
        fits = (saved > 0) & (going * sum(map(self.walk.left, self.values)) <= room)
        if not fits.any():
            return None
        lost = self._lost()
        if not np.isfinite(lost[now]):
            return None
        losses = lost[now + 1 :] - lost[now]
        prices = np.where(fits, losses / np.maximum(saved, 1e-300), np.inf)
        best = int(np.argmin(prices))

        def take() -> None:
            self.level = now + 1 + best
            density, factor = 1 - float(offer.shares[self.level]), float(offer.factors[self.level])
            staying = [v for v in self.values if self.walk.density(v)]
            self.walk.changed(dict.fromkeys(staying, density), {n: factor for n in self.nodes if self._is_there(n)})
            self.walk.lost(self.values, float(losses[best]))

        return float(prices[best]), take

    def _lost(self) -> Numbers:
        """What each share loses of the layers as they are: what went with units before counts as zero, too.

        Half of what is left of a layer that lost half of its inputs is a quarter of the layer, not another half.
        """
        numbers = [i for i in map(self.walk.number, self.values) if i is not None]
        whole = sum(self.walk.weights[i].size for i in numbers)
        left = sum(self.walk.ledger.sizes[i] for i in numbers) / max(whole, 1)
        gone = 1 - left * (1 - self.offer.shares)
        return np.interp(gone, self.offer.shares, self.offer.effects, right=np.inf)

    def _is_there(self, node: ir.Node) -> bool:
        return self.walk.factors.get(node, 1.0) > 0


class _Block(_Step):
    """A whole residual block."""

    def __init__(self, walk: _Walk, block: ResidualBlock, effect: float) -> None:
        self.walk, self.block, self.effect, self.gone = walk, block, effect, False

    def price(self, room: float) -> tuple[float, Take] | None:
        walk, block = self.walk, self.block
        saved = 0.0 if self.gone else walk.ledger.cost_of(block.nodes)
        if saved <= 0 or sum(map(walk.left, block.weights)) > room:
            return None
        paid = sum(loss for values, loss in walk.paid if values <= block.weights.keys())
        loss = max(self.effect - paid, _LEAST_LOSS * self.effect)

        def take() -> None:
            self.gone = True
            walk.changed(dict.fromkeys(block.weights, 0.0), dict.fromkeys(block.nodes, 0.0))
            walk.lost(frozenset(block.weights), loss)

        return loss / saved, take
