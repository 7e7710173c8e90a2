"""Weights in a few bits: their scales are no weights, so that nothing is zeroed that was not asked for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import OnnxPruneError
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
    assert prunable_weights(analyse(normalised(four_bits(zero_points)))) == []


@pytest.mark.parametrize("structure", ["weights", "channels"])
def test_a_sparsity_of_packed_weights_is_refused_in_words(structure: str) -> None:
    with pytest.raises(OnnxPruneError, match="nothing to prune"):
        prune(four_bits(zero_points=True), sparsity=0.5, structure=structure)
