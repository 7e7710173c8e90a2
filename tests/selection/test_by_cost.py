"""Units go where importance is least for the cost that they save."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import conv_net, graph, random

from onnxprune import runtime
from onnxprune.graph import size
from onnxprune.passes import RemoveUnits, Tidy
from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import find_criterion, prunable_weights, unit_scores
from onnxprune.selection.by_cost import select_by_cost
from onnxprune.selection.units import UnitBudget, UnitSelection
from onnxprune.structure.costs import CostName, find_cost, latency
from onnxprune.structure.figures import BUILT_IN
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
    structure: Structure, sparsity: float, cost: CostName, scores: np.ndarray | None = None, *, fine: bool = False
) -> UnitSelection:
    weights, groups = prunable_weights(structure), structure.groups
    if scores is None:
        scores = unit_scores(structure, weights, groups, find_criterion("magnitude"), 0)
    budget = UnitBudget(sparsity, fine=fine)
    return select_by_cost(structure, weights, groups, scores, budget, find_cost(cost, structure))


def kept(structure: Structure, chosen: UnitSelection) -> dict[str, int]:
    return {g.name: int((~chosen.removed[g.atoms]).sum()) for g in structure.groups}


@pytest.mark.parametrize("cost", ["macs", "latency"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6])
def test_the_sparsity_is_met_in_steps_that_stay_round(cost: CostName, sparsity: float) -> None:
    structure = prepare(uneven(64))
    chosen = choose(structure, sparsity, cost)
    assert sparsity - 0.15 < chosen.sparsity <= sparsity + 0.005
    assert all(n % 16 == 0 or n in (4, 8, 12) for n in kept(structure, chosen).values())


@pytest.mark.parametrize("sparsity", [0.2, 0.3, 0.45, 0.6, 0.75])
def test_a_figure_that_must_not_be_exceeded_ends_in_a_finer_step(sparsity: float) -> None:
    """The last group ends at a multiple of 4, as near above the share as it can be; all others stay round."""
    structure = prepare(uneven(64))
    coarse, fine = (choose(structure, sparsity, "macs", fine=fine) for fine in (False, True))
    assert sparsity <= fine.sparsity <= sparsity + 0.03
    assert abs(fine.sparsity - sparsity) <= abs(coarse.sparsity - sparsity)
    counts = kept(structure, fine).values()
    assert all(n % 4 == 0 for n in counts) and sum(n % 16 != 0 and n > 12 for n in counts) <= 1


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
