"""Graphs that benchmarks/random_graphs.py found and that once ended in an error, made small."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import onnxprune
from onnxprune.graph.contrib_shapes import output_shapes
from onnxprune.scoring.elimination import Consumer, eliminate

_HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'


def model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    proto = parser.parse_model(f"{_HEAD} {text}")
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return proto


def calibrated(proto: onnx.ModelProto, shape: tuple[int, ...]) -> onnxprune.Result:
    x = np.random.default_rng(1).standard_normal((16, *shape)).astype(np.float32)
    settings = {"structure": "channels", "sparsity": 0.5, "round_to": 1, "latency": False}
    return onnxprune.prune(proto, calibration={"x": x}, **settings)


def test_units_that_share_columns_of_a_consumer() -> None:
    """As where a value is joined to a sum of itself: once a unit has gone, others have only some of their columns."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((32, 6))
    weight, hessian = rng.standard_normal((1, 4, 6)), rows.T @ rows
    blocks = {unit: np.array([unit, (unit + 1) % 6]) for unit in range(6)}
    cost = eliminate([Consumer(weight, np.linalg.inv(hessian)[None], blocks)], 6)
    removed: list[int] = []
    for unit in np.argsort(cost):  # the cost of a unit is what the error grows by when its last columns go, too
        before = error_without(weight[0], hessian, removed)
        removed = sorted({*removed, *blocks[int(unit)].tolist()})
        assert cost[unit] >= 0.999 * (error_without(weight[0], hessian, removed) - before)
    assert np.isfinite(cost).all() and len(removed) == 6


def error_without(weight: np.ndarray, hessian: np.ndarray, removed: list[int]) -> float:
    """The squared error of the outputs that no choice of the other columns undoes."""
    if not removed:
        return 0.0
    inverse = np.linalg.inv(hessian)[np.ix_(removed, removed)]
    return float(np.trace(weight[:, removed] @ np.linalg.solve(inverse, weight[:, removed].T)))


def test_a_product_whose_rows_lose_units_is_left_as_it_is() -> None:
    """A product along time has a row for each feature: the dense layer has more rows than the pruned one."""
    text = """g (float[N, 5, 8] x) => (float[N, 5, 2] y) {
        a = MatMul(x, w1)  t = Transpose <perm = [0, 2, 1]> (a)  b = MatMul(t, w2)  r = Relu(b)
        c = MatMul(r, w3)  u = Transpose <perm = [0, 2, 1]> (c)  y = MatMul(u, w4) }"""
    result = calibrated(model(text, w1=(8, 8), w2=(5, 6), w3=(6, 5), w4=(8, 2)), (5, 8))
    assert result.figures["sparsity"] > 0.2


def test_the_bias_of_a_fused_attention_is_replaced_by_one_of_its_shape() -> None:
    text = """g (float[N, 5, 8] x) => (float[N, 5, 2] y) {
        a = com.microsoft.Attention <num_heads = 3> (x, w1, b1)  c = MatMul(a, w2)  y = MatMul(c, w3) }"""
    result = calibrated(model(text, w1=(8, 36), b1=(36,), w2=(12, 8), w3=(8, 2)), (5, 8))
    assert result.figures["sparsity"] > 0.2


@pytest.mark.parametrize(
    ("op_type", "attributes"), [("MatMulNBits", {"N": 8, "K": 32}), ("SkipLayerNormalization", {})]
)
def test_a_shape_that_is_unknown_stays_unknown(op_type: str, attributes: dict[str, int]) -> None:
    node = ir.node(op_type, [ir.Value(name="x"), ir.Value(name="w")], attributes, domain="com.microsoft")
    assert all(shape is None for shape in output_shapes(node, [None, (8, 1, 16)]) or [])
