"""Six spellings, one answer: how a layer is written changes no score, no count and no output.

The tests go over the registries, so that a new criterion, allocation or method of recovery is in them by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.bridge import to_torch
from onnxprune.graph.layers import channel_axis, fan_in, matrix_axes
from onnxprune.graph.size import counted_values, figures, parameters
from onnxprune.packing import pack, unpack
from onnxprune.passes import Normalise, RemoveDeadUnits, Tidy
from onnxprune.recipe.granularity import NM, Block
from onnxprune.recovery.registry import METHODS
from onnxprune.runtime import concrete_shapes
from onnxprune.runtime.quantise import quantise
from onnxprune.scoring import Evidence, criteria, find_criterion, prunable_weights
from onnxprune.scoring.units import score_units
from onnxprune.selection.allocation import ALLOCATIONS, AllocationContext
from onnxprune.selection.patterns import pattern_masks
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS
from onnxprune.structure.analysis import analyse
from onnxprune.structure.costs import counted_nodes, find_cost
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

from .spellings import NAMES, SPELLINGS, Array, labels, network, samples

FIRST, *OTHERS = SPELLINGS
every_other = pytest.mark.parametrize("name", OTHERS)


@cache
def structure(name: str) -> Structure:
    model = model_io.load_any(network(name))
    Normalise()(model)
    return analyse(model)


@cache
def evidence(name: str) -> Evidence:
    return Evidence(structure(name), {"x": samples(name)}, labels(), steps=3)


def weights(name: str) -> list[Weight]:
    found = {w.name: w for w in prunable_weights(structure(name))}
    assert set(found) == set(NAMES)
    return [found[n] for n in NAMES]


def matrices(name: str, number: Callable[[Weight], Array]) -> list[Array]:
    """A number for each weight, as [outputs, inputs] of each layer."""
    return [SPELLINGS[name].matrix(number(w)) for w in weights(name)]


def outputs(model: ir.Model | onnx.ModelProto, name: str) -> Array:
    loaded = model_io.load_any(model) if isinstance(model, onnx.ModelProto) else model
    return np.asarray(runtime.run(runtime.make_session(loaded), {"x": samples(name)})["y"])


def assert_same(ours: list[Array], theirs: list[Array]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6 * float(np.abs(b).max()))


@every_other
def test_they_are_the_same_network(name: str) -> None:
    np.testing.assert_allclose(outputs(network(name), name), outputs(network(FIRST), FIRST), rtol=1e-5, atol=1e-5)


# -- what is known of a layer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPELLINGS)
def test_axes_of_the_weights(name: str) -> None:
    for weight in weights(name):
        outputs_, inputs = SPELLINGS[name].matrix(weight.numbers()).shape
        axes = matrix_axes(weight.value, weight.node)
        assert axes is not None
        assert (weight.shape[axes.output], axes.summed(weight.shape)) == (outputs_, inputs)
        assert fan_in(weight.value, weight.node) == inputs
        assert channel_axis(weight.value) == axes.output


@every_other
def test_multiply_adds(name: str) -> None:
    counts = []
    for each in (FIRST, name):
        model = model_io.load_any(network(each))
        shapes = concrete_shapes(model, {"x": samples(each)}, counted_values(model))
        counts.append(figures(model, shapes))
        assert not counts[-1].uncounted
    assert counts[0].macs == counts[1].macs == 64 * (8 * 16 + 16 * 16 + 16 * 4)
    assert counts[0].parameters == counts[1].parameters


@every_other
@pytest.mark.parametrize("cost", ["parameters", "macs", "balanced"])
def test_costs(name: str, cost: str) -> None:
    found = []
    for each in (FIRST, name):
        own, function = structure(each), find_cost(cost, structure(each))  # type: ignore[arg-type]
        shapes = own.facts.known_shapes()
        found.append(sum(function(node, shapes) for node, _ in counted_nodes(own)))  # a Transpose may read the weight
    assert found[0] == pytest.approx(found[1])


# -- what is chosen -------------------------------------------------------------------------------------------------


def _draws(criterion: str) -> bool:
    """Whether a criterion's saliencies are drawn at random: by places in the tensor, which differ between spellings."""
    found = [find_criterion(criterion).on(evidence(FIRST)) for _ in range(2)]
    first = weights(FIRST)[0]
    a, b = (f.saliency(first, np.random.default_rng(seed)) for seed, f in enumerate(found))
    return not np.array_equal(a, b)


