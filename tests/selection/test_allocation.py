"""Allocation: shares by layer that add up to what was asked for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.passes import Normalise
from onnxprune.scoring import Weight, find_criterion, prunable_weights
from onnxprune.selection import select_weights
from onnxprune.selection.allocation import ALLOCATIONS, masks_of_shares
from onnxprune.selection.sensitivity import OutputError, Sensitivity, scan, shares_by_sensitivity
from onnxprune.structure.analysis import analyse

NETWORK = """<ir_version: 8, opset_import: ["": 13]>
net (float[N, 20] x) => (float[N, 2] y) {
  a = MatMul(x, w1)
  b = Relu(a)
  c = MatMul(b, w2)
  d = Relu(c)
  y = MatMul(d, w3)
}"""
SHAPES = {"w1": (20, 40), "w2": (40, 30), "w3": (30, 2)}


def weights() -> list[Weight]:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        array = rng.standard_normal(shape).astype(np.float32) * (0.2 if name == "w2" else 1.0)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    Normalise()(model)
    return prunable_weights(analyse(model))


@pytest.mark.parametrize("name", ["uniform", "erk", "lamp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_shares_add_up_and_masks_follow_them(name: str, sparsity: float) -> None:
    own = weights()
    shares = ALLOCATIONS[name](own, sparsity, None)
    assert all(0 <= s <= 1 for s in shares.values())
    total = sum(w.size for w in own)
    assert sum(shares[w.value] * w.size for w in own) == pytest.approx(sparsity * total, abs=1)
    masks = masks_of_shares(own, find_criterion("magnitude"), shares)
    for w in own:
        assert (~masks[w.value]).sum() == round(shares[w.value] * w.size)


def test_erk_by_hand() -> None:
    """Factors (20+40)/800, (40+30)/1200, (30+2)/60; the last layer stays dense at 50 %."""
    own = weights()
    shares = ALLOCATIONS["erk"](own, 0.5, None)
    scale = (0.5 * 2060 - 60) / (60 + 70)
    assert [round(shares[w.value], 6) for w in own] == pytest.approx(
        [1 - scale * 60 / 800, 1 - scale * 70 / 1200, 0.0], abs=1e-5
    )


def test_erk_of_a_convolution_counts_the_sides_of_its_kernel() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]>
    c (float[N, 4, 8, 8] x) => (float[N, 8, 4, 6] y) { a = Conv(x, w1) y = Conv(a, w2) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in {"w1": (16, 4, 3, 3), "w2": (8, 16, 3, 1)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    own = prunable_weights(analyse(ir.from_proto(proto)))
    density = [1 - s for s in ALLOCATIONS["erk"](own, 0.9, None).values()]
    assert density[0] / density[1] == pytest.approx(((16 + 4 + 3 + 3) / 576) / ((8 + 16 + 3 + 1) / 384))


def test_lamp_shares_are_those_of_the_global_lamp_ranking() -> None:
    own = weights()
    masks = select_weights(own, find_criterion("lamp"), 0.7)
    shares = ALLOCATIONS["lamp"](own, 0.7, None)
    for w in own:
        assert shares[w.value] * w.size == pytest.approx((~masks[w.value]).sum(), abs=1)


def test_a_layer_that_suffers_less_gives_more() -> None:
    """Two equal layers, one ten times as sensitive: half of all goes, and nearly all of it from the other."""
    table = Sensitivity(("soft", "hard"), (100, 100), (0.5, 0.9), np.array([[0.01, 0.05], [0.1, 0.5]]))
    shares = shares_by_sensitivity(table, 0.45)
    assert shares == pytest.approx({"soft": 0.9, "hard": 0.0})
    shares = shares_by_sensitivity(table, 0.7)
    assert shares == pytest.approx({"soft": 0.9, "hard": 0.5})


def test_the_scan_finds_the_sensitive_layer_and_leaves_the_model_alone() -> None:
    own = weights()
    x = np.random.default_rng(1).standard_normal((40, 20)).astype(np.float32)
    before = ir.to_proto(own[0].structure.model).SerializeToString()
    measure = OutputError(own[0].structure.model, {"x": x})
    table = scan(own, find_criterion("magnitude"), measure, levels=(0.2, 0.5, 0.9))
    assert ir.to_proto(own[0].structure.model).SerializeToString() == before
    assert (np.diff(table.errors, axis=1) > 0).all()
    assert table.names == ("w1", "w2", "w3")
    assert table.rows()[0]["name"] == "w1" and table.rows()[0]["parameters"] == 800
    shares = shares_by_sensitivity(table, 0.6)
    assert sum(shares[w.name] * w.size for w in own) == pytest.approx(0.6 * 2060)


def test_layers_of_a_subgraph_count_as_what_suffers_most() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]>
    net (float[N, 8] x, bool c) => (float[N, 4] y) {
      a = MatMul(x, w1)
      y = If(c) <
        then_branch = then () => (float[N, 4] t) { t = MatMul(a, w2) },
        else_branch = other () => (float[N, 4] e) <float[8, 4] w3 = {0}> { e = MatMul(a, w3) }
      >
    }"""
    proto = onnx.parser.parse_model(text.replace(" <float[8, 4] w3 = {0}>", ""))
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (8, 8), "w2": (8, 4)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    inner = next(a for a in proto.graph.node[1].attribute if a.name == "else_branch").g
    inner.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "w3"))
    model = ir.from_proto(proto)
    Normalise()(model)
    own = prunable_weights(analyse(model))
    inputs = {"x": rng.standard_normal((16, 8)).astype(np.float32), "c": np.array(True)}
    table = scan(own, find_criterion("magnitude"), OutputError(model, inputs), levels=(0.5,))
    found = dict(zip(table.names, table.errors[:, 0].tolist(), strict=True))
    assert found["w3"] == max(found["w1"], found["w2"]) > 0
