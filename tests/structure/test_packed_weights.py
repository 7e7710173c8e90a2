"""Weights in a few bits: their scales are no weights, so that nothing is zeroed that was not asked for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import model_io
from onnxprune.errors import OnnxPruneError
from onnxprune.graph.packed import packed, unpacked
from onnxprune.pipeline.run import prune
from onnxprune.structure.analysis import analyse
from onnxprune.structure.weights import prunable_weights

from .twins import normalised


def four_bits(zero_points: bool) -> onnx.ModelProto:
    """Two MatMulNBits, 64 -> 96 -> 8, in blocks of 32."""
    rng = np.random.default_rng(0)
    tensors, nodes, source = [], [], "x"
    for i, (k, n) in enumerate(((64, 96), (96, 8))):
        arrays = {
            f"w{i}": rng.integers(0, 256, (n, k // 32, 16)).astype(np.uint8),
            f"scales{i}": rng.uniform(0.01, 0.1, n * k // 32).astype(np.float32),
        }
        if zero_points:
            arrays[f"zero{i}"] = rng.integers(0, 256, n * -(-(k // 32) // 2)).astype(np.uint8)
        tensors += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        nodes.append(helper.make_node("MatMulNBits", [source, *arrays], [f"y{i}"], domain="com.microsoft", K=k, N=n,
                                      bits=4, block_size=32))  # fmt: skip
        source = f"y{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("x", 64), ("y1", 8))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("zero_points", [False, True])
def test_scales_are_no_weights(zero_points: bool) -> None:
    structure = analyse(normalised(four_bits(zero_points)))
    weights = prunable_weights(structure)
    assert [(w.name, w.shape, w.is_packed) for w in weights] == [("w0", (96, 2, 32), True), ("w1", (8, 3, 32), True)]
    assert {str(v.name) for v in structure.unmasked} >= {"scales0", "scales1"}


@pytest.mark.parametrize("pattern", ["weights", "2:4", "block:1x4", "channels+weights"])
def test_single_packed_weights_are_refused_in_words(pattern: str) -> None:
    with pytest.raises(OnnxPruneError, match="packed in a few bits.*--structure channels"):
        prune(four_bits(zero_points=True), sparsity=0.5, structure=pattern)


@pytest.mark.parametrize("zero_points", [False, True])
def test_whole_blocks_go_with_their_scales(zero_points: bool) -> None:
    """96 neurons in 3 blocks of 32: those of one block live and die together."""
    proto = four_bits(zero_points)
    (group,) = [g for g in analyse(normalised(proto)).groups if len(g)]
    assert len(group) == 3 and not group.inexact
    for seed in range(3):
        verdict = oracle.check(lambda: normalised(proto), 0.4, seed)
        assert verdict.removed == 1 and verdict.good and verdict.signal > 0.1


def test_rows_of_a_sequence_are_multiplied_as_single_ones_are() -> None:
    proto = four_bits(zero_points=True)
    for end, width in zip((*proto.graph.input, *proto.graph.output), (64, 8), strict=True):
        end.CopyFrom(helper.make_tensor_value_info(end.name, TensorProto.FLOAT, ["batch", 5, width]))
    structure = analyse(normalised(proto))
    (group,) = [g for g in structure.groups if len(g)]
    assert len(group) == 3 and group.kind == "neurons"
    assert oracle.check(lambda: normalised(proto), 0.4, 0).removed == 1
    first = next(v for v in structure.packed if v.name == "w0")
    assert any("bytes are the numbers of one block" in reason for reason in structure.why_pinned(first))


def test_the_numbers_are_those_that_the_operator_multiplies_with() -> None:
    """Independently: the product with an identity matrix gives the matrix."""
    for zero_points in (False, True):
        proto = four_bits(zero_points)
        del proto.graph.node[1]
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, ["batch", 96]))
        (weight,) = prunable_weights(analyse(normalised(proto)))
        session = ort.InferenceSession(proto.SerializeToString())
        expected = session.run(None, {"x": np.eye(64, dtype=np.float32)})[0].T
        np.testing.assert_allclose(weight.numbers().reshape(96, 64), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    numbers = np.random.default_rng(0).integers(0, 1 << bits, (3, 16)).astype(np.uint8)
    assert np.array_equal(unpacked(packed(numbers, bits), bits), numbers)
    assert packed(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]


def table_and_head(zero_points: bool, *, tied: bool) -> onnx.ModelProto:
    """A table of 4 bits behind which a product stands, and a head; where they are tied, one constant in two shapes."""
    rng, vocabulary, width = np.random.default_rng(1), 20, 64
    arrays = {"table": rng.integers(0, 256, (vocabulary, width // 16, 8)).astype(np.uint8),
              "scales": rng.uniform(0.01, 0.1, (vocabulary, width // 16)).astype(np.float32),
              "gain": rng.uniform(0.5, 1.5, width).astype(np.float32),
              "rows": np.array([vocabulary, width // 2])}  # fmt: skip
    points = ["points"] if zero_points else []
    if points:
        arrays["points"] = rng.integers(0, 256, (vocabulary, 2)).astype(np.uint8)
    head = {"head": "table", "head_scales": "scales"} if tied else {}
    if not tied:
        arrays["head"] = rng.integers(0, 256, arrays["table"].shape).astype(np.uint8)
        arrays["head_scales"] = rng.uniform(0.01, 0.1, arrays["scales"].shape).astype(np.float32)
    settings = {"domain": "com.microsoft", "bits": 4, "block_size": 16}
    nodes = [
        helper.make_node("Reshape", ["table", "rows"], ["flat"]),
        helper.make_node("GatherBlockQuantized", ["flat", "ids", "scales", *points], ["e"], gather_axis=0,
                         quantize_axis=1, **settings),
        helper.make_node("Mul", ["e", "gain"], ["h"]),
        helper.make_node("MatMulNBits", ["h", head.get("head", "head"), head.get("head_scales", "head_scales"),
                         *(points if tied else [])], ["y"], K=width, N=vocabulary, **settings),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 3]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, vocabulary])]  # fmt: skip
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("zero_points", [False, True])
def test_blocks_of_a_table_go_with_those_of_the_head(zero_points: bool, tied: bool) -> None:
    """As the builder of onnxruntime-genai ties them: the table is the head's weight, seen in rows."""
    proto = table_and_head(zero_points, tied=tied)
    (group,) = [g for g in analyse(normalised(proto)).groups if len(g)]
    assert len(group) == 4 and not group.inexact
    for seed in range(3):
        verdict = oracle.check(lambda: normalised(proto), 0.5, seed)
        assert verdict.removed == 2 and verdict.difference < 1e-5 and verdict.signal > 0.1


