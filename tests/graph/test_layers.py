"""The axes of a weight behind whatever stands between it and its operator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxprune import model_io
from onnxprune.graph.layers import MatrixAxes, channel_axis, matrix_axes
from onnxprune.passes import Normalise
from onnxprune.structure.analysis import analyse
from onnxprune.structure.weights import Weight, prunable_weights

TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[N, {data}] x) => (float[{out}] y) {{ {nodes} }}"""


def only_weight(nodes: str, shape: tuple[int, ...], data: str = "4", out: str = "N, 6", **more: np.ndarray) -> Weight:
    proto = onnx.parser.parse_model(TEXT.format(nodes=nodes, data=data, out=out))
    arrays = {"w": np.ones(shape, np.float32), **more}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    model = model_io.load_any(proto)
    Normalise()(model)
    return next(w for w in prunable_weights(analyse(model)) if w.name == "w")


@pytest.mark.parametrize(
    ("nodes", "shape", "expected"),
    [
        ("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", (6, 4), MatrixAxes(1, 0)),
        ("t = Cast<to = 1>(w) u = Transpose<perm = [1, 0]>(t) y = Gemm<transB = 1>(x, u)", (4, 6), MatrixAxes(0, 1)),
        ("i = Constant<value_ints = [0]>() t = Squeeze(w, i) y = MatMul(x, t)", (1, 4, 6), MatrixAxes(1, 2)),
        ("i = Constant<value_ints = [4, -1]>() t = Reshape(w, i) y = MatMul(x, t)", (4, 1, 6), MatrixAxes(0, 2)),
        ("t = Transpose<perm = [1, 0]>(x) u = MatMul(w, t) y = Transpose<perm = [1, 0]>(u)", (6, 4), MatrixAxes(1, 0)),
        ("y = Gemm(x, w)", (4, 6), MatrixAxes(0, 1)),
    ],
)
def test_axes_behind_views(nodes: str, shape: tuple[int, ...], expected: MatrixAxes) -> None:
    weight = only_weight(nodes, shape)
    assert matrix_axes(weight.value, weight.node, weight.shape) == expected
    assert channel_axis(weight.value) == expected.output


def test_axes_that_are_merged_are_not_known() -> None:
    weight = only_weight("i = Constant<value_ints = [4, 6]>() t = Reshape(w, i) y = MatMul(x, t)", (2, 12))
    assert matrix_axes(weight.value, weight.node, weight.shape) is None


def test_groups_of_a_transposed_convolution_lie_on_its_reduction_axis() -> None:
    weight = only_weight("y = ConvTranspose<group = 4>(x, w)", (8, 3, 2, 2), data="8, 5, 5", out="N, 12, 6, 6")
    axes = matrix_axes(weight.value, weight.node)
    assert axes == MatrixAxes(0, 1, groups=4, grouped=0)
    assert axes is not None and axes.summed(weight.shape) == 2


def test_experts_that_a_router_picks_are_weights() -> None:
    """The picks are known only while the model runs; an embedding, whose rows are vectors, is none."""
    nodes = """i = Constant<value_ints = [1]>() s = MatMul(x, router) k = ArgMax<axis = 1, keepdims = 0>(s)
        t = Gather(w, k) r = Unsqueeze(x, i) h = MatMul(r, t) y = Squeeze(h, i)"""
    weight = only_weight(nodes, (3, 4, 6), router=np.ones((4, 3), np.float32))
    assert weight.node.op_type == "MatMul"
    assert matrix_axes(weight.value, weight.node) == MatrixAxes(1, 2)
