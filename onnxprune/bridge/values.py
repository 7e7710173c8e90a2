"""What stands for an ONNX value in generated code (`Bound`), and when a node works on sizes rather than on tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxprune.bridge.dtypes import TRAINABLE
from onnxprune.bridge.registry import HostOperator
from onnxprune.graph.operators import operator_named

HOST_INTEGERS_LIMIT = 64
HOST_FLOATS_LIMIT = 8
HOST_TYPES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.FLOAT})


@dataclass(frozen=True)
class Bound:
    """What an ONNX value is in the generated code.

    Attributes:
        kind: "tensor", "host" (Python numbers), "carried" (integers in a float tensor) or "constant" (not yet used).
        ref: The fx node, or for literals the Python value itself.
        dtype: The ONNX type, where known.
        literal: A host value known when the code is generated.
        constant: The numbers of an initializer or Constant node.
        source: For constants: the ONNX value it comes from.
    """

    kind: str
    ref: Any
    dtype: ir.DataType | None = None
    literal: bool = False
    constant: ir.TensorProtocol | None = None
    source: ir.Value | None = None

    def host_literal(self) -> Any:
        """The Python value of a small constant, or None."""
        tensor = self.constant
        if tensor is None or tensor.dtype not in HOST_TYPES:
            return None
        limit = HOST_FLOATS_LIMIT if tensor.dtype == ir.DataType.FLOAT else HOST_INTEGERS_LIMIT
        return tensor.numpy().tolist() if tensor.size <= limit else None


def is_carried(bound: Bound | None) -> bool:
    return bound is not None and bound.kind == "carried"


def host_value(bound: Bound) -> Any:
    return bound.host_literal() if bound.constant is not None else bound.ref


def is_host_work(op_type: str, inputs: list[Bound | None]) -> bool:
    """Whether all inputs are Python values, and the node works on sizes rather than on float weights."""
    derived = False
    integers = True
    for bound in inputs:
        if bound is None:
            continue
        if bound.kind == "host":
            derived = derived or not bound.literal or bound.dtype != ir.DataType.FLOAT
        elif bound.constant is None or bound.host_literal() is None:
            return False
        elif bound.constant.dtype in TRAINABLE:
            integers = False
    known = all(bound is None or bound.literal or bound.constant is not None for bound in inputs)
    if operator_named(op_type).sized_by_values and not known:
        return False
    return derived or integers


def host_dtype(host: HostOperator, inputs: list[Bound | None], attributes: dict[str, Any]) -> ir.DataType | None:
    if isinstance(host.dtype, int):
        source = inputs[host.dtype]
        return None if source is None else source.dtype
    if host.dtype in ir.DataType.__members__:
        return ir.DataType[host.dtype]
    value = attributes.get(host.dtype)
    if value is None:
        return ir.DataType.FLOAT
    return ir.DataType[value[1]] if isinstance(value, tuple) else ir.DataType(value)
