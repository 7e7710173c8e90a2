"""Bias correction from what BatchNormalization knows: means by hand, and a network that keeps its mean output."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.recovery import recover
from onnxprune.recovery.expected import clipped_mean

from .models_to_recover import MLP, MLP_SHAPES, constant, cut, network

NORMALISED = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 4, 5, 5] x) => (float[N, 3] y) {
  n = BatchNormalization(x, scale, shift, mean, var)
  r = Relu(n)
  c = Conv(r, w, b)
  p = GlobalAveragePool(c)
  f = Flatten(p)
  y = Gemm<transB = 1>(f, v)
}"""
SHAPES = {"scale": (4,), "shift": (4,), "mean": (4,), "var": (4,), "w": (5, 4, 2, 2), "b": (5,), "v": (3, 5)}


@pytest.mark.parametrize(
    ("mean", "deviation", "low", "high", "expected"),
    [
        (0.0, 1.0, 0.0, np.inf, 1 / np.sqrt(2 * np.pi)),
        (2.0, 0.0, 0.0, np.inf, 2.0),
        (-2.0, 0.0, 0.0, np.inf, 0.0),
        (3.0, 1.0, -np.inf, np.inf, 3.0),
        (3.0, 5.0, 0.0, 6.0, 3.0),  # by symmetry
    ],
)
def test_means_of_what_is_cut_off(mean: float, deviation: float, low: float, high: float, expected: float) -> None:
    found = clipped_mean(np.array([mean]), np.array([deviation]), low, high)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_without_weights_the_mean_stays_where_it_was() -> None:
    """Inputs are what BatchNormalization takes them for: the mean output comes back, without any data."""
    dense = network(NORMALISED, SHAPES)
    rng = np.random.default_rng(0)
    mean, var = constant(dense, "mean"), constant(dense, "var")
    x = rng.standard_normal((2000, 4, 5, 5)) * np.sqrt(var)[:, None, None] + mean[:, None, None]
    pruned = dense.clone()
    weight = constant(dense, "w")
    weight[:, 1] = 0
    pruned.graph.initializers["w"].const_value = ir.Tensor(weight.astype(np.float32), name="w")
    y, plain = (run(m, x) for m in (dense, pruned))
    done = recover(dense, pruned, {}, {}, methods=("expected-bias",))
    assert [s.layer for s in done.steps] == ["w"]
    assert np.abs(run(pruned, x) - y).max() < 0.03 * np.abs(plain - y).max()


def test_without_batchnorm_nothing_is_known() -> None:
    dense = network(MLP, MLP_SHAPES)
    pruned, kept = cut(dense, "w1", 0, [5])
    done = recover(dense, pruned, kept, {}, methods=("expected-bias",))
    assert "no BatchNormalization" in done.skipped["w2"]
    assert not done.steps


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    found = runtime.run(runtime.make_session(model), {"x": x.astype(np.float32)})["y"]
    return np.asarray(found).mean(0)
