"""Nodes as the code generator reads them: their attributes as Python values, their names in messages, refusals."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.bridge.registry import Operator
from onnxprune.errors import ModelError


def describe(node: ir.Node) -> str:
    """A node for a message: its name, or what it outputs."""
    return repr(node.name) if node.name else f"that makes {', '.join(repr(v.name) for v in node.outputs)}"


def unsupported(node: ir.Node, opset: int) -> ModelError:
    """The refusal for an operator the bridge does not know."""
    domain = node.domain or "ai.onnx"
    return ModelError(
        f"The bridge has no operator {node.op_type} of {domain} opset {opset}, used by node {describe(node)}: "
        f"cut the graph there and train the part that is covered, leave that part out with --exclude, or register a "
        f"function for it with onnxprune.bridge.op({node.op_type!r}, domain={node.domain!r})."
    )


def attribute_value(node: ir.Node, attribute: ir.Attr) -> Any:
    """An ONNX attribute as a Python value. Raises ModelError for types no tensor operator has."""
    kinds = ir.AttributeType
    if attribute.type == kinds.FLOATS:
        return tuple(_shortest(number) for number in attribute.value)
    if attribute.type == kinds.FLOAT:
        return _shortest(attribute.value)
    if attribute.type in (kinds.INTS, kinds.STRINGS):
        return tuple(attribute.value)
    if attribute.type in (kinds.INT, kinds.STRING):
        return attribute.value
    if attribute.type == kinds.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.size == 1:
            return (tensor.numpy().reshape(-1)[0].item(), tensor.dtype.name)
    raise ModelError(
        f"Attribute {attribute.name!r} of node {describe(node)} ({node.op_type}) is of type {attribute.type}, "
        "which the bridge does not read."
    )


def _shortest(number: float) -> float:
    """A float32 attribute as the shortest number that rounds to it: 0.9, not 0.8999999761581421."""
    return float(str(np.float32(number)))


def check_signature(node: ir.Node, operator: Operator, arguments: list[Any], keywords: Mapping[str, Any]) -> None:
    try:
        inspect.signature(operator.function).bind(*arguments, **keywords)
    except TypeError as error:
        raise ModelError(
            f"Node {describe(node)} ({node.op_type}, from opset {operator.since}) does not fit the bridge's function: "
            f"{error}."
        ) from None