@pytest.mark.parametrize("structure", ["weights", "2:4", "block:1x4"])
def test_single_weights_of_a_plain_quantiser_become_its_zero_points(structure: str) -> None:
    """DequantizeLinear with a scale and a zero point for each block: 0 is one of its numbers, so nothing is rounded."""
    rng = np.random.default_rng(0)
    tensors = [helper.make_tensor(name, TensorProto.UINT4, shape, rng.integers(1, 16, shape).reshape(-1))
               for name, shape in (("w", (32, 48)), ("z", (2, 48)))]  # fmt: skip
    tensors.append(numpy_helper.from_array(rng.uniform(0.01, 0.1, (2, 48)).astype(np.float32), "s"))
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=0, block_size=16),
             helper.make_node("MatMul", ["x", "f"], ["y"])]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in (("x", 32), ("y", 48))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    result = prune(proto, sparsity=0.5, structure=structure, ends="prune", latency=False)
    assert result.verdict is not None and result.verdict.after.sparsity >= 0.5
    after = {t.name: numpy_helper.to_array(t) for t in model_io.to_proto(result.model).graph.initializer}
    zero = np.repeat(after["z"], 16, axis=0)
    assert (after["w"] == zero).mean() >= 0.5
    assert {name: (after[name] == numpy_helper.to_array(t)).all() for name, t in zip("sz", (tensors[2], tensors[1]),
            strict=True)} == {"s": True, "z": True}  # fmt: skip


def test_a_pruned_model_counts_numbers_and_not_bytes() -> None:
    result = prune(four_bits(zero_points=True), sparsity=0.34, structure="channels", latency=False)
    assert result.verdict is not None
    assert result.verdict.before.parameters == 64 * 96 + 96 * 8
    assert result.verdict.after.parameters == 64 * 64 + 64 * 8
    assert result.verdict.removed_vs_masked < 1e-4
    shapes = {t.name: tuple(t.dims) for t in model_io.to_proto(result.model).graph.initializer}
    assert shapes["w0"] == (64, 2, 16) and shapes["w1"] == (8, 2, 16)
