"""Normalising keeps the function and frees what only happens to be tied."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from small_models import graph, random

from onnxprune import runtime
from onnxprune.passes import Normalise, Tidy
from onnxprune.passes.normalise import COPY_OF
from onnxprune.structure.analysis import analyse


def same_function(a: ir.Model, b: ir.Model) -> bool:
    feeds = runtime.working_inputs(a, count=2)
    return all(runtime.compare(a, b, f).max_rel == 0 for f in feeds)


def shared_bias() -> ir.Model:
    weights = {"w1": random(6, 16), "w2": random(16, 16, seed=1), "w3": random(16, 4), "b": random(16)}
    return graph(
        "agraph (float[N,6] x) => (float[N,4] y) {"
        "a = MatMul(x, w1) c = Add(a, b) d = Relu(c) e = MatMul(d, w2) f = Add(e, b) g = Relu(f) y = MatMul(g, w3) }",
        weights,
    )


def test_a_shared_bias_does_not_tie_layers_together() -> None:
    model = shared_bias()
    original = model.clone()
    assert len(analyse(model).groups) == 1
    Normalise()(model)
    assert [len(g) for g in analyse(model).groups] == [16, 16]
    assert same_function(original, model)


def test_a_shared_first_state_does_not_tie_recurrent_layers_together() -> None:
    """The dynamo exporter gives all layers one tensor of zeros."""
    gates = {"w1": random(2, 32, 4), "r1": random(2, 32, 8), "w2": random(2, 32, 16), "r2": random(2, 32, 8)}
    model = graph(
        "agraph (float[5,1,4] x) => (float[5,2,1,8] y) <int64[3] flat = {5, 1, 16}> {"
        'a = LSTM <hidden_size = 8, direction = "bidirectional"> (x, w1, r1, none, none, zeros, zeros)'
        "b = Transpose <perm = [0,2,1,3]> (a) c = Reshape(b, flat)"
        'y = LSTM <hidden_size = 8, direction = "bidirectional"> (c, w2, r2, none, none, zeros, zeros) }'.replace(
            "none", ""
        ),
        {**gates, "zeros": np.zeros((2, 1, 8), np.float32)},
    )
    original = model.clone()
    assert not analyse(model).groups
    Normalise()(model)
    assert sum(len(g) for g in analyse(model).groups) == 8
    assert same_function(original, model)


def test_copies_that_stay_equal_become_one_again() -> None:
    model = shared_bias()
    names = set(model.graph.initializers)
    Normalise()(model)
    assert any(COPY_OF in v.metadata_props for v in model.graph.initializers.values())
    Tidy()(model)
    assert set(model.graph.initializers) == names


def test_constant_nodes_become_initializers_under_their_names() -> None:
    model = graph(
        "agraph (float[N,2] x) => (float[N,2] y) { c = Constant <value = float[2] {1.0, 2.0}> () y = Add(x, c) }", {}
    )
    original = model.clone()
    Normalise()(model)
    assert list(model.graph.initializers) == ["c"]
    assert same_function(original, model)


def test_a_constant_behind_identity_is_read_directly() -> None:
    model = graph(
        "agraph (float[N,4] x) => (float[N,4] y, float[4,4] z) {"
        "v = Identity(w) a = MatMul(x, w) y = MatMul(a, v) z = Identity(w) }",
        {"w": random(4, 4)},
    )
    original = model.clone()
    Normalise()(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul", "Identity"]
    assert same_function(original, model)


def shuffled() -> ir.Model:
    text = (
        "agraph (float[N,3,5,5] x) => (float[N,4] y) {"
        "a = Conv(x, w1) b = Reshape(a, split) c = Transpose <perm = [0,2,1,3,4]> (b) d = Reshape(c, merge)"
        "e = Conv(d, w2) f = GlobalAveragePool(e) g = Flatten(f) y = Gemm <transB = 1> (g, w3) }"
    )
    return graph(
        text,
        {
            "w1": random(8, 3, 1, 1), "w2": random(6, 8, 1, 1), "w3": random(4, 6),
            "split": np.array([-1, 2, 4, 5, 5]), "merge": np.array([-1, 8, 5, 5]),
        },
    )  # fmt: skip


def test_a_channel_shuffle_becomes_a_gather_and_frees_every_channel() -> None:
    model = shuffled()
    original = model.clone()
    Normalise()(model)
    Tidy()(model)
    assert [n.op_type for n in model.graph].count("Gather") == 1
    assert not any(n.op_type == "Transpose" for n in model.graph)
    assert same_function(original, model)
    assert sorted(len(g) for g in analyse(model).groups) == [6, 8]
