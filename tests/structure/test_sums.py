"""What a sum makes of units behind an operator: zero stays zero (exact), or does not (mixed), or must not be (pinned).

x w -> h, an operator on h, and a sum over the units. Only where a removed unit is zero behind the operator does the sum
stay what it was; where it would be infinite the unit is pinned.
"""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from onnxprune.structure.analysis import analyse
from onnxprune.structure.structure import Structure

from .graphs import load, value

POSITIVE = np.array([1, 2, 0.5, 3, 1, 2], np.float32)
OPERANDS = {
    "w": (4, 6), "u": (4, 6), "row": (6,), "pos": POSITIVE, "one": np.array(1.0, np.float32),
    "two": np.array(2.0, np.float32), "minus": np.array(-1.0, np.float32), "none": np.array(0.0, np.float32),
    "signs": np.array([2, -1, 1, 1, 1, 1], np.float32), "flags": np.array([1, 0, 1, 1, 0, 0], bool),
    "axes": np.array([1]), "places": np.array([5, 0, 2]), "order": np.array([5, 0, 2, 1, 4, 3]),
    "pads": np.array([0, 1, 0, 2]), "halves": np.array([0, 2, 3]), "flat": np.array([0, 6]),
}  # fmt: skip
CASES = {
    "exact": [
        "Relu(h)", "Abs(h)", "Tanh(h)", "Gelu(h)", "Sqrt(s)", "Sin(h)", "Mul(h, row)", "Mul(row, h)", "Mul(h, two)",
        "Add(h, row)", "Sub(h, row)", "Add(h, none)", "Div(h, pos)", "Div(h, two)", "Pow(h, two)", "Pow(s, pos)",
        "Clip(h, minus, two)", "Clip(h, , two)", "Clip(h, minus)", "PRelu(h, row)", "Where(flags, h, none)",
        "Where(flags, none, h)", "Where(flags, h, row)", "Max(h, none)", "Min(h, row)", "Mean(h, row)",
        "Mod <fmod = 1> (h, two)",
        "Cast <to = 1> (h)", "Identity(h)", "Dropout(h)", "Gather <axis = 1> (h, places)", "Pad(h, pads)",
        "LeakyRelu(h)", "Elu(h)", "Softsign(h)", "ThresholdedRelu(h)", "Neg(h)", "Ceil(h)", "Round(h)",
        'Einsum <equation = "bi,i->bi"> (e, row)', "Mul(e, row)", "Mul(e, h)",
        "CumSum(h, zero)",
    ],
    "mixed": [
        "Exp(h)", "Sigmoid(h)", "Cos(h)", "Softplus(h)", "HardSigmoid(h)", "Add(h, one)", "Sub(one, h)", "Max(h, one)",
        "Min(h, minus)", "Clip(h, one)", "Clip(h, , minus)", "Where(flags, h, one)", "Where(flags, one, h)",
        "Softmax(h)", "CumSum(h, last)", "Mean(h, one)", "Div(one, e)", "Pad(h, pads, one)",
        'Einsum <equation = "bi,bi->bi"> (e, e)', "Mul(e, e)", "Add(h, e)", "Concat <axis = 1> (h, e)",
    ],
    "pinned": [
        "Log(s)", "Reciprocal(h)", "Pow(h, minus)", "Pow(h, signs)", "Pow(h, none)", "Div(row, h)",
        "Mod <fmod = 1> (row, h)",
        "LpNormalization <axis = 0> (h)",
    ],
}  # fmt: skip


def model_of(step: str) -> str:
    return f"""agraph (float[n, 4] x) => (float[n, k] y) <int64 zero = {{0}}, int64 last = {{1}}> {{
        h = MatMul(x, w)  e = Exp(h)  s = Abs(h)  m = {step}  y = ReduceSum(m, axes) }}"""


def state(structure: Structure) -> str:
    w = value(structure, "w")
    if structure.removable(w, 1).any():
        return "exact"
    return "mixed" if structure.removable(w, 1, exact=False).any() else "pinned"


@pytest.mark.parametrize(("step", "expected"), [(step, kind) for kind, steps in CASES.items() for step in steps])
def test_a_sum_over_units_behind_an_operator(step: str, expected: str) -> None:
    structure = analyse(load(model_of(step), **OPERANDS))
    assert not structure.unruled
    assert state(structure) == expected
    for exact in (True, False):
        verdict = oracle.check(lambda: load(model_of(step), **OPERANDS), 0.5, 1, exact=exact)
        assert verdict.good and bool(verdict.removed) == (expected == "exact" or (expected == "mixed" and not exact))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("ReduceSum", "exact"), ("ReduceL1", "exact"), ("ReduceL2", "exact"), ("ReduceSumSquare", "exact"),
        ("ReduceMean", "mixed"), ("ReduceMax", "mixed"), ("ReduceMin", "mixed"), ("ReduceProd", "mixed"),
        ("ReduceLogSumExp", "mixed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keep", [0, 1])
