"""Stacks of matrices of which a router picks some are weights, however the pick is written; tables of rows are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest

import onnxprune
from onnxprune.structure.analysis import analyse
from onnxprune.structure.weights import prunable_weights

from .graphs import load, parse

PICKED = {
    "a Gather by tokens": """agraph (float[T,8] x) => (float[T,8] y) {
        s = MatMul(x, router) top, i = TopK<axis=-1>(s, one) f = Squeeze(i, last)
        u = Gather<axis=0>(up, f) d = Gather<axis=0>(down, f) r = Unsqueeze(x, axis1)
        h = MatMul(r, u) a = Relu(h) o = MatMul(a, d) y = Squeeze(o, axis1) }""",
    "a GatherND by tokens": """agraph (float[T,8] x) => (float[T,8] y) {
        s = MatMul(x, router) top, i = TopK<axis=-1>(s, one)
        u = GatherND(up, i) d = GatherND(down, i) r = Unsqueeze(x, axis1)
        h = MatMul(r, u) a = Relu(h) o = MatMul(a, d) y = Squeeze(o, axis1) }""",
    "a Gather by a number": """agraph (float[T,8] x, int64 e) => (float[T,8] y) {
        s = MatMul(x, router) m = ReduceMax<axes=[1]>(s) u = Gather<axis=0>(up, e) d = Gather<axis=0>(down, e)
        h = MatMul(x, u) a = Relu(h) o = MatMul(a, d) y = Mul(o, m) }""",
    "a Gather of turned weights": """agraph (float[T,8] x, int64 e) => (float[T,8] y) {
        s = MatMul(x, router) m = ReduceMax<axes=[1]>(s) t = Transpose<perm=[0,2,1]>(turned)
        u = Gather<axis=0>(t, e) d = Gather<axis=0>(down, e) h = MatMul(x, u) a = Relu(h) o = MatMul(a, d)
        y = Mul(o, m) }""",
}


def weights(text: str) -> dict[str, Any]:
    up = "turned" if "turned" in text else "up"
    shape = (4, 12, 8) if up == "turned" else (4, 8, 12)
    return {
        "router": (8, 4), up: shape, "down": (4, 12, 8), "one": np.array([1]), "last": np.array([-1]),
        "axis1": np.array([1]),
    }  # fmt: skip


@pytest.mark.parametrize("name", PICKED)
def test_stacks_are_weights(name: str) -> None:
    text = PICKED[name]
    proto = parse(text, 17, **weights(text))
    structure = analyse(load(text, 17, **weights(text)))
    assert {w.name for w in prunable_weights(structure)} == {"router", "down", "turned" if "turned" in text else "up"}
    pruned = onnxprune.prune(proto, sparsity=0.5, latency=False).model.graph.initializers
    for stack in ("down", "turned" if "turned" in text else "up"):
        assert 0.2 < (pruned[stack].const_value.numpy() == 0).mean() < 0.8
    assert oracle.check(lambda: load(text, 17, **weights(text)), 0.4).good


def test_rows_that_are_looked_up_are_no_weights_of_a_product() -> None:
    text = """agraph (int64[N,T] i, int64[N,T] j) => (float[N,T,T] y) {
        a = Gather(table, i) b = Gather(other, j) t = Transpose<perm=[0,2,1]>(b) y = MatMul(a, t) }"""
    structure = analyse(load(text, 17, table=(20, 8), other=(20, 8)))
    assert not prunable_weights(structure)
