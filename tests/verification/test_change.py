"""The change of outputs: each part on its own scale, and none where outputs say nothing."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser
from small_models import random

from onnxprune import model_io
from onnxprune.data.readers import open_data
from onnxprune.data.working import give_samples
from onnxprune.verification.change import sentence
from onnxprune.verification.verdict import verify


def network(outputs: str, body: str, **weights: np.ndarray) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["":17]> g (float[n, 8] x) => ({outputs}) {{ h = MatMul(x, w) {body} }}'
    proto = parser.parse_model(text)
    for name, array in {"w": random(8, 16), **weights}.items():
        kind = np.int64 if array.dtype == np.int64 else np.float32
        proto.graph.initializer.append(numpy_helper.from_array(array.astype(kind), name))
    return model_io.load_any(proto)


def boxes_and_score(scale: float) -> np.ndarray:
    """Four columns up to hundreds, and one far smaller that other units make."""
    weights = np.zeros((16, 5))
    weights[:8, :4], weights[8:, 4] = 100 * random(8, 4), scale * random(8)
    return weights


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[n, 5] y", "y = MatMul(h, v)"),
        ("float[n, 1, 5] y", "r = MatMul(h, v) y = Unsqueeze(r, one)"),
    ],
    ids=["rows", "three axes"],
)
def test_a_small_column_counts_on_its_own_scale(outputs: str, body: str) -> None:
    one = {"one": np.array([1], np.int64)} if "one" in body else {}
    before, after = (network(outputs, body, v=boxes_and_score(scale), **one) for scale in (0.05, 0.0))
    assert verify(before, after, latency=False).output_change == pytest.approx(1, abs=0.2)


def test_columns_of_one_kind_share_a_scale() -> None:
    before = network("float[n, 5] y", "y = MatMul(h, v)", v=random(16, 5))
    after = network("float[n, 5] y", "y = MatMul(h, v)", v=random(16, 5) * 1.01)
    assert verify(before, after, latency=False).output_change == pytest.approx(0.01, rel=0.1)


def test_each_output_is_told() -> None:
    outputs, body = "float[n, 4] a, float[n, 1] b", "a = MatMul(h, v) b = MatMul(h, u)"
    before = network(outputs, body, v=100 * random(16, 4), u=random(16, 1))
    after = network(outputs, body, v=100 * random(16, 4), u=2 * random(16, 1))
    found = verify(before, after, latency=False)
    assert found.output_changes == {"a": 0.0, "b": pytest.approx(1, rel=1e-3)} and found.output_change > 0.9


@pytest.mark.parametrize(
    "body",
    [
        "q = MatMul(h, v) z = Sub(q, q) y = Div(z, z)",
        "q = MatMul(h, v) a = Abs(q) s = Sign(a) n = Neg(s) y = Relu(n)",
    ],
    ids=["NaN", "constant"],
)
def test_outputs_that_say_nothing_show_no_change(body: str) -> None:
    before, after = (network("float[n, 4] y", body, v=factor * random(16, 4)) for factor in (1, 3))
    change = verify(before, after, latency=False).output_change
    assert math.isnan(change) and "says anything" in sentence(change)


def test_samples_of_the_user_tell_a_change_that_made_up_inputs_do_not_reach() -> None:
    body = "l = MatMul(h, v) s = ReduceSum<keepdims = 1>(x) c = Greater(s, most) y = Where(c, l, none)"
    numbers = {"most": np.array(1000.0), "none": np.array(0.0)}
    before, after = (network("float[n, 4] y", body, v=k * random(16, 4), **numbers) for k in (1, 1.5))
    assert math.isnan(verify(before, after, latency=False).output_change)
    before, after = (network("float[n, 4] y", body, v=k * random(16, 4), **numbers) for k in (1, 1.5))
    give_samples(before, open_data(before, {"x": np.abs(random(6, 8)) + 500}))
    assert verify(before, after, latency=False).output_change == pytest.approx(0.5, rel=1e-3)
