"""Units are chosen by score, in steps that keep counts round, and no axis empties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import conv_net, two_layers

from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import find_criterion, prunable_weights, unit_scores
from onnxprune.selection.rounding import kept_counts, step_of
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS, UnitContext
from onnxprune.selection.units import UnitBudget, UnitSelection, select_units


@pytest.mark.parametrize(
    ("n", "step", "floor", "counts"),
    [
        (64, 16, 1, [64, 48, 32, 16, 12, 8, 4]),
        (24, 16, 1, [24, 16, 12, 8, 4]),
        (10, 16, 1, [10, 8, 4]),
        (3, 16, 1, [3, 2, 1]),
        (5, 1, 1, [5, 4, 3, 2, 1]),
        (64, 16, 20, [64, 48, 32]),
        (100, 32, 1, [100, 96, 64, 32, 28, 24, 20, 16, 12, 8, 4]),
    ],
)
def test_allowed_counts(n: int, step: int, floor: int, counts: list[int]) -> None:
    assert kept_counts(n, step, floor) == counts


@pytest.mark.parametrize(("width", "step"), [(63, 1), (64, 8), (1025, 8), (3072, 16), (16384, 64)])
def test_a_product_keeps_multiples_of_8_and_a_wide_one_some_256_counts(width: int, step: int) -> None:
    structure = prepare(two_layers(width))
    (group,) = structure.groups
    assert step_of(structure, group, "auto") == step
    assert step_of(structure, group, "none") == 1


def choose(
    budget: UnitBudget, allocation: str = "global", *, convolutional: bool = False
) -> tuple[UnitSelection, dict[str, int]]:
    structure = prepare(conv_net(64) if convolutional else two_layers(64))
    weights, groups = prunable_weights(structure), structure.groups
    scores = unit_scores(structure, weights, groups, find_criterion("magnitude"), 0)
    chosen = UNIT_ALLOCATIONS[allocation](UnitContext(structure, weights, groups, scores), budget)
    return chosen, {g.name: int((~chosen.removed[g.atoms]).sum()) for g in groups}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_the_budget_is_met(sparsity: float) -> None:
    chosen, _ = choose(UnitBudget(sparsity, round_to="none"))
    assert chosen.sparsity == pytest.approx(sparsity, abs=0.01)


def test_conv_channels_go_in_blocks_of_16() -> None:
    _, kept = choose(UnitBudget(0.5), convolutional=True)
    assert all(n % 16 == 0 for n in kept.values())
    assert min(kept.values()) < 64


def test_unrounded_comes_closer() -> None:
    chosen, _ = choose(UnitBudget(0.37, round_to="none"), convolutional=True)
    assert chosen.sparsity == pytest.approx(0.37, abs=0.01)


def test_uniform_allocation_cuts_all_groups_alike() -> None:
    _, kept = choose(UnitBudget(0.75, round_to="none"), "uniform", convolutional=True)
    assert max(kept.values()) - min(kept.values()) <= 1


def lopsided(allocation: str, sparsity: float) -> list[int]:
    """What is kept of two groups of 64 channels: scores of one are spread out, of the other nearly equal."""
    structure = prepare(conv_net(64))
    weights, (spread, level) = prunable_weights(structure), structure.groups
    scores = np.zeros(structure.terms.count)
    scores[spread.atoms] = np.r_[np.full(20, 0.01), np.full(44, 1.5)]
    scores[level.atoms] = np.linspace(0.99, 1.01, 64)
    context = UnitContext(structure, weights, structure.groups, scores)
    chosen = UNIT_ALLOCATIONS[allocation](context, UnitBudget(sparsity, "none"))
    return [int((~chosen.removed[g.atoms]).sum()) for g in (spread, level)]


def test_one_ranking_of_all_units_empties_a_layer_and_what_weighs_the_rest_does_not() -> None:
    assert lopsided("global", 0.95)[1] < 4
    assert min(lopsided("cost", 0.95)) > 4
    assert min(lopsided("lamp", 0.95)) > 4


def test_lamp_of_units_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UnitContext, "cheapest", lambda context, budget, price: price)
    structure = prepare(conv_net(4))
    context = UnitContext(structure, prunable_weights(structure), structure.groups, np.zeros(structure.terms.count))
    price: Any = UNIT_ALLOCATIONS["lamp"](context, UnitBudget(0.5))
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    prices = [
        price(structure.groups[0], scores, start, stop) for start, stop in [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3)]
    ]
    assert prices == pytest.approx([0, 1 / 14, 4 / 13, 1, (1 + 4) / 2 / 14])


def test_the_floor_holds() -> None:
    _, kept = choose(UnitBudget(0.99, floor=10, round_to="none"))
    assert min(kept.values()) == 10
    _, kept = choose(UnitBudget(0.99, floor=10))
    assert min(kept.values()) == 16  # the next multiple of 8


def test_the_least_important_go() -> None:
    structure = prepare(two_layers(8))
    (group,) = structure.groups
    weights = prunable_weights(structure)
    scores = np.zeros(structure.terms.count)
    scores[group.atoms] = [5, 1, 4, 0, 7, 2, 6, 3]
    chosen = select_units(structure, weights, [group], scores, UnitBudget(0.5, "none"), lambda group, values, a, b: 0.0)
    assert group.atoms[chosen.removed[group.atoms]].tolist() == group.atoms[[1, 3, 5, 7]].tolist()
