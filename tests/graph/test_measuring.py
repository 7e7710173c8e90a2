"""What is measured on a model does not depend on the operator set that it is written in."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune


@cache
def measured(opset: int, structure: str, criterion: str) -> dict[str, Any]:
    """What recovery measures on a network of strided, grouped and pointwise convolutions over a large image."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 2, 3, 3), "w2": (16, 4, 3, 3), "w3": (8, 16, 1, 1), "w4": (8, 4)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], strides=[2, 1], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], group=4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w4", "bias"], ["y"]),
    ]
    weights.append(numpy_helper.from_array(np.ones(4, np.float32), "bias"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 40, 33])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    proto = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], weights),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=7,
    )
    data = {"x": rng.standard_normal((12, 2, 40, 33)).astype(np.float32)}
    settings = {"structure": structure, "criterion": criterion, "sparsity": 0.5, "calibration": data, "latency": False}
    return dict(onnxprune.prune(proto, verification=False, **settings).recovered or {})


@pytest.mark.parametrize(("structure", "criterion"), [("weights", "wanda"), ("channels", "magnitude")])
@pytest.mark.parametrize("opset", [7, 8, 9])
def test_an_old_model_is_measured_as_a_new_one(opset: int, structure: str, criterion: str) -> None:
    old, new = measured(opset, structure, criterion), measured(14, structure, criterion)
    assert new["before"] > 0
    assert old["before"] == pytest.approx(new["before"], rel=1e-4)
    assert old["after"] == pytest.approx(new["after"], rel=1e-3)
