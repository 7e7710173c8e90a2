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


def test_a_pruned_model_counts_numbers_and_not_bytes() -> None:
    result = prune(four_bits(zero_points=True), sparsity=0.34, structure="channels", latency=False)
    assert result.verdict is not None
    assert result.verdict.before.parameters == 64 * 96 + 96 * 8
    assert result.verdict.after.parameters == 64 * 64 + 64 * 8
    assert result.verdict.removed_vs_masked < 1e-4
    shapes = {t.name: tuple(t.dims) for t in model_io.to_proto(result.model).graph.initializer}
    assert shapes["w0"] == (64, 2, 16) and shapes["w1"] == (8, 2, 16)
