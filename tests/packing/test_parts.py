"""k-means, roles of tensors, sparse initializers, output error, other runtimes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import DataError
from onnxprune.graph.layers import channel_axis
from onnxprune.packing import output_error, pack, to_sparse_initializers, unpack
from onnxprune.packing.kmeans import kmeans_1d
from onnxprune.packing.values import CODERS

from .builders import initializers, matmul, network, proto, run, sparse_array

X = np.random.default_rng(9).standard_normal((1, 16, 8, 8)).astype(np.float32)


def test_kmeans_returns_the_values_when_they_are_few() -> None:
    assert np.array_equal(kmeans_1d(np.array([3.0, 1.0, 3.0, 2.0]), 4), [1, 2, 3])


def test_kmeans_finds_separate_clusters() -> None:
    random = np.random.default_rng(0)
    centres = np.array([-5.0, -1.0, 0.5, 7.0])
    found = kmeans_1d(np.concatenate([c + random.normal(0, 0.01, 200) for c in centres]), 4)
    assert np.allclose(found, centres, atol=0.01)


@pytest.mark.parametrize("k", [15, 255])
def test_kmeans_reaches_the_optimal_quantiser_of_a_normal_distribution(k: int) -> None:
    """High-resolution limit of Panter and Dite: distortion = pi * sqrt(3) / 2 / k**2."""
    values = np.random.default_rng(1).standard_normal(200_000)
    centroids = kmeans_1d(values, k)
    nearest = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)]
    assert ((values - nearest) ** 2).mean() < 1.1 * np.pi * np.sqrt(3) / 2 / k**2


def test_int8_has_one_scale_per_output_channel() -> None:
    weight = sparse_array((6, 50), 0.5) * np.logspace(-3, 3, 6)[:, None].astype(np.float32)
    coded = CODERS["int8"](weight, 0)
    assert coded is not None and coded.scale is not None and coded.scale.shape == (6, 1)
    error = np.abs(coded.decode(weight.shape, weight.dtype) - weight).max(axis=1)
    assert (error <= np.abs(weight).max(axis=1) / 127 / 2 * 1.001).all()


def test_fp16_is_declined_where_a_value_overflows() -> None:
    assert CODERS["fp16"](np.array([[1e6, 1.0]], np.float32), 0) is None


@pytest.mark.parametrize(
    ("op_type", "attributes", "position", "axis"),
    [
        ("Conv", {}, 1, 0),
        ("ConvTranspose", {}, 1, 1),
        ("MatMul", {}, 1, 1),
        ("MatMul", {}, 0, 0),
        ("Gemm", {"transB": 1}, 1, 0),
        ("Gemm", {}, 1, 1),
        ("Gather", {}, 0, 0),
        ("Add", {}, 1, None),
        ("Conv", {}, 2, None),
    ],
)
def test_output_channels_by_operator(op_type: str, attributes: dict[str, int], position: int, axis: int | None) -> None:
    value = ir.Value(name="w", shape=ir.Shape([4, 4]))
    inputs = [ir.Value(name=str(i)) for i in range(3)]
    inputs[position] = value
    ir.node(op_type, inputs, attributes)
    assert channel_axis(value) == axis


def test_a_weight_behind_a_transpose_is_a_weight() -> None:
    value = ir.Value(name="w", shape=ir.Shape([4, 4]))
    turned = ir.node("Transpose", [value], {"perm": [1, 0]})
    ir.node("MatMul", [ir.Value(name="x"), turned.outputs[0]])
    assert channel_axis(value) == 0
    ir.node("Add", [ir.Value(name="x"), value])
    assert channel_axis(value) is None


def test_sparse_initializers_run_bit_for_bit_and_are_smaller() -> None:
    dense = network(0.9)
    sparse = to_sparse_initializers(pack(ir.from_proto(dense))[0])
    assert {t.values.name for t in sparse.graph.sparse_initializer} == {"conv.weight", "fc.weight"}
    assert 0.25 < sparse.ByteSize() / dense.ByteSize() < 0.36
    onnx.checker.check_model(sparse)
    assert run(dense, {"x": X})[0].tobytes() == run(sparse, {"x": X})[0].tobytes()


def test_sparse_initializers_only_where_they_win() -> None:
    assert not to_sparse_initializers(ir.from_proto(network(0.5))).graph.sparse_initializer


def test_sparse_initializers_keep_a_negative_zero() -> None:
    weight = sparse_array((40, 40), 0.95)
    weight[0, 0] = -0.0
    proto_model = to_sparse_initializers(ir.from_proto(matmul(weight)))
    values = numpy_helper.to_array(proto_model.graph.sparse_initializer[0].values)
    assert values[0] == 0 and np.signbit(values[0])


def test_output_error_of_a_model_with_itself_is_none() -> None:
    model = ir.from_proto(network(0.9))
    error = output_error(model, model)
    assert error.identical and error.max_abs == error.relative == 0


def test_output_error_refuses_a_batch_that_does_not_fit() -> None:
    model = ir.from_proto(network(0.9))
    with pytest.raises(DataError, match="does not fit"):
        output_error(model, model, [{"x": np.zeros((1, 3), np.float32)}])


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "codebook16", "codebook256"])
@pytest.mark.parametrize("mode", ["auto", "smallest", "gap8", "gap4", "bitmask"])
def test_openvino_agrees(mode: str, values: str) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    core = openvino.Core()
    for sparsity in (0.5, 0.95):
        packed, report = pack(ir.from_proto(network(sparsity)), values=values, mode=mode)  # type: ignore[arg-type]
        assert report.packed or sparsity == 0.5
        got = core.compile_model(core.read_model(ir.to_proto(packed).SerializeToString()), "CPU")({"x": X})[0]
        plain = ir.to_proto(unpack(packed)).SerializeToString()
        expected = core.compile_model(core.read_model(plain), "CPU")({"x": X})[0]
        assert np.allclose(got, expected, rtol=1e-2, atol=1e-3)  # OpenVINO may run in bfloat16


def test_version_converter_and_shape_inference_take_packed_models() -> None:
    packed = ir.to_proto(pack(ir.from_proto(network(0.9)))[0])
    inferred = onnx.shape_inference.infer_shapes(packed, strict_mode=True)
    assert any(v.name == "conv.weight" for v in inferred.graph.value_info)
    converted = onnx.version_converter.convert_version(packed, 21)
    assert run(packed, {"x": X})[0].tobytes() == run(converted, {"x": X})[0].tobytes()


def test_grouped_transposed_convolution_and_embedding() -> None:
    nodes = [
        helper.make_node("ConvTranspose", ["x", "up"], ["u"], group=2),
        helper.make_node("GlobalAveragePool", ["u"], ["y"]),
    ]
    model = ir.from_proto(
        proto(nodes, {"up": sparse_array((16, 8, 4, 4), 0.7)}, {"x": [1, 16, 8, 8]}, {"y": [1, 16, 1, 1]})
    )
    packed, report = pack(model, values="int8")
    assert report.tensors[0].values == "int8"
    assert output_error(model, packed, [{"x": X}]).relative < 0.02
    assert set(initializers(unpack(packed))) == {"up"}
