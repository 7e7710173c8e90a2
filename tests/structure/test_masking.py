"""The masked twin: what is zeroed, how, and what mixing nodes see."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_of, zero_units, zeroed_units
from onnxprune.structure.structure import Fill

from .graphs import constants, load, without
from .twins import difference, run

X = {"x": np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)}


def test_all_sites_of_a_unit_are_zeroed_and_nothing_else() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 3] y) {
        a = MatMul(x, w)  b = Add(a, c)  h = Relu(b)  y = MatMul(h, v) }"""
    weights = {"w": (4, 6), "c": (6,), "v": (6, 3)}
    model = load(text, **weights)
    before = constants(load(text, **weights))
    structure = analyse(model)
    zero_units(structure, without(structure, {("w", 1): [2]}))
    after = constants(model)
    for name, place in (("w", (slice(None), 2)), ("c", (2,)), ("v", (2,))):
        expected = before[name].copy()
        expected[place] = 0
        assert np.array_equal(after[name], expected)


def test_divisors_are_not_zeroed() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 3] y) { a = MatMul(x, w)  h = Div(a, d)  y = MatMul(h, v) }"""
    model = load(text, w=(4, 6), d=(6,), v=(6, 3))
    structure = analyse(model)
    before = constants(model)["d"].copy()
    zero_units(structure, without(structure, {("w", 1): [0, 1]}))
    assert np.array_equal(constants(model)["d"], before)
    assert np.isfinite(run(model, X)[0]).all()


def test_a_norm_runs_over_the_surviving_indices_only() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 3] y) {
        h = MatMul(x, w)  l = LayerNormalization <axis = -1> (h, g, b)  y = MatMul(l, v) }"""
    weights = {"w": (4, 6), "g": (6,), "b": (6,), "v": (6, 3)}
    model = load(text, **weights)
    c = constants(model)
    structure = analyse(model)
    zero_units(structure, without(structure, {("w", 1): [1, 4]}))
    left = [0, 2, 3, 5]
    h = X["x"] @ c["w"][:, left]
    normal = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    expected = (normal * c["g"][left] + c["b"][left]) @ c["v"][left]
    assert difference(run(model, X)[0], expected) < 1e-5


def test_mixing_nodes_behind_one_another_all_see_survivors() -> None:
    text = """agraph (float[n, 4, 5, 5] x) => (float[n, 2, 5, 5] y) {
        h = Conv(x, w)  l = LRN <size = 3> (h)  m = GroupNormalization <num_groups = 2> (l, g, b)
        t = Conv <group = 2> (m, u)  y = Conv(t, v) }"""
    weights = {"w": (8, 4, 1, 1), "g": (8,), "b": (8,), "u": (8, 4, 1, 1), "v": (2, 8, 1, 1)}
    model = load(text, opset=21, **weights)
    structure = analyse(model)
    removed = without(structure, {("w", 0): [0]})
    zero_units(structure, removed)
    norm = next(n for n in model.graph if n.op_type == "GroupNormalization")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)}
    assert norm.attributes["num_groups"].as_int() in (1, 2)
    assert np.isfinite(run(model, feeds)[0]).all()


def test_weights_filled_at_run_time_become_initializers() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 3] y)
        <int64[2] s = {4, 6}> {
        w = ConstantOfShape <value = float[1] {0.5}> (s)  h = MatMul(x, w)  y = MatMul(h, v) }"""
    model = load(text, v=(6, 3))
    structure = analyse(model)
    zero_units(structure, without(structure, {("w", 1): [3]}))
    (masked,) = [a for a in constants(model).values() if a.shape == (4, 6)]
    assert np.array_equal(masked, np.where(np.arange(6) == 3, 0, 0.5) * np.ones((4, 1)))
    run(model, X)


@pytest.mark.parametrize(
    ("points", "axis", "expected"),
    [
        (np.array(3), 0, np.full((4, 2), 3)),
        (np.array([5]), 0, np.full((4, 2), 5)),
        (np.array([1, 2, 3, 4]), 0, [[1, 1], [2, 2], [3, 3], [4, 4]]),
        (np.array([7, 9]), 1, [[7, 9]] * 4),
        (np.array([7, 9]), -1, [[7, 9]] * 4),
        (np.array([[1, 2], [3, 4]]), 0, [[1, 2], [1, 2], [3, 4], [3, 4]]),
        (np.array([[1, 2], [3, 4], [5, 6]]), 0, None),
    ],
)
def test_zero_is_the_zero_point_of_each_element(points: np.ndarray, axis: int, expected: object) -> None:
    zero_point = ir.Value(name="z", const_value=ir.Tensor(points.astype(np.uint8)))
    array = np.zeros((4, 2) if expected is not None else (7, 2), np.uint8)
    if expected is None:  # the last block is short
        expected = np.repeat(points, 3, axis=0)[:7]
    assert np.array_equal(zero_of(Fill(zero_point, axis), array), expected)


def test_without_a_zero_point_zero_is_0() -> None:
    assert not zero_of(Fill(None, 0), np.ones((2, 2), np.int8)).any()
    assert not zero_of(None, np.ones((2, 2), np.float32)).any()


def test_what_would_be_zeroed_is_told_and_the_model_stays() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 3] y) { a = MatMul(x, w)  h = Div(a, d)  y = MatMul(h, v) }"""
    model, twin = (load(text, w=(4, 6), d=(6,), v=(6, 3)) for _ in range(2))
    structure, other = analyse(model), analyse(twin)
    removed = without(structure, {("w", 1): [0, 4]})
    before = constants(model)
    told = {str(v.name): content for v, content in zeroed_units(structure, removed)}
    assert all(np.array_equal(content, before[name]) for name, content in constants(model).items())
    zero_units(other, removed)
    assert told.keys() == {"w", "v"}
    assert all(np.array_equal(content, constants(twin)[name]) for name, content in told.items())
