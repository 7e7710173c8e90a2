"""What users see of the coupling: groups under the names of the field, shares, and reasons."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
from small_models import two_layers

from onnxprune.structure import registry
from onnxprune.structure.analysis import analyse
from onnxprune.structure.groups import KIND_BITS, KINDS, kind_of
from onnxprune.structure.structure import Structure
from onnxprune.structure.view import View

from .graphs import load, value


def kinds(structure: Structure) -> dict[str, int]:
    """How many atoms there are of each kind."""
    out: dict[str, int] = {}
    for group in structure.groups:
        out[group.kind] = out.get(group.kind, 0) + len(group)
    return out


ATTENTION = """agraph (float[n, 5, 8] x) => (float[n, 5, 8] y) {
    q = MatMul(x, wq)  rq = Reshape(q, s)  tq = Transpose <perm = [0, 2, 1, 3]> (rq)
    k = MatMul(x, wk)  rk = Reshape(k, s)  tk = Transpose <perm = [0, 2, 3, 1]> (rk)
    v = MatMul(x, wv)  rv = Reshape(v, s)  tv = Transpose <perm = [0, 2, 1, 3]> (rv)
    m = MatMul(tq, tk)  p = Softmax <axis = -1> (m)  o = MatMul(p, tv)
    b = Transpose <perm = [0, 2, 1, 3]> (o)  f = Reshape(b, back)  y = MatMul(f, wo) }"""


def test_heads_and_head_sizes_are_told_apart() -> None:
    sizes = {"wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "wo": (12, 8)}
    structure = analyse(load(ATTENTION, s=np.array([0, 5, 3, 4]), back=np.array([0, 5, 12]), **sizes))
    assert kinds(structure) == {"heads": 3, "head-size": 8}
    heads = next(g for g in structure.groups if g.kind == "heads")
    assert {(s.value.name, s.axis) for s in heads.sites} == {("wq", 1), ("wk", 1), ("wv", 1), ("wo", 0)}


@pytest.mark.parametrize(
    ("text", "weights", "kind"),
    [
        ("(float[n, 4, 3, 3] x) => (float[n, 2, 3, 3] y) { h = Conv(x, w)  y = Conv(h, v) }",
         {"w": (6, 4, 1, 1), "v": (2, 6, 1, 1)}, "channels"),
        ("(float[n, 4] x) => (float[n, 2] y) { h = MatMul(x, w)  y = MatMul(h, v) }",
         {"w": (4, 6), "v": (6, 2)}, "neurons"),
        ("(float[t, n, 4] x) => (float[t, 1, n, 2] y) { h = GRU <hidden_size = 6> (x, w, r)  y = MatMul(h, v) }",
         {"w": (1, 18, 4), "r": (1, 18, 6), "v": (6, 2)}, "hidden"),
        ("(float[1, n, 4] x) => (float[n, 2] y) { h = MatMul(x, w)  m = MatMul(h, v)"
         "  y = ReduceSum <keepdims = 0> (m, a) }",
         {"w": (6, 4, 1), "v": (6, 1, 2), "a": np.array([0])}, "experts"),
    ],
)  # fmt: skip
def test_units_have_the_names_of_the_field(text: str, weights: dict, kind: str) -> None:
    assert kinds(analyse(load(f"agraph {text}", **weights))) == {kind: 6}


def test_the_most_telling_name_is_taken() -> None:
    for telling, other in pairwise(KINDS):
        assert kind_of(KIND_BITS[telling] | KIND_BITS[other]) == telling
    assert KINDS[:2] == ("heads", "head-size") and kind_of(0) == "units"


def test_a_residual_sum_ties_all_that_write_to_it() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 2] y) {
        a = MatMul(x, w)  b = MatMul(a, u)  s = Add(a, b)  y = MatMul(s, v) }"""
    (group,) = analyse(load(text, w=(4, 6), u=(6, 6), v=(6, 2))).groups
    assert {(s.value.name, s.axis) for s in group.sites} == {("w", 1), ("u", 0), ("u", 1), ("v", 0)} and len(group) == 6


def test_the_share_counts_weights_with_a_free_axis() -> None:
    text = "agraph (float[n, 4] x) => (float[n, 5] y) { h = MatMul(x, w)  y = MatMul(h, v) }"
    assert analyse(load(text, w=(4, 6), v=(6, 5))).prunable_share() == (54, 54)
    alone = "agraph (float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }"
    assert analyse(load(alone, w=(4, 6))).prunable_share() == (0, 24)


def test_mixed_units_count_only_when_inexact_ones_are_asked_for() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 2] y) {
        h = MatMul(x, w)  p = Softmax <axis = -1> (h)  y = MatMul(p, v) }"""
    structure = analyse(load(text, w=(4, 6), v=(6, 2)))
    assert structure.prunable_share() == (0, 36) and structure.prunable_share(exact=False) == (36, 36)
    assert "Softmax" in structure.groups[0].inexact


def test_every_pinned_axis_has_the_operator_and_the_reason() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 1] y, int64[n, 1] i) {
        h = MatMul(x, w)  y, i = TopK(h, one) }"""
    structure = analyse(load(text, w=(4, 6), one=np.array([1])))
    reasons = structure.why_pinned(value(structure, "w"))
    assert len(reasons) == 2
    assert "graph input x" in reasons[0] and "graph output i" in reasons[1]


