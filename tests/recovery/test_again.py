"""Recovery once more: a second pass changes next to nothing, whatever the first one or a training moved."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.graph.following import dense_to_pruned
from onnxprune.graph.linear import linear_layers
from onnxprune.recovery import METHODS, recover

from .models_to_recover import constant, correlated, cut, network, zeroed

WITH_BIAS = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 6] x) => (float[N, 3] y) {
  h = Gemm<transB = 1, beta = 0.5>(x, w1, b1) r = Relu(h) y = Gemm<transB = 1>(r, w2, b2)
}"""
WITHOUT_BIAS = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"""
BEFORE_BATCHNORM = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 3, 6, 6] x) => (float[N, 3, 6, 6] y) {
  h = Conv(x, w1) n = BatchNormalization(h, scale, shift, mean, var) r = Relu(n)
  c = Conv(r, w2) y = BatchNormalization(c, scale2, shift2, mean2, var2)
}"""
BEFORE_ADD = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 5, 6] x) => (float[N, 5, 3] y) {
  m = MatMul(x, w1) h = Add(b1, m) r = Relu(h) n = MatMul(r, w2) y = Add(n, b2)
}"""
NORMALISED = {"scale": (8,), "shift": (8,), "mean": (8,), "var": (8,)} | dict.fromkeys(
    ("scale2", "shift2", "mean2", "var2"), (3,)
)
CONVOLUTION_SHAPES = {"w1": (8, 3, 1, 1), "w2": (3, 8, 1, 1)} | NORMALISED
CASES = {
    "with a bias": (WITH_BIAS, {"w1": (8, 6), "b1": (8,), "w2": (3, 8), "b2": (3,)}, (6,), 0),
    "without a bias": (WITHOUT_BIAS, {"w1": (6, 8), "w2": (8, 3)}, (6,), 1),
    "before BatchNormalization": (BEFORE_BATCHNORM, CONVOLUTION_SHAPES, (3, 6, 6), 0),
    "before an Add": (BEFORE_ADD, {"w1": (6, 8), "b1": (8,), "w2": (8, 3), "b2": (3,)}, (5, 6), 1),
}  # fmt: skip


def positive(model: ir.Model) -> ir.Model:
    """The model with variances that are positive."""
    for name in ("var", "var2"):
        if name in model.graph.initializers:
            numbers = np.abs(constant(model, name)).astype(np.float32) + 0.5
            model.graph.initializers[name].const_value = ir.Tensor(numbers, name=name)
    return model


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return runtime.run(runtime.make_session(model), {"x": x})["y"].astype(np.float64)


@pytest.mark.parametrize("way", ["weights", "units"])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("case", CASES)
def test_a_second_pass_changes_next_to_nothing(case: str, method: str, way: str) -> None:
    text, shapes, shape, axis = CASES[case]
    dense = positive(network(text, shapes))
    if way == "units":
        pruned, kept = cut(dense, "w1", axis, [1, 4, 6])
    else:
        rng = np.random.default_rng(3)
        pruned, kept = zeroed(dense, {n: rng.random(shapes[n]) < 0.5 for n in ("w1", "w2")}), {}
    x = correlated(240, shape)
    once, twice = pruned.clone(), pruned.clone()
    recover(dense, once, kept, {"x": x}, methods=(method,), batch=20)
    recover(dense, twice, kept, {"x": x}, methods=(method, method), batch=20)
    plain, first, second = (outputs(m, x) for m in (pruned, once, twice))
    assert np.abs(second - first).max() <= 1e-3 * np.abs(first - plain).max()


@pytest.mark.parametrize("case", CASES)
def test_a_bias_is_moved_once_however_often_least_squares_is_run_anew(case: str) -> None:
    """Steps of a run recover the model that the step before recovered."""
    text, shapes, shape, axis = CASES[case]
    dense = positive(network(text, shapes))
    pruned, kept = cut(dense, "w1", axis, [1, 4, 6])
    x = correlated(240, shape)
    plain = outputs(pruned, x)
    recover(dense, pruned, kept, {"x": x}, batch=20)
    first = outputs(pruned, x)
    for _ in range(3):
        recover(dense, pruned, kept, {"x": x}, batch=20)
    assert np.abs(outputs(pruned, x) - first).max() <= 1e-3 * np.abs(first - plain).max()


def test_what_training_did_to_a_batchnormalization_is_seen_in_the_target() -> None:
    """Another scale, shift, mean and variance, and weights that make up for them: the outputs are the dense ones."""
    text, shapes, shape, _ = CASES["before BatchNormalization"]
    dense = positive(network(text, shapes))
    trained = dense.clone()
    changed = {"w1": constant(dense, "w1") * 2, "mean": constant(dense, "mean") * 2 + 0.3}
    changed["var"] = constant(dense, "var") * 4 + 3e-5
    changed["shift"] = constant(dense, "shift") + 0.3 * constant(dense, "scale") / np.sqrt(changed["var"] + 1e-5)
    for name, numbers in changed.items():
        trained.graph.initializers[name].const_value = ir.Tensor(numbers.astype(np.float32), name=name)
    x = correlated(240, shape)
    np.testing.assert_allclose(outputs(trained, x), outputs(dense, x), atol=1e-4)
    done = recover(dense, trained, {}, {"x": x}, trained=True, batch=20)
    assert max(s.before for s in done.steps) < 3e-6  # what sums in float32 leave of a difference
    np.testing.assert_allclose(outputs(trained, x), outputs(dense, x), atol=1e-4)


def test_where_layers_are_compared_by_hand() -> None:
    """2 (z_p - 1) / 1 + 5 = 4 (z_d + 1) / 2 + 3: z_p = z_d + 1, at a BatchNormalization with epsilon 0."""
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) {
      h = Conv(x, w) y = BatchNormalization<epsilon = 0.0>(h, scale, shift, mean, var)
    }"""
    shapes = {"w": (1, 1, 1, 1)} | dict.fromkeys(("scale", "shift", "mean", "var"), (1,))
    dense, pruned = network(text, shapes), network(text, shapes)
    for model, numbers in ((dense, (4.0, 3.0, -1.0, 4.0)), (pruned, (2.0, 5.0, 1.0, 1.0))):
        for name, number in zip(("scale", "shift", "mean", "var"), numbers, strict=True):
            model.graph.initializers[name].const_value = ir.Tensor(np.array([number], np.float32), name=name)
    factor, offset = dense_to_pruned(linear_layers(dense)[0][0], linear_layers(pruned)[0][0], None)
    assert factor.item() == pytest.approx(1)
    assert offset.item() == pytest.approx((4 * 1 / 2 + 3 - 5) / 2 + 1)
