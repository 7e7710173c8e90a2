"""Operands that are known only while the model runs: what they may touch is pinned, all the rest stays free."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove

from .graphs import load, value, without
from .twins import Array, difference, run

INPUTS = """float[n, 4] x, int64[1] r, int64[2] pair, int64[4] four, int64 one_r, float exponent, bool[n] rows,
    bool[6] units, bool flag, int64[3, 1] places, float[3, 6] u, int64[5, 6] inside, float[5, 6] v5, int64[2, 3] table,
    int64[2] whole"""
CONSTANTS = {
    "w": (4, 6), "zero": np.array([0]), "one": np.array([1]), "five": np.array([5]), "six": np.array([6]),
    "zero_pads": np.array([0, 1]),
    "none": np.array(0.0, np.float32), "ratio": np.array(0.5, np.float32),}  # fmt: skip
FEEDS: dict[str, Array] = {
    "x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32), "r": np.array([1]),
    "pair": np.array([2, 1]), "whole": np.array([5, 6]),
    "four": np.array([1, 0, 0, 0]), "one_r": np.array(1), "exponent": np.array(2.0, np.float32),
    "rows": np.array([True, False, True, True, False]), "units": np.array([1, 0, 1, 1, 0, 1], bool),
    "flag": np.array(False), "places": np.array([[0], [2], [4]]),
    "u": np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32), "inside": np.full((5, 6), 1),
    "v5": np.random.default_rng(2).standard_normal((5, 6)).astype(np.float32),
    "table": np.array([[0, 1, 2], [3, 4, 0]]),
}  # fmt: skip
FREE = [
    "Tile(h, pair)",
    "Expand(h, whole)", "Gather(h, r)", "Gather <axis = -2> (h, table)", "Compress <axis = 0> (h, rows)",
    "GatherND(h, places)", "Split_rows(h)", "Where(flag, h, none)", "Identity(h)",
]  # fmt: skip
PINNED = {
    "Slice(h, r, six, one)": "bounds",
    "Slice(h, zero, r, one)": "bounds",
    "Slice(h, pair, pair)": "bounds",
    "Slice(h, zero, five, r)": "bounds",
    "Slice(h, zero, five, one, r)": "bounds",
    "Gather <axis = 1> (h, r)": "indices",
    "Pad(h, four)": "padded",
    "Pad(h, zero_pads, , r)": "Pad",
    "Reshape(h, pair)": "Reshape",
    "Unsqueeze(h, r)": "axes",
    "CumSum(h, one_r)": "axis",
    "ReduceSum(h, r)": "axes",
    "Pow(h, exponent)": "power",
    "Compress <axis = 1> (h, units)": "picks",
    "Compress(h, units)": "flattens",
    "Dropout(h, ratio, flag)": "random",
    "GatherElements <axis = 1> (h, inside)": "indices",
    "ScatterElements <axis = 1> (h, inside, v5)": "indices",
    "ScatterND(h, places, u)": "",
    "ReverseSequence <time_axis = 1, batch_axis = 0> (h, lengths)": "reverses",
    "TopK_first(h)": "ranks",
}
MACROS = {
    "Split_rows(h)": "p, q = Split <axis = 0, num_outputs = 2> (h)  m = Concat <axis = 0> (q, p)",
    "TopK_first(h)": "m, places2 = TopK <axis = 1> (h, r)",
}


def text_of(step: str) -> str:
    body = MACROS.get(step, f"m = {step}")
    return f"""agraph ({INPUTS}) => (float y) {{
        h = MatMul(x, w)  lengths = Identity(six)  {body}  y = ReduceSum <keepdims = 0> (m) }}"""


@pytest.mark.parametrize("step", FREE)
def test_units_beside_an_axis_that_is_picked_from_at_run_time_are_free(step: str) -> None:
    model, twin = load(text_of(step), **CONSTANTS), load(text_of(step), **CONSTANTS)
    structure, other = analyse(model), analyse(twin)
    assert structure.removable(value(structure, "w"), 1).all() and not structure.unruled
    removed = without(structure, {("w", 1): [1, 4]})
    remove(structure, removed)
    zero_units(other, removed)
    assert difference(run(model, FEEDS)[0], run(twin, FEEDS)[0]) < 1e-5


@pytest.mark.parametrize("step", PINNED)
def test_units_that_are_picked_from_at_run_time_are_pinned(step: str) -> None:
    structure = analyse(load(text_of(step), **CONSTANTS))
    w = value(structure, "w")
    assert not structure.removable(w, 1, exact=False).any() and not structure.unruled
    (reason,) = [r for r in structure.why_pinned(w) if r.startswith("axis 1")]
    assert PINNED[step] in reason, reason


def test_bounds_of_a_clip_that_are_not_known_make_units_inexact() -> None:
    for step in ("Clip(h, exponent)", "Clip(h, , exponent)"):
        structure = analyse(load(text_of(step), **CONSTANTS))
        w = value(structure, "w")
        assert not structure.removable(w, 1).any() and structure.removable(w, 1, exact=False).all()


DYNAMIC: Mapping[str, tuple[str, dict[str, object], tuple[int, int]]] = {
    "a merged axis of unknown extent": (
        "r = Reshape(h, s)  g = Relu(r)  b = Reshape(g, t)  y = MatMul(b, v)",
        {"s": np.array([-1, 6]), "t": np.array([-1, 7, 6]), "v": (6, 2)}, (6, 0),
    ),
    "channels merged with the unknown axis": (
        "p = Transpose <perm = [0, 2, 1]> (h)  r = Reshape(p, s)  g = Relu(r)  b = Reshape(g, t)  y = MatMul(v, b)",
        {"s": np.array([-1, 7]), "t": np.array([-1, 6, 7]), "v": (2, 6)}, (6, 1),
    ),
    "all in one": (
        "r = Reshape(h, s)  g = Relu(r)  b = Reshape(g, t)  y = MatMul(b, v)",
        {"s": np.array([-1]), "t": np.array([-1, 7, 6]), "v": (6, 2)}, (6, 0),
    ),
    "split in two behind the unknown axis": (
        "r = Reshape(h, s)  g = Relu(r)  q = Transpose <perm = [0, 1, 3, 2]> (g)  b = Reshape(q, t)  y = MatMul(b, v)",
        {"s": np.array([-1, 7, 2, 3]), "t": np.array([-1, 7, 6]), "v": (6, 2)}, (5, 0),
    ),
    "shuffled behind the unknown axis": (  # which becomes a Gather that leaves every unit free
        "r = Reshape(h, s)  q = Transpose <perm = [0, 1, 3, 2]> (r)  b = Reshape(q, t)  y = MatMul(b, v)",
        {"s": np.array([-1, 7, 2, 3]), "t": np.array([-1, 7, 6]), "v": (6, 2)}, (6, 0),
    ),
    "joined along the unknown axis": (
        "r = Relu(h)  b = Concat <axis = 0> (h, r)  y = MatMul(b, v)", {"v": (6, 2)}, (6, 0),
    ),
    "cut along the unknown axis": (
        "a, b = Split <axis = 0, num_outputs = 2> (h)  y = MatMul(b, v)", {"v": (6, 2)}, (6, 0),
    ),
    "flattened": (
        "r = Flatten <axis = 2> (h)  y = MatMul(r, v)", {"v": (6, 2)}, (6, 0),
    ),
    "repeated along the unknown axis": (
        "b = Tile(h, s)  y = MatMul(b, v)", {"s": np.array([2, 1, 1]), "v": (6, 2)}, (6, 0),
    ),
    "expanded to its own shape": (
        "l = ReduceMax(h, axes)  s = Shape(h)  e = Expand(l, s)  b = Mul(e, h)  y = MatMul(b, v)",
        {"axes": np.array([1]), "v": (6, 2)}, (6, 0),
    ),
    "a target computed from the shape": (
        "s = Shape(h)  n0 = Gather(s, zero)  t = Concat <axis = 0> (n0, seven, three, two)  r = Reshape(h, t)"
        "q = Concat <axis = 0> (n0, seven, six)  g = Relu(r)  b = Reshape(g, q)  y = MatMul(b, v)",
        {"zero": np.array([0]), "seven": np.array([7]), "three": np.array([3]), "two": np.array([2]),
         "six": np.array([6]), "v": (6, 2)}, (5, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DYNAMIC)
def test_units_pass_beside_an_axis_of_unknown_extent(name: str) -> None:
    """h is [n, 7, 6]. How many atoms its last axis has, and how many of those are mixed."""
    body, weights, (atoms, _) = DYNAMIC[name]
    text = f"agraph (float[n, 7, 4] x) => (float y) {{ h = MatMul(x, w)  {body} }}"
    weights = {"w": (4, 6), **weights}
    model, twin = load(text, **weights), load(text, **weights)  # type: ignore[arg-type]
    structure, other = analyse(model), analyse(twin)
    assert not structure.unruled
    w = value(structure, "w")
    ids = structure.ids(w, 1)
    assert ids is not None and structure.removable(w, 1).all()
    found = np.unique(structure.terms.members(ids)[1])
    assert len(found) == atoms
    for atom in (found[:1], found[-1:]):
        model, twin = load(text, **weights), load(text, **weights)  # type: ignore[arg-type]
        structure, other = analyse(model), analyse(twin)
        removed = np.zeros(structure.terms.count, bool)
        removed[atom] = True
        remove(structure, removed)
        zero_units(other, removed)
        for n in (1, 4):
            x = np.random.default_rng(n).standard_normal((n, 7, 4)).astype(np.float32)
            assert difference(run(model, {"x": x})[0], run(twin, {"x": x})[0]) < 1e-5
