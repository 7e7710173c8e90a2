"""What an initializer is to the module: a parameter that trains, a buffer, or a quantised weight.

Decided by the consumers' roles, never by type: a float initializer trains if gradients can flow from it to an output
and some consumer takes it as a weight, bias or scale. Resize scales, Clip bounds, BatchNormalization statistics and
quantisation scales are buffers; so are scalars of a formula (the 0.5 in a GELU, an epsilon).
"""

from __future__ import annotations

import enum
import keyword
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.bridge.dtypes import INTEGER_RANGE, TRAINABLE
from onnxprune.bridge.registry import Operator, find_operator
from onnxprune.graph.caches import is_link_matrix
from onnxprune.graph.layers import axes_at_node
from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import graphs_of


class Role(enum.Enum):
    """What becomes of an initializer in the module."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    QUANTIZED = "quantized weight"


@dataclass(frozen=True)
class Target:
    """Where a parameter or buffer comes from in the model, and goes back to.

    Attributes:
        name: The ONNX name of the initializer, or of the output of the Constant node.
        role: PARAMETER and BUFFER hold the values themselves; QUANTIZED holds them dequantised, in real units.
        scale: For QUANTIZED: the name of the scale initializer.
        zero_point: For QUANTIZED: the name of the zero point initializer, "" if there is none.
        axis: For QUANTIZED: the axis of per-channel scales.
        block_size: For QUANTIZED: the block size of blocked scales, 0 if none.
    """

    name: str
    role: Role
    scale: str = ""
    zero_point: str = ""
    axis: int = 1
    block_size: int = 0


def opset_of(node: ir.Node, model_opsets: dict[str, int]) -> int:
    """The opset version that a node's domain has in its model."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return node.version or model_opsets.get(domain, model_opsets.get("ai.onnx" if domain == "" else domain, 1))


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node's output (numbers only), else None."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value if value.is_initializer() else None
    if producer.op_type != "Constant" or producer.domain not in ("", "ai.onnx"):
        return None
    for name, attribute in producer.attributes.items():
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(attribute.value, dtype=ir.DataType.FLOAT)
        if name in ("value_int", "value_ints"):
            return ir.tensor(attribute.value, dtype=ir.DataType.INT64)
    return None


def trainable_values(model: ir.Model) -> set[ir.Value]:
    """Values from which gradients can reach an output, by a backward walk over the graph and its subgraphs."""
    opsets = dict(model.graph.opset_imports)
    pending = [value for graph in graphs_of(model) for value in graph.outputs]
    reached: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        if value in reached:
            continue
        reached.add(value)
        node = value.producer()
        if node is None:
            continue
        operator = find_operator(node.domain, node.op_type, opset_of(node, opsets))
        if operator is not None and not operator.differentiable:
            continue
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) not in TRAINABLE:
            continue
        for index, source in enumerate(node.inputs):
            if source is not None and not (operator is not None and index in operator.fixed):
                pending.append(source)
    return reached


def role_of(value: ir.Value, reached: set[ir.Value], opsets: dict[str, int]) -> Target:
    """The role of one initializer or constant, with where its numbers go back to."""
    name = value.name or ""
    buffer = Target(name, Role.BUFFER)
    tensor = constant_of(value)
    if tensor is None or value not in reached or is_link_matrix(value):
        return buffer
    uses = [
        (node, index, find_operator(node.domain, node.op_type, opset_of(node, opsets))) for node, index in value.uses()
    ]
    if any(operator is not None and index in operator.statistics for _, index, operator in uses):
        return buffer
    if tensor.dtype in INTEGER_RANGE:
        target = _quantized_weight(name, len(tensor.shape), uses)
        return buffer if target is None else target
    if tensor.dtype not in TRAINABLE or tensor.size == 0:
        return buffer
    as_weight = [use for use in uses if _is_weight(value, tensor, *use, reached)]
    if as_weight or value.is_graph_output():
        return Target(name, Role.PARAMETER)
    return buffer


def _is_weight(
    value: ir.Value,
    tensor: ir.TensorProtocol,
    node: ir.Node,
    index: int,
    operator: Operator | None,
    reached: set[ir.Value],
) -> bool:
    """Whether this use makes the initializer a weight: gradients pass, and it is not a constant of a formula."""
    if not any(output in reached for output in node.outputs):
        return False
    if operator is None:
        return True
    if index in operator.fixed or not operator.differentiable:
        return False
    if not operator.elementwise or tensor.size > 1:
        return True
    if len(tensor.shape) == 0 or node.op_type != "Add":
        return False
    others = [source.producer() for source in node.inputs if source is not None and source is not value]
    return any(producer is not None and operator_of(producer).contracts for producer in others)


def _quantized_weight(name: str, rank: int, uses: list[tuple[ir.Node, int, Operator | None]]) -> Target | None:
    """The target of an integer initializer that is one node's weight, with constant scale and zero point."""
    if len(uses) != 1:
        return None
    node, index, operator = uses[0]
    if operator is None or index not in operator.weights:
        return None
    scale_at, zero_at = operator.weights[index]
    scale = node.inputs[scale_at] if scale_at < len(node.inputs) else None
    zero_point = node.inputs[zero_at] if zero_at < len(node.inputs) else None
    scale_tensor = constant_of(scale)
    if scale is None or scale_tensor is None or (zero_point is not None and constant_of(zero_point) is None):
        return None
    slot = next((slot for slot in operator_of(node).weights if slot.input == index), None)
    axis = (None if slot is None else axes_at_node(slot, node, rank)[0]) or 0
    block_size = 0
    if operator.name == "DequantizeLinear":
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
        block_size = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    elif operator.name != "QLinearConv" and scale_tensor.size > 1:
        return None
    zero_name = zero_point.name or "" if zero_point is not None else ""
    return Target(name, Role.QUANTIZED, scale.name or "", zero_name, axis, block_size)


def identifier(name: str, taken: Container[str]) -> str:
    """A Python identifier for an ONNX name that is not in `taken`: `layer1.0.weight` -> `layer1_0_weight`."""
    base = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
    if base[0].isdigit() or keyword.iskeyword(base):
        base = "_" + base
    return next(candidate for candidate in _numbered(base) if candidate not in taken)


def _numbered(base: str) -> Iterator[str]:
    yield base
    number = 1
    while True:
        yield f"{base}_{number}"
        number += 1
