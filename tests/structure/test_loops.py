"""If, Loop and Scan: units that cross a border are the same units inside, and what changes its shape stays."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove
from onnxprune.structure.structure import Structure

from .graphs import load, value, without
from .twins import difference, run

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
SEQUENCE = np.random.default_rng(1).standard_normal((5, 3, 4)).astype(np.float32)


def check(
    text: str, feeds: dict[str, np.ndarray], opset: int = 20, name: str = "w", axis: int = 1, **weights: object
) -> Structure:
    """See that all units of a weight can go, and that two of them go exactly."""
    model, twin = load(text, opset, **weights), load(text, opset, **weights)  # type: ignore[arg-type]
    structure, other = analyse(model), analyse(twin)
    assert not structure.unruled
    assert structure.removable(value(structure, name), axis).all(), structure.why_pinned(value(structure, name))
    removed = without(structure, {(name, axis): [0, 3]})
    remove(structure, removed)
    zero_units(other, removed)
    for a, b in zip(run(model, feeds), run(twin, feeds), strict=True):
        assert difference(a, b) < 1e-5
    return structure


SCAN = """agraph (float[t, n, 4] x) => (float[a, b, 2] y) {{
    h = MatMul(x, w)  start = ReduceMax <keepdims = 0> (h, zero)
    last, all = Scan <num_scan_inputs = 1 {}, body = body (float[n, 6] s, float[n, 6] e)
        => (float[n, 6] s2, float[n, 6] o) {{ s2 = Add(s, e)  o = Mul(s2, e) }}> (start, {})
    y = MatMul({}, v) }}"""


@pytest.mark.parametrize(
    ("attributes", "scanned", "read"),
    [
        ("", "h", "all"),
        ("", "h", "last3"),
        (", scan_input_axes = [0]", "h", "all"),
        (", scan_output_axes = [1]", "h", "all"),
        (", scan_output_axes = [-2]", "h", "all"),
        (", scan_input_axes = [1], scan_output_axes = [1]", "turned", "all"),
        (", scan_input_axes = [-2]", "turned", "all"),
    ],
)
def test_units_are_carried_and_stacked_by_a_scan(attributes: str, scanned: str, read: str) -> None:
    text = SCAN.format(attributes, scanned, read)
    text = text.replace("start =", "turned = Transpose <perm = [1, 0, 2]> (h)  start =")
    text = text.replace("y = MatMul", "last3 = Unsqueeze(last, zero)  y = MatMul")
    structure = check(text, {"x": SEQUENCE}, w=(4, 6), v=(6, 2), zero=np.array([0]))
    assert len(structure.groups) == 1


def test_the_axis_that_is_scanned_stays() -> None:
    text = """agraph (float[n, 4] x) => (float[n, k, 2] y) <int64[2] s = {1, 0}> {
        h = MatMul(x, w)  start = MatMul(x, u)
        last, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], body = body (float[n, 6] s, float[n] e)
            => (float[n, 6] s2, float[n, 6] o) { e2 = Unsqueeze(e, one)  s2 = Mul(s, e2)  o = Identity(s2) }> (start, h)
        y = MatMul(all, v) }"""
    structure = analyse(load(text, w=(4, 5), u=(4, 6), v=(6, 2), one=np.array([1])))
    reason = [r for r in structure.why_pinned(value(structure, "w")) if r.startswith("axis 1")]
    assert reason and "scanned" in reason[0]
    assert structure.removable(value(structure, "u"), 1).all()


LOOP = """agraph (float[n, 4] x) => (float[a, b] y) <int64 turns = {{3}}, bool go = {{1}}> {{
    h = MatMul(x, w)
    last, all = Loop (turns, go, h) <body = body (int64 i, bool c, float[n, 6] s)
        => (bool d, float[n, 6] s2, float[n, 6] o) {{ d = Identity(c)  s2 = {}  o = Neg(s2) }}>
    {} }}"""


@pytest.mark.parametrize("end", ["y = MatMul(last, v)", "m = ReduceMax <keepdims = 0> (all, zero)  y = MatMul(m, v)"])
@pytest.mark.parametrize("turn", ["Relu(s)", "Mul(s, s)", "Sin(s)"])
def test_units_are_carried_and_stacked_by_a_loop(end: str, turn: str) -> None:
    check(LOOP.format(turn, end), {"x": X}, w=(4, 6), v=(6, 2), zero=np.array([0]))


def test_a_turn_that_mixes_units_makes_them_inexact() -> None:
    structure = analyse(load(LOOP.format("Softmax(s)", "y = MatMul(last, v)"), w=(4, 6), v=(6, 2)))
    w = value(structure, "w")
    assert not structure.removable(w, 1).any() and structure.removable(w, 1, exact=False).all()


def test_what_grows_from_turn_to_turn_stays() -> None:
    text = """agraph (float[n, 4] x) => (float[n, k] y) <int64 turns = {3}, bool go = {1}> {
        h = MatMul(x, w)
        last = Loop (turns, go, h) <body = body (int64 i, bool c, float[n, m] s)
            => (bool d, float[n, m2] s2) { d = Identity(c)  s2 = Concat <axis = 1> (s, s) }>
        y = ReduceSum(last, one) }"""
    structure = analyse(load(text, w=(4, 6), one=np.array([1])))
    assert not structure.removable(value(structure, "w"), 1, exact=False).any() and not structure.unruled


def test_a_weight_is_carried_through_a_loop() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 2] y) <int64 turns = {3}, bool go = {1}> {
        h = MatMul(x, w)
        a, b = Loop (turns, go, h, u) <body = body (int64 i, bool c, float[n, 6] s, float[6, 6] m)
            => (bool d, float[n, 6] s2, float[6, 6] m2) { d = Identity(c)  s2 = MatMul(s, m)  m2 = Identity(m) }>
        y = MatMul(a, v) }"""
    structure = check(text, {"x": X}, w=(4, 6), u=(6, 6), v=(6, 2))
    (group,) = structure.groups
    assert {s.value.name for s in group.sites} == {"w", "u", "v"}


