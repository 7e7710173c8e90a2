"""Operators of opset 6 and older, lifted: what the attributes `broadcast` and `axis` said is what ONNX Runtime does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import ModelError, model_io
from onnxprune.runtime import make_session, run

DRAW = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return (np.abs(DRAW.standard_normal(shape)) + 0.5).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto], shape: list[Any], weights: dict[str, np.ndarray], opset: int = 6, out: Any = None
) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", out or TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "old", [x, *info], [y], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 3
    return made


def result(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = make_session(model_io.load_any(proto), optimize="off")
    return next(iter(run(session, {"x": x}).values()))


@pytest.mark.parametrize("opset", [1, 5, 6])
@pytest.mark.parametrize("batch", [1, 2, "N"])
@pytest.mark.parametrize(
    ("shape", "axis", "seen"),
    [((3,), 1, (3, 1, 1)), ((3, 4), 1, (3, 4, 1)), ((4, 5), 2, (4, 5)), ((3,), -3, (3, 1, 1)), ((5,), None, (5,))],
)
def test_an_operand_lies_along_the_axes_it_names(
    opset: int, batch: int | str, shape: tuple[int, ...], axis: int | None, seen: tuple[int, ...]
) -> None:
    settings = {"broadcast": 1} | ({} if axis is None else {"axis": axis})
    b, x = drawn(*shape), drawn(1 if batch == 1 else 2, 3, 4, 5)
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Mul", ["r", "b"], ["y"], **settings)]
    got = result(model(nodes, [batch, 3, 4, 5], {"b": b}, opset), x)
    assert got.shape == x.shape
    np.testing.assert_allclose(got, x * b.reshape(seen), rtol=1e-6)


@pytest.mark.parametrize("operator", ["Greater", "Less"])
def test_comparisons_lie_along_their_axis_too(operator: str) -> None:
    b, x = drawn(3), drawn(2, 3, 4)
    node = helper.make_node(operator, ["x", "b"], ["y"], broadcast=1, axis=1)
    got = result(model([node], ["N", 3, 4], {"b": b}, out=TensorProto.BOOL), x)
    compare = np.greater if operator == "Greater" else np.less
    np.testing.assert_array_equal(got, compare(x, b[:, None]))


def test_a_computed_operand_and_two_readers_of_one_bias() -> None:
    b, x = drawn(3), drawn(2, 3, 3)
    nodes = [
        helper.make_node("Neg", ["b"], ["b_moved"], name="b_moved_1"),  # the names that the lift would take first
        helper.make_node("Add", ["x", "b"], ["first"], broadcast=1, axis=1),
        helper.make_node("Div", ["first", "b"], ["second"], broadcast=1, axis=2),
        helper.make_node("Sub", ["second", "b_moved"], ["y"], broadcast=1, axis=1),
    ]
    got = result(model(nodes, ["N", 3, 3], {"b": b}), x)
    np.testing.assert_allclose(got, (x + b[:, None]) / b + b[:, None], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 3, 3)])
@pytest.mark.parametrize("slopes", [1, 3])
def test_a_slope_belongs_to_a_channel(shape: tuple[int, ...], slopes: int) -> None:
    slope, x = drawn(slopes), DRAW.standard_normal(shape).astype(np.float32)
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["p"]), helper.make_node("Dropout", ["p"], ["y"], is_test=1)]
    got = result(model(nodes, ["N", *shape[1:]], {"slope": slope}), x)
    seen = slope.reshape(1, slopes, *[1] * (len(shape) - 2))
    np.testing.assert_allclose(got, np.where(x < 0, x * seen, x), rtol=1e-6)


def test_gemm_batch_normalisation_and_upsample() -> None:
    w, c, x = drawn(12, 4), drawn(4), drawn(2, 3, 2, 2)
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "t", "m", "v"], ["n"], is_test=1, epsilon=0.0),
        helper.make_node("Upsample", ["n"], ["u"], height_scale=2.0, width_scale=1.0, mode="nearest"),
        helper.make_node("MaxPool", ["u"], ["p"], kernel_shape=[2, 1], strides=[2, 1]),
        helper.make_node("Reshape", ["p", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "c"], ["y"], broadcast=1),
    ]
    weights = {"w": w, "c": c, "s": drawn(3), "t": drawn(3), "m": drawn(3), "v": drawn(3)}
    proto = model(nodes, ["N", 3, 2, 2], weights)
    shape = numpy_helper.from_array(np.array([0, -1]), "shape")
    proto.graph.initializer.append(shape)
    proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
    for node in proto.graph.node:
        if node.op_type == "Upsample":  # opset 6 still has the form of opset 1
            assert [a.name for a in node.attribute][:1] == ["height_scale"]
    s, t, m, v = (weights[k].reshape(3, 1, 1) for k in "stmv")
    normal = (x - m) / np.sqrt(v) * s + t
    np.testing.assert_allclose(result(proto, x), normal.reshape(2, -1) @ w + c, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_lifted_is_said() -> None:
    slice_of_unknown_rank = helper.make_node("Reshape", ["x", "n"], ["r"])
    add = helper.make_node("Add", ["r", "b"], ["y"], name="bias", broadcast=1, axis=1)
    proto = model([slice_of_unknown_rank, add], ["N", 3, 4], {"b": drawn(3)})
    proto.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, ["K"]))
    with pytest.raises(ModelError, match=r"'bias' \(Add\).*number of axes of 'r' is unknown"):
        model_io.load_any(proto)
