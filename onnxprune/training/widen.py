"""Half-precision graphs are trained in float32: the steps of an optimiser are too small for 10 or 7 bits of mantissa.

Only the training view is widened; write-back rounds the trained numbers to the types that the file has. The same
function makes float64 twins of float32 graphs, against which rounding can be told from error.
"""

from __future__ import annotations

from collections.abc import Container
from copy import deepcopy

import numpy as np
import onnx_ir as ir

from onnxprune.model_io.bodies import graphs_of

HALF = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def widen(model: ir.Model, narrow: Container[int] = HALF, wide: ir.DataType = ir.DataType.FLOAT) -> None:
    """Make every value of `model` of a type in `narrow` one of type `wide`, in place; other types stay."""
    for graph in graphs_of(model):
        for value in (*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)):
            if value.dtype is not None and value.dtype in narrow:
                value.type = deepcopy(value.type)  # a clone of a model shares the types with it
                value.dtype = wide
            if value.const_value is not None and value.const_value.dtype in narrow:
                value.const_value = _cast(value.const_value, wide)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                _widen_attribute(node, name, attribute, narrow, wide)


def _widen_attribute(node: ir.Node, name: str, attribute: ir.Attr, narrow: Container[int], wide: ir.DataType) -> None:
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in narrow:
        node.attributes[name] = ir.AttrTensor(name, _cast(attribute.as_tensor(), wide))
    elif name in TYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT and attribute.as_int() in narrow:
        node.attributes[name] = ir.AttrInt64(name, int(wide))
    elif node.op_type == "Constant" and name in ("value_float", "value_floats") and ir.DataType.FLOAT in narrow:
        del node.attributes[name]
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(attribute.value, wide.numpy())))


def _cast(tensor: ir.TensorProtocol, wide: ir.DataType) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype(wide.numpy()), name=tensor.name)
