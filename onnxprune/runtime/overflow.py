"""Products of 8-bit integers that ONNX Runtime cuts off, on processors without VNNI instructions.

There it adds each two products of an unsigned and a signed byte in 16 bits, and a sum that does not fit becomes 32,767.
What is cut off depends on which numbers stand side by side, so that a model from which units were removed computes
other numbers than its masked twin. Weights as unsigned bytes are exact everywhere, and slower: see
``session.x64quantprecision`` of ONNX Runtime. Sessions that count outputs take them; those that measure latency do not.
"""

from __future__ import annotations

import functools

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
    if not multiplies_signed_bytes(model) or not processor_overflows():
        return ()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.add_session_config_entry("session.x64quantprecision", "1")
    return _LEFT_OUT


def multiplies_signed_bytes(model: ir.Model) -> bool:
    """Whether a node multiplies matrices of integers, one of them a constant of signed bytes."""
    return any(_is_signed_product(node) for node in nodes_of(model.graph))


def _is_signed_product(node: ir.Node) -> bool:
    operator = operator_of(node)
    if not operator.quantised or not operator.contracts:
        return False
    values = (node.inputs[i] for i in operator.quantised if i < len(node.inputs))
    tensors = (ir.convenience.get_const_tensor(value) for value in values if value is not None)
    return any(tensor is not None and tensor.dtype == ir.DataType.INT8 for tensor in tensors)


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
