"""Shapes are inferred, and only what stays open, or contradicts itself, is measured by a run."""

from __future__ import annotations

from typing import Any

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
