"""Neuron merging: factors by hand, what may stand between units and their consumers, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.recovery import recover
from onnxprune.recovery.merging import LAMBDA, best_partner, merge_units
from onnxprune.recovery.producers import Units

from .models_to_recover import MLP, MLP_SHAPES, constant, cut, network, zeroed

CONVOLUTION = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 2, 6, 6] x) => (float[N, 3] y) {
  c = Conv(x, w1)
  n = BatchNormalization(c, scale, shift, mean, var)
  r = Relu(n)
  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
  f = Flatten(p)
  y = Gemm<transB = 1>(f, w2)
}"""
SHAPES = {"w1": (4, 2, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "var": (4,), "w2": (3, 16)}


def numbers(model: ir.Model, name: str, array: np.ndarray) -> None:
    model.graph.initializers[name].const_value = ir.Tensor(array.astype(np.float32), name=name)


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(runtime.run(runtime.make_session(model), {"x": x})["y"])


def units(filters: list[list[float]], shifts: list[float], batchnorm: bool = False) -> Units:
    columns = tuple(np.array([i]) for i in range(len(shifts)))
    return Units(np.array(filters), np.array(shifts), columns, batchnorm)


def test_the_partner_is_the_unit_of_the_largest_cosine_and_the_factor_the_ratio_of_norms() -> None:
    found = units([[3.0, 4.0], [1.0, 0.0], [0.6, 0.8]], [0.0, 0.0, 0.0])
    assert best_partner(found, 0, np.array([1, 2])) == (2, pytest.approx(5.0))


def test_the_bias_counts_as_one_more_weight() -> None:
    """(3, 4) and (3, -4): cosine -7/25; (3, 4) and (0, 1): 4/5."""
    found = units([[3.0], [3.0], [0.0]], [4.0, -4.0, 1.0])
    assert best_partner(found, 0, np.array([1, 2])) == (2, pytest.approx(5.0))


def test_a_unit_that_is_like_none_is_not_merged() -> None:
    assert best_partner(units([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]), 0, np.array([1])) is None


def test_behind_batchnorm_the_shifts_decide_between_units_of_like_direction() -> None:
    """Cosines 1 and 0.96; |c_i / s - c_j| 8 and 0, which become 1 and 0: .15 against .85 * .04."""
    found = units([[1.0, 0.0], [1.0, 0.0], [0.96, 0.28]], [0.0, 8.0, 0.0], batchnorm=True)
    assert 1 - LAMBDA > LAMBDA * 0.04
    assert best_partner(found, 0, np.array([1, 2])) == (2, pytest.approx(1.0))


def test_a_copy_takes_over_exactly() -> None:
    """Unit 5 is twice unit 2: without it nothing changes, once w2's column 2 has twice its column 5 beside its own."""
    dense = network(MLP, MLP_SHAPES)
    w1, b1 = constant(dense, "w1"), constant(dense, "b1")
    w1[5], b1[5] = 2 * w1[2], 2 * b1[2]
    numbers(dense, "w1", w1)
    numbers(dense, "b1", b1)
    pruned, kept = cut(dense, "w1", 0, [5])
    x = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    assert np.abs(outputs(pruned, x) - outputs(dense, x)).max() > 0.1
    done = recover(dense, pruned, kept, {}, methods=("merge",))
    np.testing.assert_allclose(outputs(pruned, x), outputs(dense, x), atol=1e-4)
    assert [(s.layer, s.detail, s.before) for s in done.steps] == [("w2", "1 of 1 units merged", None)]
    recover(dense, pruned, kept, {}, methods=("merge",))  # once more adds nothing
    np.testing.assert_allclose(outputs(pruned, x), outputs(dense, x), atol=1e-4)


def test_batchnorm_pooling_and_flattening_are_seen_through() -> None:
    dense = network(CONVOLUTION, SHAPES)
    w1 = constant(dense, "w1")
    w1[3] = 0.5 * w1[0]
    numbers(dense, "w1", w1)
    for name in ("scale", "shift", "mean", "var"):
        array = constant(dense, name)
        array[3] = array[0]
        numbers(dense, name, array)
    shift, scale, mean, var = (constant(dense, n) for n in ("shift", "scale", "mean", "var"))
    factor = scale[0] / np.sqrt(var[0] + 1e-5)  # c_3 = c_0 / 2, so that unit 3 is half of unit 0
    shift[3] = 0.5 * (shift[0] - mean[0] * factor) + mean[3] * factor
    numbers(dense, "shift", shift)
    pruned, kept = cut(dense, "w1", 0, [3])
    assert merge_units(dense, pruned, kept).merged == {"w2": 1}
    x = np.random.default_rng(0).standard_normal((5, 2, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(outputs(pruned, x), outputs(dense, x), atol=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Relu(h)", "Sigmoid(h)", "Sigmoid before it does not only scale"),
        ("Relu(h)", "Add(h, h)", "Add before it does not only scale"),
    ],
)
def test_what_does_not_scale_is_left_alone_and_said(old: str, new: str, reason: str) -> None:
    dense = network(MLP.replace(old, new), MLP_SHAPES)
    pruned, kept = cut(dense, "w1", 0, [5])
    before = constant(pruned, "w2")
    done = recover(dense, pruned, kept, {}, methods=("merge",))
    assert reason in done.skipped["w2"]
    assert (constant(pruned, "w2") == before).all()
    assert not done.steps


def test_zeros_stay() -> None:
    dense = network(MLP, MLP_SHAPES)
    mask = np.abs(constant(dense, "w2")) > 0.7
    pruned, kept = cut(zeroed(dense, {"w2": mask}), "w1", 0, [5, 6])
    merge_units(dense, pruned, kept)
    assert ((constant(pruned, "w2") != 0) == mask[:, [0, 1, 2, 3, 4, 7]]).all()
