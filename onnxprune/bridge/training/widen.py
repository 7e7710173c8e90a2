"""Half-precision graphs are trained in float32: the steps of an optimiser are too small for 10 or 7 bits of mantissa.

Only the training view is widened; write-back rounds the trained numbers to the types that the file has.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def widen(model: ir.Model) -> None:
    """Make every float16 and bfloat16 value of `model` a float32 one, in place; other types stay."""
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)):
            _widen_value(value)
        for node in graph:
            _widen_attributes(node)


def _widen_value(value: ir.Value) -> None:
    if value.dtype in HALF:
        value.dtype = ir.DataType.FLOAT
    tensor = value.const_value
    if tensor is not None and tensor.dtype in HALF:
        value.const_value = _float32(tensor)


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF:
            node.attributes[name] = ir.AttrTensor(name, _float32(attribute.as_tensor()))
        elif name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in HALF:
            node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))


def _float32(tensor: ir.TensorProtocol) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(np.float32), name=tensor.name)
