"""Heads that are merged with the batch into one axis of unknown extent, as DeBERTa's attention does it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper

from onnxprune.structure.analysis import analyse


@pytest.mark.skipif(not zoo.HAS_TORCH, reason="the zoo is built with PyTorch, which is not installed")
@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_heads_of_disentangled_attention_go(exporter: str) -> None:
    model = zoo.export("deberta", exporter)
    structure = analyse(oracle.normalised(model))
    heads = sum(len(group) for group in structure.groups if group.kind == "heads" and not group.inexact)
    assert heads == 8  # of two layers, also where the exporter expands one table of distances for both
    verdict = oracle.check(lambda: oracle.normalised(model), 0.5, seed=3)
    assert verdict.good and verdict.removed and verdict.settings == 2


@pytest.mark.skipif(not zoo.HAS_TORCH, reason="the zoo is built with PyTorch, which is not installed")
@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_heads_of_attention_in_windows_go(exporter: str) -> None:
    """One axis holds batch, windows and heads, and a Reshape leaves it as it is while it splits another."""
    model = zoo.export("windowed", exporter)
    structure = analyse(oracle.normalised(model))
    assert sum(len(group) for group in structure.groups if group.kind == "heads" and not group.inexact) == 8
    verdict = oracle.check(lambda: oracle.normalised(model), 0.5, seed=3)
    assert verdict.good and verdict.removed and verdict.settings == 2


def test_a_shape_of_batch_and_heads_keeps_the_original_number() -> None:
    """The scale 1 / (batch x heads) is computed from a shape: it stays what all heads made it."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((6, 12), np.float32), "v": rng.standard_normal((12, 5), np.float32),
        "by_head": np.array([0, 0, 4, 3], np.int64), "merged": np.array([-1, 3], np.int64),
        "first": np.array([0], np.int64), "apart": np.array([0, 4, 3], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Reshape", ["q", "by_head"], ["h"]),
        helper.make_node("Reshape", ["h", "merged"], ["flat"]),  # [batch x sequence x heads, size]
        helper.make_node("Shape", ["flat"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"]),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["flat", "number"], ["scaled"]),
        helper.make_node("Shape", ["x"], ["given"], end=2),
        helper.make_node("Concat", ["given", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["scaled", "target"], ["back"]),
        helper.make_node("Reshape", ["back", "joined"], ["o"]),
        helper.make_node("MatMul", ["o", "v"], ["y"]),
    ]
    arrays |= {"rest": np.array([4, 3], np.int64), "joined": np.array([0, 0, 12], np.int64)}
    graph = helper.make_graph(
        nodes, "merged", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", 5])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    assert sum(map(len, analyse(oracle.normalised(model)).groups)) == 4 + 3
    verdict = oracle.check(lambda: oracle.normalised(model), 0.5, seed=1)
    assert verdict.good and verdict.removed
