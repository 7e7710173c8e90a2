"""Outputs of bounded functions: found, and compared to the range of the function where only rounding differs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import model_io
from onnxprune.errors import VerificationError
from onnxprune.graph.bounded import bounded_outputs
from onnxprune.verification.proof import prove


def network(shift: float = 0.0) -> ir.Model:
    """Logits near -7 through Sigmoid (p), its mean (m), and Sigmoid with arithmetic behind it (q)."""
    bias = onnx.numpy_helper.from_array(np.full(4, -7 + shift, np.float32), "bias")
    nodes = [
        onnx.helper.make_node("Mul", ["x", "small"], ["scaled"]),
        onnx.helper.make_node("Add", ["scaled", "bias"], ["logits"]),
        onnx.helper.make_node("Sigmoid", ["logits"], ["p"]),
        onnx.helper.make_node("ReduceMean", ["p"], ["m"], axes=[1]),
        onnx.helper.make_node("Mul", ["p", "small"], ["q"]),
    ]
    small = onnx.numpy_helper.from_array(np.float32(1e-3), "small")
    x = onnx.helper.make_tensor_value_info("x", 1, [2, 4])
    outputs = [onnx.helper.make_tensor_value_info(n, 1, None) for n in ("p", "m", "q")]
    graph = onnx.helper.make_graph(nodes, "bounded", [x], outputs, [bias, small])
    return model_io.load_any(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))


def without(model: ir.Model, name: str) -> ir.Model:
    """The model without one output."""
    model.graph.outputs.remove(next(v for v in model.graph.outputs if v.name == name))
    return model


def test_only_movement_and_means_lie_between() -> None:
    assert bounded_outputs(network()) == {"p", "m"}


def test_rounding_of_a_bounded_output_is_no_difference() -> None:
    twin, other = (without(network(shift), "q") for shift in (0.0, 3e-4))
    assert prove(twin, twin, other).difference < 1e-6


def test_more_than_rounding_is_one() -> None:
    with pytest.raises(VerificationError, match="differs"):
        prove(without(network(), "q"), without(network(), "q"), without(network(0.01), "q"))


def test_arithmetic_behind_it_may_scale_the_difference_up() -> None:
    with pytest.raises(VerificationError, match="differs"):
        prove(network(), network(), network(3e-4))
