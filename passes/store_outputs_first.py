"""Store quantised weights of matrix products with their outputs first: y = x W becomes y = x (W^T)^T.

OpenVINO keeps the weights of its matrix products in that order. It turns those that a file holds the other way in the
compiled model, and then they are no constant any more to its kernels for zeros (engines/openvino.py).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import axes_at_node, slots_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.tensors import like, read
from onnxprune.model_io.bodies import graphs_of


class StoreOutputsFirst(ir.passes.InPlacePass):
    """Turn int8 weights [inputs, outputs] behind a DequantizeLinear of their own, and read them turned back."""

    preserves: Literal["exactly"] = "exactly"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for graph in graphs_of(model) for node in graph if _turns(node)]
        edit = Editor(model)
        for node in found:
            _turn(edit, node)
        return ir.passes.PassResult(model, modified=bool(found))


def _turns(node: ir.Node) -> bool:
    """Whether a node is a matrix product with such a weight on the right."""
    slot = next((slot for slot in slots_of(node) if slot.input == 1), None)
    if slot is None or node.domain or operator_of(node).kind != "fc" or operator_of(node).equation:
        return False
    value = node.inputs[1]
    dequantise = None if value is None else value.producer()
    if value is None or dequantise is None or not operator_of(dequantise).dequantises or len(value.uses()) != 1:
        return False
    stored = dequantise.inputs[0]
    tensor = None if stored is None else stored.const_value
    own = stored is not None and len(stored.uses()) == 1 and not stored.is_graph_output() and stored.is_initializer()
    if tensor is None or not own or len(tensor.shape) != 2 or dequantise.attributes.get_int("block_size", 0) != 0:
        return False
    return axes_at_node(slot, node, 2)[0] == 1


def _turn(edit: Editor, node: ir.Node) -> None:
    value = node.inputs[1]
    dequantise = None if value is None else value.producer()
    assert value is not None and dequantise is not None
    stored = dequantise.inputs[0]
    assert stored is not None and stored.const_value is not None
    tensor = stored.const_value
    stored.const_value = like(tensor, np.ascontiguousarray(read(tensor).T))
    stored.shape = ir.Shape(tensor.shape.numpy()[::-1])
    if value.shape is not None:
        value.shape = stored.shape
    dequantise.attributes["axis"] = ir.AttrInt64("axis", 1 - dequantise.attributes.get_int("axis", 1) % 2)
    swap = next(slot.swap for slot in slots_of(node) if slot.input == 1)
    if node.op_type == "Gemm":
        node.attributes[swap] = ir.AttrInt64(swap, 1)
    else:
        node.replace_input_with(1, edit.before(node, "Transpose", [value], {"perm": [1, 0]}))
