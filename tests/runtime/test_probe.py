"""Shapes are inferred, and only what stays open, or contradicts itself, is measured by a run."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from small_models import graph, random

from onnxprune.runtime import probe
from onnxprune.runtime.probe import known_facts


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    real = probe.make_session
    monkeypatch.setattr(probe, "make_session", lambda *a, **s: made.append(a) or real(*a, **s))
    return made


def test_a_number_without_axes_is_no_gap(sessions: list[Any]) -> None:
    """The length of a Reshape is computed from the shape, as exporters write it."""
    model = graph(
        "agraph (float[N,4,8] x) => (float[N,32] y) {"
        "s = Shape(x) zero = Constant <value_int = 0> () one = Constant <value_ints = [0]> ()"
        "n = Gather(s, zero) m = Unsqueeze(n, one) rest = Constant <value_ints = [32]> ()"
        "t = Concat <axis = 0> (m, rest) y = Reshape(x, t) }",
        {},
    )
    facts = known_facts(model)
    scalar = next(node.outputs[0] for node in model.graph if node.op_type == "Gather")
    assert facts.first.shapes[scalar] == () and not facts.gaps(model)
    assert not sessions


def test_what_depends_on_numbers_is_measured(sessions: list[Any]) -> None:
    model = graph(
        "agraph (float[2,8] x) => (float[2,4] y) { a = Relu(x) b = NonZero(a) c = Shape(b) y = MatMul(x, w) }",
        {"w": random(8, 4)},
    )
    facts = known_facts(model)
    assert len(sessions) == 1 and not facts.gaps(model)


def test_dimensions_that_follow_from_others_are_no_obstacle_to_a_run() -> None:
    """As optimum names the length of the mask; experts in turn, over tokens whose number no shape tells."""
    model = graph(
        "agraph (float[batch,sequence,8] x, int64[batch,total] mask, float[batch,past,8] p) => (float[M,4] y) {"
        "z = Constant <value_ints = [0]> () m = ReduceSum (mask, z) k = NonZero (m)"
        "b = Relu(x) n = NonZero(b) c = Transpose <perm = [1, 0]> (n) e = Constant <value_int = 0> ()"
        "i = Gather <axis = 1> (c, e) shape = Constant <value_ints = [-1, 8]> () flat = Reshape(b, shape)"
        "some = Gather(flat, i) y = MatMul(some, w) }",
        {"w": random(8, 4)},
    )
    model.graph.inputs[1].shape = ir.Shape(["batch", "past + sequence"])
    facts = known_facts(model)
    assert not facts.gaps(model)
    rows = facts.dims(model.graph.outputs[0])
    assert rows is not None and rows[0][0] != rows[0][1] and rows[1] == (4, 4)


def test_where_branches_may_fit_one_setting_alone_a_run_tells_which(sessions: list[Any]) -> None:
    """A model whose branch needs 8 columns is inferred at any number, without a gap and without a failure."""
    model = graph(
        "agraph (float[N,T] x, bool flag) => (float[N,M] y) { y = If(flag) <"
        "then_branch = a () => (float[N,P] p) { p = Relu(x) },"
        "else_branch = b () => (float[N,Q] q) { q = Sigmoid(x) }> }",
        {},
    )
    known_facts(model)
    assert sessions
