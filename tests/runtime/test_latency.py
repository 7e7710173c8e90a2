"""Latency as a ratio: the same model is as fast as itself, four times the work takes about four times as long."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.runtime import alternate, latency, make_session, measure_models
from onnxprune.runtime.latency import Latency, alternate_runs


def product(width: int, layers: int) -> onnx.ModelProto:
    """x [64, width] through `layers` matrix products."""
    weight = numpy_helper.from_array(np.full((width, width), 1 / width, np.float32), "w")
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in zip(names, names[1:], strict=False)]
    value = [helper.make_tensor_value_info(name, 1, [64, width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_ratio_follows_the_work() -> None:
    feeds = {"x": np.ones((64, 256), np.float32)}
    once, again, more = (make_session(product(256, layers), optimize="all") for layers in (4, 4, 16))
    done = []
    same = alternate(once, again, feeds, rounds=7, progress=lambda i, n: done.append((i, n)))
    assert same.ratio == pytest.approx(1, abs=0.3)
    assert done[-1] == (7, 7) and same.rounds == 7
    assert 2.5 < alternate(once, more, feeds, rounds=7).ratio < 6


def test_inputs_may_differ_and_rounds_may_not_be_zero() -> None:
    a, b = (make_session(product(width, 2)) for width in (64, 128))
    feeds = {"x": np.ones((64, 64), np.float32)}
    assert alternate(a, b, feeds, feeds_b={"x": np.ones((64, 128), np.float32)}, rounds=3).ratio > 1.5
    with pytest.raises(ValueError, match="rounds"):
        alternate(a, a, feeds, rounds=0)


def test_more_rounds_are_taken_while_there_is_time_for_them() -> None:
    """By a clock of the test's own: each run takes .1 s."""
    now = [0.0]

    def run() -> None:
        now[0] += 0.1

    def rounds(seconds: float) -> int:
        return alternate_runs(run, run, rounds=3, seconds=seconds, warmup=1, clock=lambda: now[0]).rounds

    assert rounds(0.0) == rounds(0.5) == 3
    assert rounds(1.5) == 8
    assert rounds(1e6) == 61


def test_of_three_pairs_of_sessions_the_middle_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([Latency(1.0, b, 7, 1.0, b) for b in (0.9, 0.5, 0.6)])
    monkeypatch.setattr(latency, "alternate", lambda *_, **__: next(found))
    model = ir.from_proto(product(8, 1))
    assert measure_models(model, model, {}).ratio == 0.6


def test_a_model_that_does_not_load_is_the_error_of_who_asks() -> None:
    good, bad = ir.from_proto(product(8, 1)), ir.from_proto(product(8, 1))
    bad.graph.node(0).op_type = "NoSuchOperator"
    feeds = {"x": np.ones((64, 8), np.float32)}
    assert measure_models(good, good, feeds).ratio == pytest.approx(1, abs=0.5)
    with pytest.raises(VerificationError):
        measure_models(good, bad, feeds, error=VerificationError)
