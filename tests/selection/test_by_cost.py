"""Units go where importance is least for the cost that they save."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import conv_net, graph, random, residual_net

from onnxprune import runtime
from onnxprune.graph import size
from onnxprune.passes import RemoveUnits, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import find_criterion, prunable_weights, unit_scores
from onnxprune.selection.by_cost import Loss, select_by_cost
from onnxprune.selection.rounding import RoundTo
from onnxprune.selection.units import UnitBudget, UnitSelection
from onnxprune.structure.costs import CostName, find_cost, latency
from onnxprune.structure.figures import BUILT_IN
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.structure import Structure

COSTS: tuple[CostName, ...] = ("parameters", "macs", "balanced")


def uneven(c: int = 32) -> ir.Model:
    """Two pairs of convolutions with equal numbers of weights; the first pair sees 16 times as many places."""
    shapes = {"w1": (c, 3, 3, 3), "w2": (c, c, 3, 3), "w3": (c, c, 3, 3), "w4": (c, c, 3, 3), "w5": (5, c)}
    return graph(
        "agraph (float[1,3,32,32] x) => (float[1,5] y) {"
        "a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu(a) c = Conv <pads = [1,1,1,1]> (b, w2) d = Relu(c)"
        "e = MaxPool <kernel_shape = [4,4], strides = [4,4]> (d)"
        "f = Conv <pads = [1,1,1,1]> (e, w3) g = Relu(f) h = Conv <pads = [1,1,1,1]> (g, w4) i = Relu(h)"
        "j = GlobalAveragePool(i) k = Flatten(j) y = Gemm <transB = 1> (k, w5) }",
        {name: random(*shape) for name, shape in shapes.items()},
    )


def choose(
    structure: Structure, sparsity: float, cost: CostName, scores: np.ndarray | None = None,
    losses: Mapping[Group, Loss] | None = None, **budget: Any,
) -> UnitSelection:  # fmt: skip
    weights, groups = prunable_weights(structure), structure.groups
    if scores is None:
        scores = unit_scores(structure, weights, groups, find_criterion("magnitude"), 0)
    of_all = UnitBudget(sparsity, **budget)
    return select_by_cost(structure, weights, groups, scores, of_all, find_cost(cost, structure), losses)


def cost_left(structure: Structure, counts: Mapping[Group, int], cost: CostName) -> float:
    """The share of the cost that is left with so many units of each group."""
    groups = structure.groups
    ledger = Ledger(structure, prunable_weights(structure), groups, 1, find_cost(cost, structure))
    whole = ledger.cost
    for group in groups:
        ledger.remove(group.atoms[counts[group] :], limit=float("inf"))
    return ledger.cost / whole


def counts_of(structure: Structure, chosen: UnitSelection) -> dict[Group, int]:
    return {group: int((~chosen.removed[group.atoms]).sum()) for group in structure.groups}


def kept(structure: Structure, chosen: UnitSelection) -> dict[str, int]:
    return {g.name: int((~chosen.removed[g.atoms]).sum()) for g in structure.groups}


@pytest.mark.parametrize("cost", ["macs", "latency"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6])
def test_the_sparsity_is_met_in_steps_that_stay_round(cost: CostName, sparsity: float) -> None:
    structure = prepare(uneven(64))
    chosen = choose(structure, sparsity, cost)
    assert sparsity - 0.15 < chosen.sparsity <= sparsity + 0.005
    assert all(n % 16 == 0 or n in (4, 8, 12) for n in kept(structure, chosen).values())


@pytest.mark.parametrize("cost", ["macs", "parameters", "latency"])
@pytest.mark.parametrize("share", [0.2, 0.3, 0.45, 0.6, 0.75])
def test_a_share_of_the_cost_is_saved_in_full_and_little_more(share: float, cost: CostName) -> None:
    """The last group ends at a multiple of 4, all others stay round."""
    structure = prepare(uneven(64))
    counts = counts_of(structure, choose(structure, share, cost, of_cost=True))
    assert 1 - share - (0.1 if cost == "latency" else 0.03) < cost_left(structure, counts, cost) <= 1 - share
    assert all(n % 4 == 0 for n in counts.values()) and sum(n % 16 != 0 and n > 12 for n in counts.values()) <= 1


@pytest.mark.parametrize("round_to", [8, 16, "none"])
def test_a_rounding_that_was_asked_for_holds_at_the_end_of_a_budget(round_to: RoundTo) -> None:
    structure = prepare(uneven(64))
    counts = counts_of(structure, choose(structure, 0.5, "macs", of_cost=True, round_to=round_to, floor=9))
    left = cost_left(structure, counts, "macs")
    assert all(n % (1 if round_to == "none" else round_to) == 0 and n >= 9 for n in counts.values())
    assert (0.49 if round_to == "none" else 0.4) < left <= 0.5


@pytest.mark.parametrize("share", [0.1, 0.22, 0.35, 0.5])
def test_where_a_step_goes_too_far_what_loses_least_is_taken(share: float) -> None:
    """As if all combinations were tried: smaller steps for a large one, or the large one without some small ones."""
    structure = prepare(residual_net())
    groups = structure.groups
    enough = [counts for counts in _combinations(groups) if cost_left(structure, counts, "macs") <= 1 - share]
    for seed in range(50):
        times, powers = np.random.default_rng(seed).uniform([[0.3], [1.0]], [[3.0], [2.0]], (2, len(groups)))
        losses = {group: partial(_loss, len(group), *each) for group, *each in zip(groups, times, powers, strict=True)}
        counts = counts_of(structure, choose(structure, share, "macs", losses=losses, of_cost=True))
        assert cost_left(structure, counts, "macs") <= 1 - share
        lost, *others = (sum(losses[group](len(group), n) for group, n in c.items()) for c in (counts, *enough))
        assert lost <= 1.001 * min(others), seed


def _loss(total: int, times: float, power: float, now: int, then: int) -> float:
    """Rising ever faster with what goes."""
    return times * total * ((1 - then / total) ** power - (1 - now / total) ** power)


def _combinations(groups: Sequence[Group]) -> Iterator[dict[Group, int]]:
    """All counts of which at most one is not round."""
    for counts in product(*(range(4, len(group) + 1, 4) for group in groups)):
        if sum(n > 16 and n % 16 != 0 for n in counts) <= 1:
            yield dict(zip(groups, counts, strict=True))


def test_a_step_before_the_last_may_take_a_cut_that_saves_too_much_for_it() -> None:
    """The next step has use for it; as the last step, others would take its place."""
    structure = prepare(residual_net())
    wide = next(group for group in structure.groups if len(group) == 16)
    prices = {group: 4.0 if group is wide else 1.5 for group in structure.groups}
    losses = {group: partial(lambda now, then, price: price * (now - then), price=n) for group, n in prices.items()}
    chosen = (choose(structure, 0.1, "macs", losses=losses, of_cost=True, most=most) for most in (0.5, 0.1))
    first, last = (counts_of(structure, each) for each in chosen)
    assert first[wide] == 12 and last[wide] == 16


def test_what_cannot_be_saved_is_all_that_can_go() -> None:
    structure = prepare(uneven(64))
    counts = counts_of(structure, choose(structure, 0.9999, "macs", of_cost=True))
    assert set(counts.values()) == {4}


@pytest.mark.parametrize("cost", ["macs", "latency"])
def test_dear_layers_are_cut_deeper_and_none_is_emptied(cost: CostName) -> None:
    structure = prepare(uneven(128))
    counts = kept(structure, choose(structure, 0.5, cost))
    assert counts["w1[0]"] < counts["w3[0]"] and counts["w1[0]"] >= 16


def test_what_matters_more_stays() -> None:
    """Of two groups that cost the same, the one whose importance is in few units is cut."""
    structure = prepare(conv_net(64))
    scores = np.zeros(structure.terms.count)
    even, peaked = structure.groups
    scores[even.atoms] = 1.0
    scores[peaked.atoms] = np.r_[np.full(16, 10.0), np.full(48, 1e-3)]
    chosen = choose(structure, 0.5, "macs", scores)
    counts = kept(structure, chosen)
    assert counts[peaked.name] < counts[even.name]
    assert not chosen.removed[peaked.atoms[:16]].any()


def test_units_without_importance_go_first() -> None:
    structure = prepare(uneven(64))
    scores = np.ones(structure.terms.count)
    last = structure.groups[-1]
    scores[last.atoms] = 0
    assert kept(structure, choose(structure, 0.1, "macs", scores))[last.name] < 64


def test_the_balanced_cost_is_the_share_of_parameters_plus_the_share_of_multiply_adds() -> None:
    structure = prepare(uneven(64))
    every = (structure, prunable_weights(structure), structure.groups, 1)
    assert Ledger(*every, find_cost("balanced", structure)).cost == pytest.approx(2.0)
    whole = {cost: Ledger(*every, find_cost(cost, structure)) for cost in COSTS}
    atoms = structure.groups[0].atoms[:16]
    left = {cost: change.cost for cost, ledger in whole.items() if (change := ledger.preview(atoms))}
    shares = {cost: left[cost] / whole[cost].cost for cost in COSTS}
    assert left["balanced"] == pytest.approx(shares["parameters"] + shares["macs"])


def test_balanced_units_lie_between_those_of_its_parts() -> None:
    structure = prepare(uneven(128))
    early = {cost: kept(structure, choose(structure, 0.5, cost))["w1[0]"] for cost in COSTS}
    assert early["macs"] <= early["balanced"] <= early["parameters"] and early["macs"] < early["parameters"]


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_the_ledger_counts_the_multiply_adds_that_are_left(sparsity: float) -> None:
    structure = prepare(uneven(64))
    weights, groups = prunable_weights(structure), structure.groups
    ledger = Ledger(structure, weights, groups, 1, find_cost("macs", structure))
    assert ledger.cost == size.figures(structure.model, structure.facts.known_shapes()).macs
    chosen = choose(structure, sparsity, "macs")
    for group in groups:
        ledger.remove(group.atoms[chosen.removed[group.atoms]], limit=float("inf"))
    pruned = structure.model
    RemoveUnits(structure, chosen.removed)(pruned)
    Tidy()(pruned)
    feeds = {"x": random(1, 3, 32, 32)}
    assert ledger.cost == size.figures(pruned, runtime.concrete_shapes(pruned, feeds)).macs


def test_a_preview_changes_nothing() -> None:
    structure = prepare(uneven())
    ledger = Ledger(structure, prunable_weights(structure), structure.groups, 1, find_cost("latency", structure))
    before = ledger.cost, ledger.gone
    change = ledger.preview(structure.groups[0].atoms[:16])
    assert change is not None and change.cost < before[0] and change.gone > 0
    assert (ledger.cost, ledger.gone) == before and not ledger.removed.any()
    ledger.commit(change)
    assert (ledger.cost, ledger.gone) == (change.cost, change.gone)


def test_latency_steps_with_the_block_and_counts_what_is_moved() -> None:
    structure = prepare(uneven(32))
    conv = next(n for n in structure.model.graph if n.op_type == "Conv" and n.inputs[1] and n.inputs[1].name == "w2")
    shapes = structure.facts.known_shapes()

    def at(inputs: int, outputs: int) -> float:
        x, w, y = conv.inputs[0], conv.inputs[1], conv.outputs[0]
        assert x is not None and w is not None
        new = {x: (1, inputs, 32, 32), w: (outputs, inputs, 3, 3), y: (1, outputs, 32, 32)}
        return latency(conv, {**shapes, **new})

    assert at(32, 17) == at(32, 32) == at(31, 32) > at(32, 16)
    of_one, read, written, weight, node = BUILT_IN.kinds["kernel"]
    work = of_one * 32 * 32 * 32 * 32 * 9 + (read + written) * 32 * 32 * 32 + weight * 32 * 32 * 9 + node
    assert at(32, 32) == pytest.approx(work)
    relu = next(n for n in structure.model.graph if n.op_type == "Relu")
    assert latency(relu, shapes) == 0  # ONNX Runtime makes it part of the convolution


@pytest.mark.parametrize("cost", COSTS)
def test_a_change_that_is_still_true_is_what_previewing_anew_gives(cost: CostName) -> None:
    """Of two pairs of convolutions, what goes in one leaves the prices of the other as they were."""
    structure = prepare(uneven())
    groups = structure.groups
    ledger = Ledger(structure, prunable_weights(structure), groups, 1, find_cost(cost, structure))
    offers = [iter(np.array_split(group.atoms, 4)[:3]) for group in groups]
    ahead = {i: ledger.preview(next(offers[i])) for i in range(len(groups))}
    outdated = reused = 0
    for i in np.random.default_rng(0).permutation(np.repeat(np.arange(len(groups)), 2)).tolist():
        change = ahead[i]
        assert change is not None
        ledger.commit(ledger.still(change) or ledger.preview(change.atoms))
        assert ledger.still(change) is None
        ahead[i] = ledger.preview(next(offers[i]))
        for other in ahead.values():
            assert other is not None
            known, anew = ledger.still(other), ledger.preview(other.atoms)
            outdated, reused = outdated + (known is None), reused + (known is not None)
            assert anew is not None and (known is None or (known.gone, known.cost) == (anew.gone, anew.cost))
    assert outdated and reused
