"""Products of 8-bit integers that ONNX Runtime cuts off, on processors without VNNI instructions.

There it adds each two products of an unsigned and a signed byte in 16 bits, and a sum that does not fit becomes 32,767.
What is cut off depends on which numbers stand side by side, so that a model from which units were removed computes
other numbers than its masked twin. Weights as unsigned bytes are exact everywhere, and slower: see
``session.x64quantprecision`` of ONNX Runtime. Sessions that count outputs take them; those that measure latency do not.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import nodes_of

_LEFT_OUT = ("QDQSelectorActionTransformer", "ConstantFolding")
"""What else runs with the rewriting to unsigned weights: one that changes results, one that multiplies before it."""


def make_exact(options: ort.SessionOptions, model: ir.Model) -> tuple[str, ...]:
    """Let a session compute integer products exactly, where this processor would not.

    Args:
        options: Those of the session.
        model: What the session runs.

    Returns:
        The optimisers that the session has to leave out.

    Example::

        options = onnxruntime.SessionOptions()
        left_out = make_exact(options, model)
        session = onnxruntime.InferenceSession(content, options, disabled_optimizers=left_out)
    """
    if not needs_unsigned_weights(model) or not processor_overflows():
        return ()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.x64quantprecision", "1")
    return _LEFT_OUT


def needs_unsigned_weights(model: ir.Model) -> bool:
    """Whether nodes multiply unsigned bytes by constants of signed ones, and no node signed bytes by such constants.

    ONNX Runtime would write unsigned weights for the latter as well, for which it has no kernel.
    """
    data = [_data_of_product(node) for node in nodes_of(model.graph)]
    return "unsigned" in data and "signed" not in data


def _data_of_product(node: ir.Node) -> Literal["unsigned", "signed", ""]:
    """What a node multiplies by a constant of signed bytes; nothing where it does no such thing."""
    operator = operator_of(node)
    if not operator.quantised or not operator.contracts:
        return ""
    constant, data = False, False
    for i, (_, zero_point) in operator.quantised.items():
        value = _input(node, i)
        if value is None:
            continue
        point = None if zero_point is None else _input(node, zero_point)
        signed = ir.DataType.INT8 in (_type(value), _type(point))
        if ir.convenience.get_const_tensor(value) is not None:
            constant |= signed
        else:
            data |= signed
    return "" if not constant else "signed" if data else "unsigned"


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _type(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return value.dtype if tensor is None else tensor.dtype


@functools.cache
def processor_overflows() -> bool:
    """Whether ONNX Runtime gets a sum of two products wrong here that has more than 16 bits."""
    rows, columns = np.full((1, 32), 255, np.uint8), np.full((32, 1), 127, np.int8)
    sums = rows.astype(np.int32) @ columns.astype(np.int32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["rows", "columns"], ["sums"])],
        "overflow",
        [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.UINT8, rows.shape)],
        [onnx.helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, (1, 1))],
        [onnx.numpy_helper.from_array(columns, "columns")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return not np.array_equal(session.run(None, {"rows": rows})[0], sums)
