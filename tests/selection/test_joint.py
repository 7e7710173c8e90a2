"""Units, tiles and residual blocks share one budget: what goes loses least of all that saves enough."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from small_models import graph, random

from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import prunable_weights
from onnxprune.selection.by_cost import select_by_cost
from onnxprune.selection.joint import Division, Offers, TileOffer, divide
from onnxprune.selection.units import UnitBudget
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.costs import find_cost
from onnxprune.structure.structure import Structure

WIDE, UP, HEAD = 64, 128, 96
SHARES = np.array([0.0, 0.5, 0.7, 0.85])


def network() -> Structure:
    """A residual block with a hidden layer, a wide layer, and a head that may be written in tiles."""
    shapes = {"w1": (WIDE, WIDE), "w2": (WIDE, WIDE), "up": (WIDE, UP), "down": (UP, WIDE), "head": (WIDE, HEAD)}
    return prepare(
        graph(
            f"a (float[N,{WIDE}] x) => (float[N,{HEAD}] y) {{ a = MatMul(x, w1) r = Relu(a) b = MatMul(r, w2)"
            "s = Add(x, b) c = MatMul(s, up) t = Relu(c) d = MatMul(t, down) u = Sigmoid(d) y = MatMul(u, head) }",
            {name: random(*shape) for name, shape in shapes.items()},
        )
    )


def loss(total: int, times: float, power: float, now: int, then: int) -> float:
    """Rising ever faster with what goes."""
    return times * ((1 - then / total) ** power - (1 - now / total) ** power)


def offers_of(structure: Structure, seed: int) -> Offers:
    """The units inside the block and of the wide layer, tiles of the head, and the block, at prices of chance."""
    draw = np.random.default_rng(seed).uniform
    groups = [group for group in structure.groups if group.name.startswith(("w1", "up"))]
    losses = {group: partial(loss, len(group), draw(0.3, 3), draw(1, 2)) for group in groups}
    (head,) = (weight for weight in prunable_weights(structure) if weight.name == "head")
    tiles = TileOffer([head], SHARES, draw(0.3, 3) * SHARES ** draw(1, 2), 1 - SHARES)
    blocks = [(block, draw(0.3, 3)) for block in residual_blocks(structure)]
    return Offers(groups, np.zeros(structure.terms.count), losses, [tiles], blocks)


def state_of(offers: Offers, division: Division) -> tuple[int, int, float, bool]:
    inside, wide = (division.units.get((g.name, g.kind, 0), len(g)) for g in offers.groups)
    return inside, wide, division.tiles.get("head", 0.0), not division.blocks


def cost_left(inside: int, wide: int, share: float, whole: bool) -> float:
    """The share of the multiply-adds that is left."""

    def macs(inside: int, wide: int, share: float, whole: bool) -> float:
        return 2 * WIDE * inside * whole + 2 * WIDE * wide + WIDE * HEAD * (1 - share)

    return macs(inside, wide, share, whole) / macs(WIDE, UP, 0.0, True)


def lost(offers: Offers, inside: int, wide: int, share: float, whole: bool) -> float:
    in_block, of_wide = (offers.losses[group] for group in offers.groups)
    of_tiles = np.interp(share, offers.tiles[0].shares, offers.tiles[0].effects)
    of_block = in_block(WIDE, inside) if whole else max(offers.blocks[0][1], in_block(WIDE, inside))
    return float(of_wide(UP, wide) + of_tiles + of_block)


@pytest.mark.parametrize("share", [0.1, 0.22, 0.35, 0.5])
def test_a_share_of_the_cost_is_saved_and_nothing_that_saves_it_loses_much_less(share: float) -> None:
    """As if all combinations were tried: a block that saves too much goes with less of the others, or not at all."""
    structure = network()
    weights, cost = prunable_weights(structure), find_cost("macs", structure)
    counts = (range(4, WIDE + 1, 4), range(4, UP + 1, 4), SHARES, (False, True))
    enough = [all_of for all_of in product(*counts) if cost_left(*all_of) <= 1 - share]
    ratios = []
    for seed in range(30):
        offers = offers_of(structure, seed)
        state = state_of(offers, divide(structure, weights, offers, UnitBudget(share, of_cost=True), cost))
        assert cost_left(*state) <= 1 - share, seed
        ratios.append(lost(offers, *state) / min(lost(offers, *each) for each in enough))
    assert max(ratios) < 1.06 and np.mean(ratios) < 1.01, ratios


@pytest.mark.parametrize("budget", [UnitBudget(0.4, of_cost=True), UnitBudget(0.4)])
def test_units_alone_are_divided_as_they_are_without_competition(budget: UnitBudget) -> None:
    structure = network()
    parts = structure, prunable_weights(structure)
    offers = Offers(structure.groups, np.zeros(structure.terms.count), offers_of(structure, 1).losses)
    cost = find_cost("macs", structure)
    alone = select_by_cost(*parts, offers.groups, offers.scores, budget, cost, offers.losses)
    units = divide(*parts, offers, budget, cost).units
    for group in offers.groups:
        assert units.get((group.name, group.kind, 0), len(group)) == (~alone.removed[group.atoms]).sum()


def test_a_share_of_the_parameters_is_met_by_all_together() -> None:
    structure = network()
    weights = prunable_weights(structure)
    for seed in range(10):
        offers = offers_of(structure, seed)
        division = divide(structure, weights, offers, UnitBudget(0.6), find_cost("macs", structure))
        assert 0.38 < cost_left(*state_of(offers, division)) <= 0.43, "all weights do as much work"
