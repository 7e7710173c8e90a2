"""The streaming pass: where networks are cut, that the rows are those the weights see, and what padding is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.graph.linear import linear_layers
from onnxprune.recovery.solve import Affine, ridge_fit
from onnxprune.runtime.statistics import Moments, channel_moments
from onnxprune.runtime.stream import gather as gather_module
from onnxprune.runtime.stream import store
from onnxprune.runtime.stream import sums as sums_module
from onnxprune.runtime.stream.channels import streamed_channel_moments
from onnxprune.runtime.stream.cursor import Cursor
from onnxprune.runtime.stream.effects import Effects, Reference, kind_of
from onnxprune.runtime.stream.gather import Batches, gather
from onnxprune.runtime.stream.padding import padding_mask
from onnxprune.runtime.stream.sums import RowSums, rows_read

from .models_to_recover import CONVOLUTION_SHAPES, CONVOLUTIONS, MLP, MLP_SHAPES, PRODUCT_SHAPES, PRODUCTS, network

CASES = [
    (MLP, MLP_SHAPES, (6,)),
    (PRODUCTS, PRODUCT_SHAPES, (5, 6)),
    (CONVOLUTIONS, CONVOLUTION_SHAPES, (4, 9, 9)),
]
RESIDUAL = """<ir_version: 8, opset_import: ["": 13]>
residual (float[N, 6] x) => (float[N, 3] y) {
  s = MatMul(x, w0)
  a1 = MatMul(s, w1) b1 = Relu(a1) c1 = MatMul(b1, w2) s1 = Add(s, c1)
  a2 = MatMul(s1, w3) b2 = Relu(a2) c2 = MatMul(b2, w4) s2 = Add(s1, c2)
  y = MatMul(s2, w5)
}"""
RESIDUAL_SHAPES = {"w0": (6, 8), "w1": (8, 9), "w2": (9, 8), "w3": (8, 9), "w4": (9, 8), "w5": (8, 3)}
POOLED = """<ir_version: 8, opset_import: ["": 13]>
pooled (int64[N, T] ids, int64[N, T] mask, int64[N, T] kind) => (float[N, 4] y) {
  e = Gather(table, ids) k = Gather(kinds, kind) x = Add(e, k) h = MatMul(x, w)
  m = Cast<to = 1>(mask) axis = Constant<value_ints = [2]>() u = Unsqueeze(m, axis) z = Mul(h, u)
  one = Constant<value_ints = [1]>() y = ReduceSum<keepdims = 0>(z, one)
}"""
POOLED_SHAPES = {"table": (20, 5), "kinds": (2, 5), "w": (5, 4)}


def test_a_network_is_cut_at_the_sums_of_its_residual_blocks() -> None:
    model = network(RESIDUAL, RESIDUAL_SHAPES)
    samples = Batches.of(model, {"x": np.ones((4, 6), np.float32)})
    assert [sorted(block.live) for block in samples.blocks(model)] == [["s"], ["s1"], ["s2"], ["y"]]


def test_a_cursor_gives_what_the_whole_model_gives() -> None:
    model = network(RESIDUAL, RESIDUAL_SHAPES)
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    samples = Batches.of(model, {"x": x}, 4)
    cursor = Cursor(model, samples.blocks(model), samples.feeds)
    for _ in cursor.blocks:
        cursor.skip()
    found = np.concatenate([values["y"] for values in cursor.state])
    np.testing.assert_allclose(found, runtime.run(runtime.make_session(model), {"x": x})["y"], rtol=1e-5)


@pytest.mark.parametrize(("text", "shapes", "shape"), CASES, ids=["gemm", "matmul", "conv"])
def test_regression_on_the_rows_finds_the_weights_again(text: str, shapes: dict, shape: tuple[int, ...]) -> None:
    """Padding, strides, dilations, groups and transposes are right only if W comes out element by element."""
    model = network(text, shapes)
    x = np.random.default_rng(2).standard_normal((40, *shape)).astype(np.float32)
    samples = Batches.of(model, {"x": x}, 10)
    cursor = Cursor(model, samples.blocks(model), samples.feeds)
    for block in cursor.blocks:
        inside = [layer for layer in linear_layers(model)[0] if layer.node in block.nodes]
        sums = RowSums()
        names = [str(v.name) for layer in inside for v in (layer.data, layer.output)]
        for number, values in enumerate(cursor.advance(names)):
            for layer in inside:
                data = values[str(layer.data.name)]
                grid = samples.grid(layer, data, number)
                z = samples.outputs(layer, values[str(layer.output.name)], grid, number)
                a = samples.inputs(layer, data, grid, number)
                sums.add_inputs(rows_read(layer), a)
                sums.add_targets(layer.name, a, z)
        for layer in inside:
            start = Affine(np.zeros_like(layer.matrix()), np.zeros_like(layer.bias()))
            moments = sums.moments(rows_read(layer), layer.name)
            fit = ridge_fit(moments, start, layer.matrix() == layer.matrix(), 1e-9, with_bias=True)
            np.testing.assert_allclose(fit.weight, layer.matrix(), atol=2e-2)
            np.testing.assert_allclose(fit.bias, layer.bias(), atol=2e-2)


def test_gram_matrices_are_those_of_what_layers_read() -> None:
    model = network(RESIDUAL, RESIDUAL_SHAPES)
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    found = {
        name: m
        for part in gather(model, linear_layers(model)[0], Batches.of(model, {"x": x}))
        for name, m in part.items()
    }
    assert list(found) == ["w0", "w1", "w2", "w3", "w4", "w5"]
    np.testing.assert_allclose(found["w0"].aa[0], x.T @ x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["w0"].a[0], x.sum(axis=0), rtol=1e-5, atol=1e-5)


def padded() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, 12)
    mask = (np.arange(9) < lengths[:, None]).astype(np.int64)
    return {"ids": rng.integers(1, 20, (12, 9)) * mask, "mask": mask, "kind": rng.integers(0, 2, (12, 9))}


def test_padding_is_found_by_what_does_not_move_the_outputs() -> None:
    """`kind` holds zeros and ones as well, and what lies under its zeros counts."""
    model = network(POOLED, POOLED_SHAPES)
    assert padding_mask(model, [padded()]) == "mask"
    assert padding_mask(model, [{**padded(), "mask": np.ones((12, 9), np.int64)}]) is None


def test_padding_is_cut_off_and_left_out_of_the_rows() -> None:
    model = network(POOLED, POOLED_SHAPES)
    inputs = padded()
    samples = Batches.of(model, inputs, 4)
    assert [feed["ids"].shape[1] for feed in samples.feeds] == sorted(feed["ids"].shape[1] for feed in samples.feeds)
    assert samples.feeds[0]["ids"].shape[1] < 9
    ((_, found),) = next(iter(gather(model, linear_layers(model)[0], samples))).items()
    assert found.rows == inputs["mask"].sum()


def test_effects_are_those_of_the_whole_model_with_other_constants() -> None:
    model = network(RESIDUAL, RESIDUAL_SHAPES)
    x = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    effects = Effects(model, Batches.of(model, {"x": x}))
    other = np.zeros((9, 8), np.float32)
    changed = model.clone()
    changed.graph.initializers["w4"].const_value = ir.Tensor(other, name="w4")
    expected = runtime.run(runtime.make_session(changed), {"x": x})["y"]
    np.testing.assert_allclose(effects.outputs({"w4": other})[0]["y"], expected, rtol=1e-5)
    assert effects.outputs({}) is effects.dense


def test_classes_are_compared_by_kl_and_values_by_relative_squares() -> None:
    """KL of (.9, .1) and (.5, .5) is .9 log 1.8 + .1 log .2; of values 1 / (1 + 1)."""
    p, q = np.array([[0.9, 0.1], [0.1, 0.9]]), np.full((2, 2), 0.5)
    expected = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    assert kind_of(p) == "probabilities" and kind_of(8 * p) == "logits" and kind_of(p[..., None]) == "values"
    assert Reference([{"y": p}]).divergence([{"y": q}]) == pytest.approx(expected)
    assert Reference([{"y": np.log(p)}]).divergence([{"y": np.log(q)}]) == pytest.approx(expected)
    a, b = np.array([[[0.0]], [[2.0]]]), np.array([[[1.0]], [[2.0]]])
    assert Reference([{"y": a}]).divergence([{"y": b}]) == pytest.approx(0.5)


def test_effects_are_divergences_with_logits_divided_by_the_temperature() -> None:
    """Logits 3 log(.9) and 3 log(.1) at temperature 3 are (.9, .1); KL to (.5, .5) is .9 log 1.8 + .1 log .2."""
    p, q = np.array([[0.9, 0.1], [0.1, 0.9]]), np.full((2, 2), 0.5)
    expected = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    assert Reference([{"y": 3 * np.log(p)}]).effect([{"y": 3 * np.log(q)}]) == pytest.approx(expected)
    cubed = p**3 / (p**3).sum(axis=1, keepdims=True)  # probabilities are divided as their logits are
    assert Reference([{"y": cubed}]).effect([{"y": q}]) == pytest.approx(expected)
    a, b = np.array([[[0.0]], [[2.0]]]), np.array([[[1.0]], [[2.0]]])
    assert Reference([{"y": a}]).effect([{"y": b}]) == pytest.approx(0.5)


CAUSAL = """<ir_version: 8, opset_import: ["": 13]>
causal (int64[N, T] ids) => (float[N, T, 3] y) {
  shape = Shape(ids) length = Gather(shape, one) places = Range(zero, length, one)
  first = Constant<value_ints = [1]>() rows = Unsqueeze(places, first) hidden = Greater(places, rows)
  mask = Where(hidden, low, none)
  e = Gather(table, ids)
  q1 = MatMul(e, w1) k1 = Transpose<perm = [0, 2, 1]>(e) p1 = MatMul(q1, k1) m1 = Add(p1, mask) c1 = Softmax(m1)
  o1 = MatMul(c1, e) s1 = Add(e, o1)
  q2 = MatMul(s1, w2) k2 = Transpose<perm = [0, 2, 1]>(s1) p2 = MatMul(q2, k2) m2 = Add(p2, mask) c2 = Softmax(m2)
  o2 = MatMul(c2, s1) s2 = Add(s1, o2)
  y = MatMul(s2, w3)
}"""
CAUSAL_SHAPES = {"table": (20, 5), "w1": (5, 5), "w2": (5, 5), "w3": (5, 3)}


def causal() -> ir.Model:
    model = network(CAUSAL, CAUSAL_SHAPES)
    small = {"zero": np.int64(0), "one": np.int64(1), "low": np.float32(-1e4), "none": np.float32(0)}
    for name, number in small.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.Tensor(np.asarray(number), name=name)
        model.graph.register_initializer(value)
    return model


def test_a_mask_of_the_length_that_inference_leaves_open_does_not_keep_a_network_from_being_cut() -> None:
    model = causal()
    samples = Batches.of(model, {"ids": np.zeros((2, 7), np.int64)})
    assert samples.sizes(model)["mask"] == 49
    lives = [sorted(block.live) for block in samples.blocks(model)]
    assert lives[-3:] == [["mask", "s1"], ["s2"], ["y"]]


@pytest.mark.parametrize("on_disk", [False, True])
def test_sums_by_channel_are_those_of_the_whole_network(on_disk: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_disk:
        monkeypatch.setattr(store, "IN_MEMORY", 0)
        monkeypatch.setattr(store, "SMALLEST", 0)
    model = causal()
    ids = np.random.default_rng(0).integers(0, 20, (10, 7))
    feeds = Batches.of(model, {"ids": ids}, 4).feeds
    places = [("e", 2), ("s1", 2), ("c2", 1), ("nowhere", 1), ("s2", 7)]
    expected, found = channel_moments(model, places, feeds), streamed_channel_moments(model, places, feeds)
    assert list(found) == places[:3]
    for place, moments in found.items():
        for part in ("count", "total", "squares", "magnitudes", "zeros"):
            np.testing.assert_array_equal(getattr(moments, part), getattr(expected[place], part))


def test_batches_are_smaller_where_values_inside_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    model = causal()
    samples = {"ids": np.zeros((12, 7), np.int64)}
    assert [len(f["ids"]) for f in Batches.of(model, samples, 8).feeds] == [8, 4]
    monkeypatch.setattr(gather_module, "LARGEST", 4 * 7 * 7 * 3)  # products of three samples
    assert [len(f["ids"]) for f in Batches.of(model, samples, 8).feeds] == [3, 3, 3, 3]
    monkeypatch.setattr(gather_module, "LARGEST", 1)
    assert {len(f["ids"]) for f in Batches.of(model, samples, 8).feeds} == {1}


def test_products_with_very_wide_targets_are_added_up_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    batches = [(rng.standard_normal((1, 50, 64), np.float32), rng.standard_normal((1, 50, 700), np.float32))
               for _ in range(3)]  # fmt: skip

    def summed() -> Moments:
        sums = RowSums(store.Store(0))
        for a, z in batches:
            sums.add_inputs("x", a)
            sums.add_targets("layer", a, z)
        return sums.moments("x", "layer")

    plain = summed()
    monkeypatch.setattr(sums_module, "_AT_ONCE", 64 * 256)
    wide = summed()
    assert isinstance(wide.az, np.memmap) and not isinstance(plain.az, np.memmap)
    for name in ("a", "z", "aa", "az", "zz"):
        np.testing.assert_allclose(getattr(wide, name), getattr(plain, name), rtol=1e-5, atol=1e-4)