SALIENCIES = [n for n, c in criteria().items() if c.weights is not None]
UNIT_SCORES = [n for n, c in criteria().items() if "units" in c.scores]


@pytest.mark.parametrize("criterion", SALIENCIES)
def test_saliencies(criterion: str) -> None:
    if _draws(criterion):
        pytest.skip("it draws at random")
    found = {}
    for name in SPELLINGS:
        bound = find_criterion(criterion).on(evidence(name))
        found[name] = matrices(name, lambda w, c=bound: c.saliency(w, np.random.default_rng(0)))  # type: ignore[misc]
    for name in OTHERS:
        assert_same(found[name], found[FIRST])


@pytest.mark.parametrize("criterion", UNIT_SCORES)
def test_scores_of_units(criterion: str) -> None:
    if criteria()[criterion].weights is not None and _draws(criterion):
        pytest.skip("it draws at random")
    found = {}
    for name in SPELLINGS:
        own, bound = structure(name), find_criterion(criterion).on(evidence(name))
        scored = score_units(own, weights(name), own.groups, bound, 0)
        groups = {min(s.value.name or "" for s in g.sites): g for g in own.groups}
        assert sorted(groups) == ["w1", "w2"]
        found[name] = [scored.values[groups[n].atoms] for n in sorted(groups)], sorted(scored.unscored.values())
    for name in OTHERS:
        assert found[name][1] == found[FIRST][1]
        assert_same(found[name][0], found[FIRST][0])


@pytest.mark.parametrize("allocation", list(ALLOCATIONS))
def test_allocations(allocation: str) -> None:
    found = {}
    for name in SPELLINGS:
        look = AllocationContext(find_criterion("magnitude"), {"x": samples(name)})
        shares = ALLOCATIONS[allocation].divide(weights(name), 0.5, look)
        found[name] = None if shares is None else [shares[w.value] for w in weights(name)]
    for name in OTHERS:
        if found[FIRST] is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], found[FIRST], atol=1e-9)


@every_other
@pytest.mark.parametrize("pattern", [NM(2, 4), Block(4, 2)], ids=["2:4", "block"])
def test_patterns(name: str, pattern: NM | Block) -> None:
    found = []
    for each in (FIRST, name):
        masks = pattern_masks(weights(each), find_criterion("magnitude"), pattern, 0.5)
        assert not masks.dense
        found.append(matrices(each, lambda w, m=masks: m.masks[w.value]))  # type: ignore[misc]
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


# -- what comes out -------------------------------------------------------------------------------------------------


def pruned(name: str, **settings: object) -> Array:
    data = {"x": samples(name), "label": labels()}
    result = onnxprune.prune(
        network(name), verification=False, calibration=data, **{"recover": "no", "round_to": "none", **settings}
    )
    return outputs(result.model, name)