def test_what_a_reduction_does_to_units(reduction: str, expected: str, keep: int) -> None:
    text = f"""agraph (float[n, 4] x) => (float[n, k] y) {{
        h = MatMul(x, w)  y = {reduction} <keepdims = {keep}> (h, axes) }}"""
    weights = {"w": (4, 6), "axes": np.array([-1])}
    assert state(analyse(load(text, **weights))) == expected
    verdict = oracle.check(lambda: load(text, **weights), 0.5, 1, exact=False)
    assert verdict.good and verdict.removed


@pytest.mark.parametrize(
    ("cell", "gates", "expected"),
    [
        ("RNN <hidden_size = 5>", 1, "exact"),
        ('RNN <hidden_size = 5, activations = ["Sigmoid"]>', 1, "mixed"),
        ('RNN <hidden_size = 5, activations = ["Relu"]>', 1, "exact"),
        ('GRU <hidden_size = 5, activations = ["Sigmoid", "Sigmoid"]>', 3, "mixed"),
        ('GRU <hidden_size = 5, activations = ["Sigmoid", "Softsign"]>', 3, "exact"),
        ("LSTM <hidden_size = 5>", 4, "exact"),
        ('LSTM <hidden_size = 5, activations = ["Sigmoid", "Sigmoid", "Tanh"]>', 4, "mixed"),
        ('LSTM <hidden_size = 5, activations = ["Sigmoid", "Tanh", "Softplus"]>', 4, "mixed"),
        ('LSTM <hidden_size = 5, activations = ["Tanh", "Tanh", "Relu"]>', 4, "exact"),
    ],
)
def test_a_hidden_unit_stays_zero_if_its_activations_keep_zero(cell: str, gates: int, expected: str) -> None:
    text = f"""agraph (float[t, n, 4] x) => (float[t, 1, n, k] y) {{
        h = {cell} (x, w, r, b)  y = ReduceSum(h, axes) }}"""
    weights = {"w": (1, 5 * gates, 4), "r": (1, 5 * gates, 5), "b": (1, 10 * gates), "axes": np.array([3])}
    assert state(analyse(load(text, **weights))) == expected
    verdict = oracle.check(lambda: load(text, **weights), 0.5, 1, exact=False)
    assert verdict.good and verdict.removed


BRANCHES = """agraph (float[n, 4] x, bool flag) => (float[n, k] y) {{
    h = MatMul(x, w)
    m = If (flag) <then_branch = a () => (float[n, 6] p) {{ p = {}(h) }},
                   else_branch = b () => (float[n, 6] q) {{ q = {}(h) }}>
    y = ReduceSum(m, axes) }}"""


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("Relu", "Tanh", "exact"), ("Exp", "Tanh", "mixed"), ("Relu", "Exp", "mixed"), ("Exp", "Cos", "mixed")],
)
def test_units_are_zero_behind_branches_if_both_leave_them_so(first: str, second: str, expected: str) -> None:
    weights = {"w": (4, 6), "axes": np.array([1])}
    assert state(analyse(load(BRANCHES.format(first, second), **weights))) == expected


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [("h", "v", "exact"), ("e", "v", "exact"), ("h", "t", "exact"), ("e", "t", "mixed")],
)
def test_a_batch_of_products_is_zero_where_one_side_is(left: str, right: str, expected: str) -> None:
    """h [6, n, 5] and v [6, 5, 3] are zero for a removed expert, e and t are not."""
    text = f"""agraph (float[1, n, 4] x) => (float[n, k] y) {{
        h = MatMul(x, w)  e = Exp(h)  t = Transpose <perm = [0, 2, 1]> (e)  m = MatMul({left}, {right})
        y = ReduceSum <keepdims = 0> (m, first) }}"""
    weights = {"w": (6, 4, 5), "v": (6, 5, 3), "first": np.array([0])}
    structure = analyse(load(text, **weights))
    w = value(structure, "w")
    assert structure.removable(w, 0, exact=False).all()
    assert structure.removable(w, 0).all() == (expected == "exact")
    verdict = oracle.check(lambda: load(text, **weights), 0.5, 1, exact=expected == "exact")
    assert verdict.good and verdict.removed
