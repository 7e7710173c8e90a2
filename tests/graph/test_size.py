"""Parameters and multiply-adds: what the definitions of the operators say, checked by counting loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from model_io_models import mlp
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune import model_io
from onnxprune.graph.size import Figures, counted_values, figures
from onnxprune.runtime import concrete_shapes, make_session, probe_shapes, random_inputs, run


def measured(model: ir.Model, **sizes: int) -> Figures:
    return figures(model, concrete_shapes(model, random_inputs(model, sizes=sizes), counted_values(model)))


def single(op: str, x: tuple[int, ...], weights: list[tuple[int, ...]], **attributes: object) -> ir.Model:
    """A model of one node: an input of shape x, and weights of ones."""
    names = [f"w{i}" for i in range(len(weights))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(s, np.float32), n) for s, n in zip(weights, names, strict=True)],
    )
    return model_io.load_any(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("op", "x", "weights", "attributes", "macs"),
    [
        ("Conv", (1, 3, 8, 8), [(4, 3, 3, 3)], {}, 4 * 6 * 6 * 27),
        ("Conv", (1, 3, 8, 8), [(4, 3, 3, 3), (4,)], {"pads": [1, 1, 1, 1]}, 4 * 8 * 8 * 27),
        ("Conv", (2, 3, 8, 8), [(4, 3, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 1, 1]}, 2 * 4 * 4 * 4 * 27),
        ("Conv", (1, 3, 8, 8), [(4, 3, 3, 3)], {"dilations": [2, 2]}, 4 * 4 * 4 * 27),
        ("Conv", (1, 6, 8, 8), [(6, 1, 3, 3)], {"group": 6}, 6 * 6 * 6 * 9),
        ("Conv", (1, 6, 8), [(4, 3, 5)], {"group": 2}, 4 * 4 * 15),
        ("ConvTranspose", (1, 3, 4, 4), [(3, 5, 2, 2)], {"strides": [2, 2]}, 3 * 16 * 5 * 4),
        ("ConvTranspose", (1, 4, 4, 4), [(4, 3, 2, 2)], {"group": 2}, 4 * 16 * 3 * 4),
        ("Gemm", (5, 3), [(3, 4), (4,)], {}, 5 * 3 * 4),
        ("Gemm", (3, 5), [(4, 3)], {"transA": 1, "transB": 1}, 5 * 3 * 4),
        ("MatMul", (2, 7, 3), [(3, 4)], {}, 2 * 7 * 3 * 4),
        ("MatMul", (2, 7, 3), [(6, 1, 3, 4)], {}, 6 * 2 * 7 * 3 * 4),
        ("MatMul", (7, 3), [(3,)], {}, 7 * 3),
        ("Einsum", (2, 3, 4), [(4, 5)], {"equation": "bij,jk->bik"}, 2 * 3 * 4 * 5),
        ("Einsum", (2, 3, 4), [(2, 4, 5)], {"equation": "...ij,...jk->...ik"}, 2 * 3 * 4 * 5),
        ("LSTM", (6, 2, 3), [(1, 16, 3), (1, 16, 4)], {"hidden_size": 4}, 6 * 2 * 16 * 7),
        ("GRU", (6, 2, 3), [(2, 12, 3), (2, 12, 4)], {"hidden_size": 4, "direction": "bidirectional"}, 6 * 2 * 24 * 7),
        ("Relu", (3,), [], {}, 0),
    ],
)
def test_multiply_adds(
    op: str, x: tuple[int, ...], weights: list[tuple[int, ...]], attributes: dict[str, object], macs: int
) -> None:
    assert measured(single(op, x, weights, **attributes)).macs == macs


def test_a_counting_loop_agrees_for_grouped_dilated_convolution() -> None:
    """Ones in, ones as weights, no padding: the sum of the outputs is the number of multiply-adds."""
    model = single("Conv", (2, 6, 9, 8), [(4, 3, 3, 2)], group=2, dilations=[2, 1], strides=[1, 2])
    y = run(make_session(model), {"x": np.ones((2, 6, 9, 8), np.float32)})["y"]
    assert measured(model).macs == int(y.sum())


def test_a_counting_loop_agrees_for_transposed_convolution() -> None:
    model = single("ConvTranspose", (2, 6, 5, 4), [(6, 2, 3, 2)], group=3, strides=[2, 1])
    y = run(make_session(model), {"x": np.ones((2, 6, 5, 4), np.float32)})["y"]
    assert measured(model).macs == int(y.sum())


def test_parameters_are_weights_not_shapes() -> None:
    model = model_io.load_any(mlp())
    result = measured(model, N=3)
    assert result.parameters == 8 * 64 + 64 + 64 * 4 + 4
    assert result.macs == 3 * (8 * 64 + 64 * 4)
    assert result.file_bytes == len(model_io.to_bytes(model))
    weight = model.graph.initializers["w1"]
    array = weight.const_value.numpy().copy()
    array[:, ::2] = 0
    weight.const_value = ir.tensor(array, name="w1")
    assert result.nonzero_parameters - measured(model).nonzero_parameters == 8 * 32
    assert measured(model).sparsity == pytest.approx(8 * 32 / result.parameters)


def test_what_counts_as_a_parameter() -> None:
    model = model_io.load_any(
        parser.parse_model("""<ir_version: 9, opset_import: ["":19]>
        g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y)
        <float[4] scales = {1, 1, 2, 2}, int64[1] axis = {0}, float zero = {0}, int8[2] q = {1, 0}, float s = {0.5}> {
            k = Constant <value = float[1, 2, 1, 1] {3, 0}> ()
            d = DequantizeLinear(q, s)
            t = Cast <to = 1> (d)
            u = Unsqueeze(t, axis)
            a = Mul(x, k)
            b = Max(a, zero)
            y = Resize(b, , scales) }""")
    )
    result = figures(model)
    assert (result.parameters, result.nonzero_parameters) == (2 + 2, 1 + 1)


def test_a_weight_used_twice_counts_once() -> None:
    model = model_io.load_any(
        parser.parse_model("""<ir_version: 8, opset_import: ["":17]>
        g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { h = MatMul(x, w) y = MatMul(h, w) }""")
    )
    assert (measured(model).parameters, measured(model).macs) == (4, 16)


def test_bodies_of_if_loop_and_scan() -> None:
    branches = """y = If (c) <then_branch = a () => (float[2, 2] t) { t = MatMul(x, w) },
                               else_branch = b () => (float[2, 2] e) { h = MatMul(x, w) e = MatMul(h, w) }>"""
    loop = """y, ys = Loop (five, c, x) <body = b (int64 i, bool go, float[2, 2] v)
                => (bool on, float[2, 2] next, float[2, 2] out) {
                    on = Identity(go) next = MatMul(v, w) out = Identity(next) }>"""
    for body, macs in ((branches, 16), (loop, 5 * 8)):
        text = f"""<ir_version: 8, opset_import: ["":17]> g (float[2, 2] x, bool c) => (float[2, 2] y)
            <float[2, 2] w = {{1, 2, 3, 4}}, int64 five = {{5}}> {{ {body} }}"""
        assert measured(model_io.load_any(parser.parse_model(text))).macs == macs


def test_missing_shapes_are_named() -> None:
    model = model_io.load_any(mlp())
    assert figures(model).macs is None
    assert figures(model).uncounted == ("Gemm first", "Gemm second")


def test_a_run_measures_what_inference_cannot() -> None:
    """The extent of NonZero depends on the numbers."""
    model = model_io.load_any(
        parser.parse_model("""<ir_version: 8, opset_import: ["":17]>
        g (float[N] x) => (float[1, 3] y) <float[1, 3] w = {1, 2, 3}, int64[2] to = {-1, 1}> {
            i = NonZero(x)  f = Cast <to = 1> (i)  t = Transpose(f)  h = MatMul(t, w)
            y = ReduceSum <keepdims = 1> (h) }""")
    )
    feeds = {"x": np.array([0, 1, 0, 2, 3], np.float32)}
    shapes = concrete_shapes(model, feeds)
    by_name = {value.name: shape for value, shape in shapes.items()}
    assert by_name["h"] == (3, 3) and by_name["i"] == (1, 3)
    assert probe_shapes(model, feeds)[model.graph[0].outputs[0]] == (1, 3)
    assert figures(model, shapes).macs == 9


@pytest.mark.parametrize(
    ("name", "gmacs"), [("resnet50", 4.09), ("vgg19", 19.63), ("densenet121", 2.83), ("squeezenet", 0.35)]
)
def test_known_networks(light_models: list[Path], name: str, gmacs: float) -> None:
    """What torchvision states for these architectures at 224 x 224, in billions (it writes GFLOPS for them)."""
    model = model_io.load(next(path for path in light_models if name in path.name))
    assert measured(model).macs == pytest.approx(gmacs * 1e9, rel=5e-3)
