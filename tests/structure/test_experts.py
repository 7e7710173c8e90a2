"""Whole experts go with their columns of the router, where all that reads the router's choice picks experts by it."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import oracle
import pytest

import onnxprune
from onnxprune import model_io
from onnxprune.structure.analysis import analyse

from .graphs import load, parse

ROUTED = """agraph (float[T,8] x) => (float[T,8] y) {
    s = MatMul(x, router) p = Softmax<axis=-1>(s) top, i = TopK<axis=-1>(p, two) f = Reshape(i, flat)
    u = PICK_UP d = PICK_DOWN e = Unsqueeze(x, axis1) w = Expand(e, twice) r = Reshape(w, rows)
    h = MatMul(r, u) a = Relu(h) o = MatMul(a, d) b = Reshape(o, by_token) q = Unsqueeze(top, last)
    m = Mul(b, q) y = ReduceSum<keepdims=0>(m, axis1) }"""
GATHERED = ROUTED.replace("PICK_UP", "Gather<axis=0>(up, f)").replace("PICK_DOWN", "Gather<axis=0>(down, f)")
TUPLES = ROUTED.replace("PICK_UP", "GatherND(up, t)").replace("PICK_DOWN", "GatherND(down, t)").replace(
    "f = Reshape(i, flat)", "f = Reshape(i, flat) t = Unsqueeze(f, last)")  # fmt: skip
WEIGHTS = {
    "router": (8, 6), "up": (6, 8, 12), "down": (6, 12, 8), "two": np.array([2]), "flat": np.array([-1]),
    "axis1": np.array([1]), "twice": np.array([1, 2, 1]), "rows": np.array([-1, 1, 8]),
    "by_token": np.array([-1, 2, 8]), "last": np.array([-1]),
}  # fmt: skip


@pytest.mark.parametrize("text", [GATHERED, TUPLES], ids=["Gather", "GatherND"])
def test_experts_go_with_the_columns_of_their_router(text: str) -> None:
    structure = analyse(load(text, 17, **WEIGHTS))
    (experts,) = [g for g in structure.groups if g.kind == "experts"]
    assert len(experts) == 6 and experts.inexact
    assert {(s.value.name, s.axis) for s in experts.sites} == {("router", 1), ("up", 0), ("down", 0)}
    for seed in range(4):
        verdict = oracle.check(lambda: load(text, 17, **WEIGHTS), 0.5, seed, exact=False)
        assert verdict.good and verdict.signal > 0.01 and verdict.removed


def test_as_many_are_left_as_the_router_takes() -> None:
    result = onnxprune.prune(parse(GATHERED, 17, **WEIGHTS), sparsity=0.9, structure="channels", kinds=("experts",),
                             allow_inexact=True, round_to="none", latency=False)  # fmt: skip
    proto = model_io.to_proto(result.model)
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    assert shapes["router"] == (8, 2) and shapes["up"] == (2, 8, 12) and shapes["down"] == (2, 12, 8)
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    assert np.isfinite(ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]).all()


@pytest.mark.parametrize(
    "reader",
    ["z = Cast<to=1>(i)", "z = OneHot<axis=-1>(i, six, ends)", "z = Gather<axis=0>(i, zero)", "z = Identity(i)"],
)
def test_a_router_whose_choice_others_read_stays(reader: str) -> None:
    """Its positions would be other numbers."""
    text = GATHERED.replace("=> (float[T,8] y)", "=> (float[T,8] y, OUT z)").replace(
        "y = ReduceSum", f"{reader} y = ReduceSum"
    )
    kind = {"Cast": "float[T,2]", "OneH": "float[T,2,6]", "Gath": "int64[2]", "Iden": "int64[T,2]"}[reader[4:8]]
    more = {"six": np.array(6), "ends": np.array([0, 1], np.float32), "zero": np.array(0)}
    structure = analyse(load(text.replace("OUT", kind), 17, **WEIGHTS, **more))
    assert not [g for g in structure.groups if g.kind == "experts"]
