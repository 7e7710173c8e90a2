"""Where positions of heads went, queries make up for what the keys that are left can tell of the others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.recovery import attention, recover
from onnxprune.recovery import reconstruct as reconstruct_module
from onnxprune.runtime.stream.gather import Batches

from .models_to_recover import constant, correlated, cut, network

ATTENTION = """<ir_version: 8, opset_import: ["": 17]>
attention (float[N, 5, 6] x) => (float[N, 5, 3] y)
<int64[4] heads = {0, 0, HEADS, 4}, int64[4] groups = {0, 0, 2, 4}, int64[3] flat = {0, 0, -1}, float half = {0.5},
 int64[5] wide = {0, 0, 2, 1, 4}, int64[5] more = {1, 1, 1, SHARED, 1}> {
  q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads) q3 = Transpose<perm = [0, 2, 1, 3]>(q2) q = Mul(q3, half)
  k0 = MatMul(x, wk) k1 = Add(bk, k0) KEYS
  v0 = MatMul(x, wv) v1 = Reshape(v0, heads) v = Transpose<perm = [0, 2, 1, 3]>(v1)
  s = MatMul(q, k) p = Softmax<axis = -1>(s) o = MatMul(p, v) o1 = Transpose<perm = [0, 2, 1, 3]>(o)
  o2 = Reshape(o1, flat) y = MatMul(o2, wo)
}"""
PLAIN = "k2 = Reshape(k1, groups) k = Transpose<perm = [0, 2, 3, 1]>(k2)"
REPEATED = """k2 = Reshape(k1, wide) k3 = Tile(k2, more) k4 = Reshape(k3, heads)
  k = Transpose<perm = [0, 2, 3, 1]>(k4)"""


def made(heads: int = 2, keys: str = PLAIN) -> ir.Model:
    """An attention whose keys have a position, 1 of each head, that two others tell exactly."""
    text = ATTENTION.replace("KEYS", keys).replace("HEADS", str(heads)).replace("SHARED", str(heads // 2))
    shapes = {"wq": (6, 4 * heads), "bq": (4 * heads,), "wk": (6, 8), "bk": (8,), "wv": (6, 4 * heads),
              "wo": (4 * heads, 3)}  # fmt: skip
    model = network(text, shapes)
    for name, factors in (("wk", (0.5, -1.5)), ("bk", (0.2, 0.3))):
        array = constant(model, name).astype(np.float32)
        for start in (0, 4):
            array[..., start + 1] = factors[0] * array[..., start] + factors[1] * array[..., start + 2]
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def error(dense: ir.Model, pruned: ir.Model, x: np.ndarray) -> float:
    a, b = (runtime.run(runtime.make_session(model), {"x": x})["y"] for model in (dense, pruned))
    return float(np.square(a - b).sum() / np.square(a).sum())


@pytest.mark.parametrize(("heads", "keys"), [(2, PLAIN), (4, REPEATED)])
def test_a_position_that_others_tell_is_made_up_for(heads: int, keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bias of the keys lies elsewhere than their weights, but what is the same for all keys does not count."""
    dense, x = made(heads, keys), correlated(256, (5, 6))
    pruned, kept = cut(dense, "wk", 1, [1, 5])
    assert len(kept["wq"][1]) == 3 * heads
    without = pruned.clone()
    recover(dense, pruned, kept, {"x": x})
    monkeypatch.setattr(reconstruct_module, "query_mixes", lambda *_: {})
    recover(dense, without, kept, {"x": x})
    assert error(dense, pruned, x) < 1e-5 < 1e-4 < error(dense, without, x)


def test_what_is_turned_by_its_place_is_left_alone() -> None:
    """A product of keys that were changed behind their layer, position by position, as a rotary embedding does."""
    turned = "k2 = Reshape(k1, groups) k3 = Mul(k2, places) k = Transpose<perm = [0, 2, 3, 1]>(k3)"
    dense = made(2, turned.replace("k3 = Mul(k2, places)", "k3 = Sin(k2)"))
    _, kept = cut(dense, "wk", 1, [1, 5])
    samples = Batches.of(dense, {"x": correlated(64, (5, 6))}, 32)
    assert attention.query_mixes(dense, kept, samples, {"wq"}) == {}


def test_nothing_is_run_for_layers_that_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = made()
    _, kept = cut(dense, "wk", 1, [1, 5])
    samples = Batches.of(dense, {"x": correlated(64, (5, 6))}, 32)
    assert set(attention.query_mixes(dense, kept, samples, {"wq", "wo"})) == {"wq"}
    monkeypatch.delattr(attention, "Cursor")
    assert attention.query_mixes(dense, kept, samples, {"wo"}) == {}


def test_means_and_padding_do_not_count() -> None:
    """By hand: two tokens of one sample, a third that is padding."""
    keys = np.array([1.0, 3.0, 50.0]).reshape(1, 3, 1, 1) * np.array([1.0, 2.0])
    tokens = np.array([[True, True, False]])
    np.testing.assert_allclose(attention._covariance(keys, tokens), [[[2, 4], [4, 8]]])