IF = """agraph (float[n, 4] x, bool flag) => (float[a, b] y) {{
    h = MatMul(x, w)
    m = If (flag) <then_branch = a () => (float[n, k] p) {{ p = {} }},
                   else_branch = b () => (float[n, l] q) {{ q = {} }}>
    {} }}"""


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Relu(h)", "Neg(h)", {"w", "v"}),
        ("MatMul(h, u)", "Identity(h)", {"w", "u", "v"}),
        ("MatMul(x, w2)", "MatMul(h, u)", {"w2", "u", "v"}),
    ],
)
def test_units_of_both_branches_are_the_same(first: str, second: str, expected: set[str]) -> None:
    text = IF.format(first, second, "y = MatMul(m, v)")
    for flag in (True, False):
        feeds = {"x": X, "flag": np.array(flag)}
        structure = check(text, feeds, name="v", axis=0, w=(4, 6), u=(6, 6), w2=(4, 6), v=(6, 2))
        groups = [{str(site.value.name) for site in group.sites} for group in structure.groups]
        both_sides = next(names for names in groups if "v" in names)
        assert both_sides == expected


def test_branches_of_unequal_shapes_pin_what_they_read() -> None:
    text = IF.format("Relu(h)", "Unsqueeze(h, zero)", "s = Shape(m)  y = Cast <to = 1> (s)  z = MatMul(g, v)")
    text = text.replace("float[n, l] q", "float[1, n, l] q").replace("float[a, b] y", "float[k] y, float[n, 2] z")
    text = text.replace("m = If", "g = MatMul(x, u)  m = If")
    structure = analyse(load(text, w=(4, 6), zero=np.array([0]), u=(4, 6), v=(6, 2)))
    assert structure.removable(value(structure, "u"), 1).all()
    reason = structure.why_pinned(value(structure, "w"))
    assert any("branches" in r for r in reason) and not structure.unruled