@every_other
@pytest.mark.parametrize("structure_", ["weights", "channels", "2:4"])
def test_pruned_networks(name: str, structure_: str) -> None:
    settings = {"structure": structure_} | ({} if structure_ == "2:4" else {"sparsity": 0.5})
    np.testing.assert_allclose(pruned(name, **settings), pruned(FIRST, **settings), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("allocation", list(UNIT_ALLOCATIONS))
def test_allocations_of_units(allocation: str) -> None:
    """Which units go shows in what comes out; a Conv's latency is another one, so that no cost is told here."""
    settings = {"structure": "channels", "sparsity": 0.5, "allocation": allocation}
    expected = pruned(FIRST, **settings)
    for name in OTHERS:
        np.testing.assert_allclose(pruned(name, **settings), expected, rtol=1e-3, atol=1e-4, err_msg=name)


TRAINED = {"align"}
"""Recovery by gradients: it compares values between blocks, and a fused activation leaves others to compare."""


@pytest.mark.parametrize("method", [method for method in METHODS if method not in TRAINED])
@pytest.mark.parametrize("structure_", ["weights", "channels"])
def test_recovery(method: str, structure_: str) -> None:
    settings = {"structure": structure_, "sparsity": 0.5, "recover": method}
    try:
        expected = pruned(FIRST, **settings)
    except onnxprune.errors.RecipeError as refusal:
        pytest.skip(str(refusal))
    scale = np.abs(expected).max()
    for name in OTHERS:
        np.testing.assert_allclose(pruned(name, **settings), expected, atol=2e-3 * scale, err_msg=name)


@pytest.mark.parametrize("method", list(TRAINED))
@pytest.mark.parametrize("structure_", ["weights", "channels"])
def test_recovery_by_gradients_is_as_good(method: str, structure_: str) -> None:
    settings = {"structure": structure_, "sparsity": 0.5}
    for name in SPELLINGS:
        dense = outputs(network(name), name)
        fitted, trained = (
            float(np.square(pruned(name, **settings, recover=recover) - dense).mean())
            for recover in ("least-squares", method)
        )
        assert trained < 1.2 * fitted, name


@every_other
def test_int8_packing_has_the_same_scales(name: str) -> None:
    found = []
    for each in (FIRST, name):
        packed, _ = pack(model_io.load_any(network(each)), values="int8")
        model = unpack(packed)
        arrays = [model.graph.initializers[n].const_value.numpy() for n in NAMES]
        found.append([SPELLINGS[each].matrix(a) for a in arrays])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@every_other
@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_int8_networks(name: str, form: str) -> None:
    """The scales lie along the outputs in every spelling: else the outputs would differ by a rounding of int8."""
    found = []
    for each in (FIRST, name):
        feeds = [{"x": samples(each)}] if form == "int8" else []
        quantised = quantise(model_io.load_any(network(each)), form, feeds).model
        assert sum(p.tensor.dtype == ir.DataType.INT8 for p in parameters(quantised)) == len(NAMES)
        found.append(outputs(quantised, each))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * float(np.abs(found[0]).max()))


@every_other
def test_the_bridge(name: str) -> None:
    module = to_torch(network(name))
    with torch.no_grad():
        y = module(torch.from_numpy(samples(name)))
    y = y if isinstance(y, torch.Tensor) else y[0]
    np.testing.assert_allclose(y.numpy(), outputs(network(FIRST), FIRST), rtol=1e-4, atol=1e-4)


# -- what is dead ---------------------------------------------------------------------------------------------------


def with_constant_units(name: str) -> ir.Model:
    """A Sigmoid behind the first layer; two units have no inputs, and one of the next layer reads these alone."""
    proto = network(name)
    for node in proto.graph.node:
        node.input[:] = ["h0_bounded" if value == "h0" else value for value in node.input]
    place = next(i for i, node in enumerate(proto.graph.node) if "h0" in node.output)
    proto.graph.node.insert(place + 1, helper.make_node("Sigmoid", ["h0"], ["h0_bounded"]))
    matrices_ = {w: SPELLINGS[name].matrix(numpy_helper.to_array(t)).copy() for w, t in initializers(proto).items()}
    matrices_["w1"][[2, 9]] = 0
    matrices_["w2"][5, [i for i in range(16) if i not in (2, 9)]] = 0
    for weight, tensor in initializers(proto).items():
        tensor.CopyFrom(numpy_helper.from_array(SPELLINGS[name].stored(matrices_[weight]), weight))
    return model_io.load_any(proto)


def initializers(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name in NAMES}


@pytest.mark.parametrize("name", SPELLINGS)
def test_constant_units_are_folded_and_go(name: str) -> None:
    model = with_constant_units(name)
    before = outputs(model.clone(), name)
    Normalise()(model)
    done = RemoveDeadUnits()
    done(model)
    Tidy()(model)
    assert (done.removed, done.left) == (3, [])
    np.testing.assert_allclose(outputs(model, name), before, atol=1e-5)
