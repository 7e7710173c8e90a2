"""Calibration statistics: what ONNX Runtime sums equals what numpy sums over the activations themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.data.batches import batches
from onnxprune.errors import DataError
from onnxprune.graph.linear import linear_layers
from onnxprune.recovery.solve import Affine, ridge_fit, squared_error
from onnxprune.runtime.statistics import channel_moments, layer_moments, output_error, shadow

from .models_to_recover import (
    CONVOLUTION_SHAPES,
    CONVOLUTIONS,
    MLP,
    MLP_SHAPES,
    PRODUCT_SHAPES,
    PRODUCTS,
    constant,
    correlated,
    network,
)

CASES = [
    (MLP, MLP_SHAPES, (6,)),
    (PRODUCTS, PRODUCT_SHAPES, (5, 6)),
    (CONVOLUTIONS, CONVOLUTION_SHAPES, (4, 9, 9)),
]


def test_sums_of_a_gemm_are_those_of_its_inputs_and_outputs() -> None:
    model = network(MLP, MLP_SHAPES)
    x = correlated(50, (6,))
    layer = linear_layers(model)[0][0]
    folds = layer_moments(shadow(model, model), [layer], {}, batches(model, {"x": x}, 8))["w1"]
    total = folds[0] + folds[1] + folds[2] + folds[3]
    z = x @ constant(model, "w1").T + constant(model, "b1")
    assert total.rows == 50
    np.testing.assert_allclose(total.aa[0], x.T.astype(np.float64) @ x, rtol=1e-4)
    np.testing.assert_allclose(total.az[0], x.T @ z, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(total.a[0], x.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(total.zz[0], (z**2).sum(0), rtol=1e-4)


@pytest.mark.parametrize(("text", "shapes", "shape"), CASES, ids=["gemm", "matmul", "conv"])
def test_regression_on_the_statistics_finds_the_weights_again(text: str, shapes: dict, shape: tuple[int, ...]) -> None:
    """Padding, strides, dilations, groups and transposes are right only if W comes out element by element."""
    model = network(text, shapes)
    x = np.random.default_rng(2).standard_normal((40, *shape)).astype(np.float32)
    layers, refused = linear_layers(model)
    assert not refused
    moments = layer_moments(shadow(model, model), layers, {}, batches(model, {"x": x}, 10), folds=1)
    for layer in layers:
        start = Affine(np.zeros_like(layer.matrix()), np.zeros_like(layer.bias()))
        fit = ridge_fit(moments[layer.name][0], start, layer.matrix() == layer.matrix(), 1e-9, with_bias=True)
        np.testing.assert_allclose(fit.weight, layer.matrix(), atol=2e-2)
        np.testing.assert_allclose(fit.bias, layer.bias(), atol=2e-2)
        exact = squared_error(moments[layer.name][0], Affine(layer.matrix(), layer.bias()))
        assert exact.sum() < 1e-4 * moments[layer.name][0].zz.sum()


def test_large_maps_are_sampled_on_a_grid() -> None:
    model = network(CONVOLUTIONS, CONVOLUTION_SHAPES)
    x = np.ones((4, 4, 9, 9), np.float32)
    layer = linear_layers(model)[0][0]  # its output has 5 x 10 places
    for windows, rows in ((50, 50), (20, 3 * 5), (1, 2)):
        found = layer_moments(shadow(model, model), [layer], {}, batches(model, {"x": x}), folds=1, windows=windows)
        assert found["w1"][0].rows == 4 * rows


def test_channel_sums() -> None:
    model = network(MLP, MLP_SHAPES)
    x = correlated(30, (6,))
    h = np.maximum(x @ constant(model, "w1").T + constant(model, "b1"), 0)
    found = channel_moments(model, [("r", 1), ("x", 1)], batches(model, {"x": x}, 7))[("r", 1)]
    np.testing.assert_allclose(found.mean_square, (h**2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.mean_magnitude, h.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.variance, h.var(0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.zero_share, (h == 0).mean(0))


def test_the_error_of_the_outputs_is_that_of_two_runs() -> None:
    a, b = network(MLP, MLP_SHAPES, seed=0), network(MLP, MLP_SHAPES, seed=5)
    x = correlated(20, (6,))
    y = [runtime.run(runtime.make_session(m), {"x": x})["y"] for m in (a, b)]
    expected = np.square(y[0] - y[1]).sum() / np.square(y[0]).sum()
    assert output_error(shadow(a, b), batches(a, {"x": x}, 6), ["y"]) == pytest.approx(expected, rel=1e-4)


def test_joining_two_models_changes_neither() -> None:
    model = network(MLP, MLP_SHAPES)
    before = ir.to_proto(model).SerializeToString()
    shadow(model, model)
    assert ir.to_proto(model).SerializeToString() == before


def test_models_that_list_their_constants_as_inputs_are_joined() -> None:
    model = network(MLP, MLP_SHAPES)
    model.graph.inputs.extend(model.graph.initializers.values())
    x = correlated(20, (6,))
    assert output_error(shadow(model, model.clone()), batches(model, {"x": x}), ["y"]) == 0.0
    assert [layer.name for layer in linear_layers(model)[0]] == ["w1", "w2"]


def test_a_number_among_the_inputs_holds_for_every_batch() -> None:
    model = network(
        MLP.replace("float[N, 6] x", "float[N, 6] x, float rate").replace("Relu(h)", "Mul(h, rate)"), MLP_SHAPES
    )
    feeds = batches(model, {"x": correlated(5, (6,)), "rate": np.array(2.0, np.float32)}, 2)
    assert [len(f["x"]) for f in feeds] == [2, 2, 1]
    assert all(f["rate"] == 2 for f in feeds)


@pytest.mark.parametrize(("inputs", "words"), [({}, "no array"), ({"x": np.zeros((0, 6), np.float32)}, "fewer")])
def test_inputs_that_do_not_fit_are_refused(inputs: dict, words: str) -> None:
    fixed = network(MLP.replace("N", "4"), MLP_SHAPES)
    with pytest.raises(DataError, match=words):
        batches(fixed, inputs)