def test_an_axis_that_is_pinned_in_part_says_how_much_and_why() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 2] y, int64[n, 1] i)
        <int64[2] s = {2, 4}, int64[1] one = {1}> {
        h = MatMul(x, w)  a, b = Split <axis = 1> (h, s)  z, i = TopK(a, one)  y = MatMul(b, v) }"""
    structure = analyse(load(text, w=(4, 6), v=(4, 2)))
    reason = structure.why_pinned(value(structure, "w"))[1]
    assert reason.startswith("axis 1, 2 of 6 indices: graph output i")


def test_an_operator_without_a_rule_pins_and_is_counted() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 2] y) {
        h = MatMul(x, w)  z = com.microsoft.Unheard(h)  y = MatMul(h, v) }"""
    structure = analyse(load(text, w=(4, 6), v=(6, 2)))
    assert structure.unruled == {"com.microsoft::Unheard": 1}
    assert "no rule" in structure.why_pinned(value(structure, "w"))[1]


def test_an_operator_without_a_rule_pins_all_that_it_reads_and_makes() -> None:
    """Its first operand has no known shape, its second is read in a body too."""
    text = """agraph (float[n, 4] x, float[n, 4] z) => (float[n, 2] y, float[n, k] o) {
        a = MatMul(x, w)  b = MatMul(x, u)  c = com.microsoft.Unheard(z)  d = com.microsoft.Unheard(c, a)
        e = MatMul(b, v)  y = Relu(e)  o = Identity(d) }"""
    structure = analyse(load(text, w=(4, 6), u=(4, 6), v=(6, 2)))
    assert not structure.removable(value(structure, "w"), 1, exact=False).any()
    assert structure.removable(value(structure, "u"), 1).all()
    assert structure.unruled == {"com.microsoft::Unheard": 2}


def test_weights_are_found_behind_what_moves_and_casts_them() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 2] y) {
        h = MatMul(x, w)  a = Cast <to = 1> (v)  b = Transpose(a)  c = Reshape(b, s)  y = MatMul(h, c) }"""
    structure = analyse(load(text, w=(4, 6), v=np.ones((2, 6), np.float16), s=np.array([6, 2])))
    assert {v.name for v in structure.weights} == {"w", "v"}


def test_an_atom_that_is_all_of_an_axis_is_pinned() -> None:
    """Reading two halves as one leaves one unit for each half of a pair; a unit that is everything never goes."""
    text = """agraph (float[n, 4] x) => (float[n, 2] y)
        <int64[2] flip = {1, 0}> {
        h = MatMul(x, w)  g = Gather <axis = 1> (h, flip)  s = Add(h, g)  y = MatMul(s, v) }"""
    structure = analyse(load(text, w=(4, 2), v=(2, 2)))
    assert not structure.groups and "all of an axis" in structure.why_pinned(value(structure, "w"))[1]


CARRIED = """agraph (float[n, 6] x) => (float[n, 2] y) <int64 turns = {3}, bool go = {1}> {
    x0 = MatMul(x, first)
    h, last = Loop (turns, go, x0, w) <body = body (int64 i, bool c, float[n, 6] a, float[6, 6] u)
        => (bool d, float[n, 6] b, float[6, 6] v) { d = Identity(c)  b = MatMul(a, u)  v = STEP(u) }>
    y = MatMul(h, out) }"""


@pytest.mark.parametrize(("step", "mixed"), [("Identity", False), ("Sin", False), ("Exp", True)])
def test_what_is_carried_through_a_loop_stays_zero_if_every_turn_leaves_it_so(step: str, mixed: bool) -> None:
    """TensorFlow carries the weights of its recurrent layers from turn to turn."""
    structure = analyse(load(CARRIED.replace("STEP", step), first=(6, 6), w=(6, 6), out=(6, 2)))
    (group,) = structure.groups
    assert len(group) == 6 and bool(group.inexact) == mixed and not structure.unruled


def test_a_sum_over_what_is_not_zero_is_mixed() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 1] y)
        <int64[1] a = {1}> { h = MatMul(x, w)  e = Exp(h)  y = ReduceSum(e, a) }"""
    structure = analyse(load(text, w=(4, 6)))
    w = value(structure, "w")
    assert not structure.removable(w, 1).any() and structure.removable(w, 1, exact=False).all()
    zero = text.replace("Exp", "Tanh")
    assert analyse(load(zero, w=(4, 6))).prunable_share() == (24, 24)


def test_a_rule_that_fails_pins_its_node_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: View) -> None:
        raise IndexError("no such axis")

    monkeypatch.setitem(registry.RULES._entries, "Relu", broken)
    structure = analyse(two_layers())
    assert structure.unruled == {"Relu (its rule failed)": 1}
    assert structure.prunable_share()[0] == 0
    assert any("no such axis" in reason for value in structure.weights for reason in structure.why_pinned(value))


def test_an_axis_that_is_not_there_has_no_ids() -> None:
    """Counted from the front or from the back: of a number without axes, of a value that nothing is known of."""
    structure = analyse(load("agraph (float[n, 3] x) => (float[n, 4] y) { y = MatMul(x, w) }", w=(3, 4)))
    weight = value(structure, "w")
    assert structure.ids(weight, -1) is not None
    assert [structure.ids(weight, axis) for axis in (2, -3)] == [None, None]
    unknown = ir.Value(name="unknown")
    assert structure.ids(unknown, -1) is None and structure.ids(unknown, 0) is None
