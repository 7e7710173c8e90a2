"""Weights that the graph computes from constants become constants; everything else stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_models import graph, random

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.passes import FoldWeights
from onnxprune.pipeline.check import verify as check
from onnxprune.structure.analysis import analyse

STANDARDISED = """agraph (float[N,6] x) => (float[N,4] y) {
    mean = ReduceMean <axes = [0]> (w) centred = Sub(w, mean) square = Mul(centred, centred)
    var = ReduceMean <axes = [0]> (square) deviation = Sqrt(var) weight = Div(centred, deviation)
    h = MatMul(x, weight) r = Relu(h) y = MatMul(r, v) }"""


def standardised() -> ir.Model:
    return graph(STANDARDISED, {"w": random(6, 16), "v": random(16, 4, seed=1)})


def test_a_standardised_weight_becomes_one_constant_and_the_function_stays() -> None:
    model = standardised()
    original = model.clone()
    assert FoldWeights()(model).modified
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "MatMul"]
    assert set(model.graph.initializers) == {"weight", "v"}
    assert all(runtime.compare(original, model, f).max_rel == 0 for f in runtime.working_inputs(original, count=2))
    assert not FoldWeights()(model).modified


def test_zeros_of_a_standardised_weight_are_zeros_where_it_is_used() -> None:
    result = onnxprune.prune(standardised(), sparsity=0.5)
    weight = result.model.graph.initializers["weight"].const_value
    assert weight is not None and np.isclose((weight.numpy() == 0).mean(), 0.5, atol=0.2)


def test_its_inputs_are_no_longer_tied() -> None:
    model = standardised()
    assert analyse(model).prunable_share()[0] == 0
    FoldWeights()(model)
    assert analyse(model).prunable_share() == (160, 160)


def test_verify_finds_the_weights_that_were_computed(tmp_path: Path) -> None:
    original, pruned, record = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "b.json"
    model_io.save(standardised(), original)
    onnxprune.save(onnxprune.prune(original, sparsity=0.5, structure="channels"), pruned, record=record)
    found = check(original, pruned, record)
    assert (found.identical, found.zeroed, found.changed, found.cut) == (2, 0, 0, 2)


LATER = "h = MatMul(x, weight) y = MatMul(h, v) }"


@pytest.mark.parametrize(
    "body",
    [
        "weight = Transpose(t) " + LATER,  # a move: rules follow it
        "scale = Constant <value = float {0.5}> () f = Cast <to = 1> (q) weight = Mul(f, scale) " + LATER,  # would grow
        "two = Constant <value = float {2.0}> () weight = Mul(w, two) z = Add(x, w) h = MatMul(z, weight) "
        "y = MatMul(h, v) }",  # the stored one is needed too
        "weight = Add(w, b) " + LATER,  # may be overridden by the caller
    ],
    ids=["moved", "dequantised", "shared", "input"],
)
def test_what_stays(body: str) -> None:
    text = f"agraph (float[6,6] x, float[6,6] b) => (float[N,4] y) {{ {body}"
    weights = {
        "w": random(6, 6), "t": random(6, 6), "v": random(6, 4, seed=1), "b": random(6, 6, seed=2),
        "q": np.arange(36, dtype=np.int8).reshape(6, 6),
    }  # fmt: skip
    model = graph(text, weights)
    assert not FoldWeights()(model).modified


COMPUTED = "d = Sqrt(s) weight = Mul(w, d) "


@pytest.mark.parametrize(
    ("body", "outputs", "folds"),
    [
        (COMPUTED + LATER, "float[N,4] y", True),
        (COMPUTED + LATER, "float[N,4] y, float[6] d", False),
        (COMPUTED + "z = Mul(x, d) h = MatMul(z, weight) y = MatMul(h, v) }", "float[N,4] y", False),
        (COMPUTED + "h = MatMul(x, weight) z = MatMul(h, w) y = MatMul(z, v) }", "float[N,4] y", False),
        (COMPUTED + LATER, "float[N,4] y, float[6,6] weight", False),
        (COMPUTED + LATER, "float[N,4] y, float[6,6] w", False),
        (COMPUTED + "h = MatMul(x, weight) z = MatMul(h, weight) y = MatMul(z, v) }", "float[N,4] y", True),
        ("d = Sqrt(s) weight = Mul(s, d) a = Mul(x, weight) y = MatMul(a, v) }", "float[N,4] y", False),
        ("d = RandomNormalLike(w) weight = Mul(w, d) " + LATER, "float[N,4] y", False),
        ("d = Relu(w) weight = Transpose(d) " + LATER, "float[N,4] y", True),
    ],
    ids=["plain", "a part is an output", "a part is read", "the source is read", "an output", "the source is an output",
         "read twice", "a vector", "drawn at random", "moved afterwards"],
)  # fmt: skip
def test_what_is_read_elsewhere_is_not_folded_away(body: str, outputs: str, folds: bool) -> None:
    weights = {"w": random(6, 6), "s": np.abs(random(6)), "v": random(6, 4, seed=1)}
    model = graph(f"agraph (float[N,6] x) => ({outputs}) {{ {body}", weights)
    original = model.clone()
    assert FoldWeights()(model).modified == folds
    assert [v.name for v in model.graph.outputs] == [v.name for v in original.graph.outputs]
    if folds:
        assert set(model.graph.initializers) - {"s"} == {"weight", "v"}
        assert "Mul" not in [n.op_type for n in model.graph]
        assert all(
            runtime.compare(original, model, f).max_rel < 1e-6 for f in runtime.working_inputs(original, count=2)
        )
    else:
        assert set(model.graph.initializers) == set(original.graph.initializers)
