"""Multiply-adds are those of one sample at stated shapes, the same in every place that gives them."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from small_models import graph, random, two_layers

import onnxprune
from onnxprune import runtime


def sequence_model() -> ir.Model:
    return graph(
        "agraph (float[N,T,8] x) => (float[N,T,4] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }",
        {"w1": random(8, 32), "w2": random(32, 4)},
    )


@pytest.mark.parametrize("model", [two_layers(32), sequence_model()], ids=["a free batch", "batch and length"])
def test_inspect_and_prune_count_one_sample(model: ir.Model) -> None:
    sample = runtime.one_sample(model)
    assert {array.shape[0] for array in sample.values()} == {1}
    found = onnxprune.inspect(model)
    result = onnxprune.prune(model, sparsity=0.5, structure="channels", latency=False)
    assert result.verdict is not None and result.verdict.before.macs == found.macs
    assert found.input_shapes == dict(result.verdict.input_shapes) == {n: a.shape for n, a in sample.items()}
    rows = int(sample["x"].size // 8)
    assert found.macs == rows * (8 * 32 + 32 * 4)


def test_a_fixed_batch_stays_what_it_is() -> None:
    model = graph("agraph (float[3,8] x) => (float[3,4] y) { y = MatMul(x, w) }", {"w": random(8, 4)})
    assert onnxprune.inspect(model).input_shapes == {"x": (3, 8)}


def test_a_model_that_states_all_shapes_is_not_run_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("agraph (float[3,8] x) => (float[3,4] y) { y = MatMul(x, w) }", {"w": random(8, 4)})
    monkeypatch.setattr(runtime, "one_sample", lambda *_: pytest.fail("it was run"))
    found = onnxprune.inspect(model)
    assert found.macs == 3 * 8 * 4 and found.input_shapes == {"x": (3, 8)}
