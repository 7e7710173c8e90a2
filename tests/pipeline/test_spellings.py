"""One network, two spellings: what goes and what recovery makes of it does not depend on what an exporter folded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import array, conv_net, graph, random

import onnxprune
from onnxprune import runtime
from onnxprune.pipeline.run import prepare
from onnxprune.scoring import Evidence, find_criterion, prunable_weights
from onnxprune.scoring.acting import acting_numbers

QUICK: Mapping[str, Any] = {"verification": False, "latency": False, "ends": "prune"}


def folded(model: ir.Model) -> ir.Model:
    """The same network as most exporters write it: BatchNormalization multiplied into the Conv before it."""
    scale = array(model, "scale") / np.sqrt(array(model, "var") + np.float32(1e-5))
    weights = {"w2": array(model, "w2"), "w3": array(model, "w3")}
    weights["w1"] = array(model, "w1") * scale[:, None, None, None]
    weights["b1"] = array(model, "shift") - array(model, "mean") * scale
    return graph(
        "agraph (float[N,3,12,12] x) => (float[N,10] y) {"
        "a = Conv <pads = [0,0,0,0]> (x, w1, b1) c = Relu(a)"
        "d = Conv <pads = [0,0,0,0]> (c, w2) e = Relu(d) f = GlobalAveragePool(e) g = Flatten(f)"
        "y = Gemm <transB = 1> (g, w3) }",
        weights,
    )


def spellings() -> tuple[ir.Model, ir.Model]:
    model = conv_net(16)
    return model, folded(model)


X = random(256, 3, 12, 12)


def outputs(model: ir.Model) -> np.ndarray:
    return runtime.run(runtime.make_session(model), {"x": X})["y"]


def test_both_are_the_same_network() -> None:
    one, two = spellings()
    np.testing.assert_allclose(outputs(one), outputs(two), rtol=1e-3, atol=1e-3)


def test_a_weight_acts_as_what_follows_scales_it() -> None:
    """A Conv before BatchNormalization with scale 2, variance 4, epsilon 0, then times 3: 2 / 2 * 3."""
    model = graph(
        "agraph (float[N,1,2,2] x) => (float[N,1,2,2] y) { a = Conv(x, w)"
        "b = BatchNormalization<epsilon = 0.0>(a, s, o, m, v) y = Mul(b, f) }",
        {"w": np.full((1, 1, 1, 1), 0.5, np.float32)}
        | {n: np.array([k], np.float32) for n, k in (("s", 2), ("o", 7), ("m", 1), ("v", 4), ("f", 3))},
    )
    (weight,) = prunable_weights(prepare(model))
    assert acting_numbers(weight).item() == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["magnitude", "l1", "lamp", "wanda", "obc"])
def test_saliencies_are_alike(name: str) -> None:
    found = []
    for model in spellings():
        structure = prepare(model)
        criterion = find_criterion(name).on(Evidence(structure, {"x": X}))
        found.append({w.name: criterion.saliency(w, np.random.default_rng(0)) for w in prunable_weights(structure)})
    for weight in found[0]:
        np.testing.assert_allclose(found[0][weight], found[1][weight], rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("allocation", "recover"),
    [("global", "no"), ("lamp", "no"), ("uniform", "no"), ("global", "alps")]
    + [("lamp", method) for method in ("least-squares", "obc", "sparsegpt", "alps", "sparseswaps")],
)
def test_what_is_left_computes_the_same(allocation: str, recover: str) -> None:
    settings = {"structure": "weights", "sparsity": 0.6, "allocation": allocation, "recover": recover, **QUICK}
    one, two = (onnxprune.prune(model, calibration={"x": X}, **settings).model for model in spellings())
    dense = outputs(conv_net(16))
    gap, lost = np.square(outputs(one) - outputs(two)).sum(), np.square(outputs(one) - dense).sum()
    assert gap < (1e-6 if recover == "no" else 0.05) * lost


def test_wanda_compares_within_each_output_and_magnitude_within_the_layer() -> None:
    """Two outputs, one a hundred times the other: by output each keeps half, in the layer the small one loses all."""
    w = np.array([[1.0, 2.0, 3.0, 4.0], [100.0, 200.0, 300.0, 400.0]], np.float32)
    model = graph("agraph (float[N,4] x) => (float[N,2] y) { y = Gemm<transB = 1>(x, w) }", {"w": w})
    data = {"x": random(16, 4) + np.array([3, 3, 3, 3], np.float32)}
    settings = {"structure": "weights", "sparsity": 0.5, "recover": "no", **QUICK}
    rows = onnxprune.prune(model, criterion="wanda", calibration=data, **settings).model
    layer = onnxprune.prune(model, criterion="magnitude", **settings).model
    assert ((array(rows, "w") != 0) == [[False, False, True, True]] * 2).all()
    assert ((array(layer, "w") != 0) == [[False] * 4, [True] * 4]).all()


@pytest.mark.parametrize(
    ("structure", "expected"), [("weights", "alps"), ("2:4", "alps"), ("block:4x1", "least-squares")]
)
def test_recovery_of_zeros_is_chosen_by_their_structure(structure: str, expected: str) -> None:
    settings = {"structure": structure, **QUICK} | ({} if structure == "2:4" else {"sparsity": 0.5})
    done = onnxprune.prune(conv_net(16), calibration={"x": X}, **settings)
    assert done.recovered is not None
    assert list(done.recovered["methods"]) == [expected]


def test_a_layer_that_is_left_with_next_to_nothing_is_told_of() -> None:
    model = graph(
        "agraph (float[N,40] x) => (float[N,40] y) { h = Gemm(x, w1) r = Relu(h) y = Gemm(r, w2) }",
        {"w1": random(40, 40), "w2": random(40, 40)},
    )
    numbers = array(model, "w1")
    numbers[1:] *= 1e-3  # LAMP keeps what is left of 1 of 40 rows
    model.graph.initializers["w1"].const_value = ir.Tensor(numbers, name="w1")
    told = onnxprune.prune(model, sparsity=0.5, structure="weights", only=("w1",), **QUICK)
    assert not any("0.1%" in note for note in told.notes)
    told = onnxprune.prune(model, sparsity=0.9995, structure="weights", only=("w1",), **QUICK)
    assert any("0.1%" in note and "w1" in note for note in told.notes)
