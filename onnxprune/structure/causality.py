"""Whether an attention looks back only, read off its operator or off the mask on its scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Facts

_FLAGS = ("is_causal", "unidirectional")
_MASK_FROM = 3  # inputs of attention as one operator from this one on may be masks
_MOST_VALUES = 400


def is_causal(facts: Facts, node: ir.Node) -> bool:
    """Say whether no token sees a later one.

    Args:
        facts: Shapes and constants of the model.
        node: An attention as one operator, or the product of queries and keys of one that is spelled out.

    A mask is causal where it is cut to a triangle, compares positions with positions, or is a constant triangle.
    """
    if operator_of(node).causal or any(node.attributes.get_int(name, 0) for name in _FLAGS):
        return True
    masks = node.inputs[_MASK_FROM:] if operator_of(node).heads else _masks(node.outputs[0])
    return any(value is not None and _is_triangle(facts, value) for value in masks)


def _masks(scores: ir.Value) -> Iterator[ir.Value | None]:
    """What pointwise operators join with the scores on their way to a Softmax."""
    waiting, seen = [scores], {scores}
    while waiting:
        value = waiting.pop()
        for node, _ in value.uses():
            operator = operator_of(node)
            if operator.pointwise or operator.view:
                yield from (other for other in node.inputs if other not in seen)
                waiting += [out for out in node.outputs if out not in seen]
                seen.update(node.outputs)


def _is_triangle(facts: Facts, mask: ir.Value) -> bool:
    """Whether what a mask is computed from has a triangle in it."""
    waiting, seen = [mask], {mask}
    while waiting and len(seen) < _MOST_VALUES:
        value = waiting.pop()
        node = value.producer()
        if node is None:
            if value.const_value is not None and _is_lower(value.const_value):
                return True
            continue
        if node.op_type == "Trilu" or (operator_of(node).compares and _of_positions(facts, node)):
            return True
        fresh = [v for v in node.inputs if v is not None and v not in seen]
        waiting += fresh
        seen.update(fresh)
    return False


def _of_positions(facts: Facts, node: ir.Node) -> bool:
    """Whether a comparison is of several integers with several: of positions with positions, not with a limit."""
    for value in node.inputs:
        if value is None or (value.const_value is not None and value.const_value.size == 1):
            return False
        if not ir.DataType(facts.dtype(value)).is_integer():
            return False
    shapes = [facts.shape(value) for value in node.inputs if value is not None]
    return len(shapes) == 2 and all(shape and any(n != 1 for n in shape) for shape in shapes)


def _is_lower(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is one matrix (with axes of extent 1) whose upper triangle is one number, unlike its lower."""
    shape = tensor.shape.numpy()
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2 or tensor.size != shape[-1] ** 2:
        return False
    if tensor.dtype == ir.DataType.STRING:
        return False
    array = tensor.numpy().reshape(shape[-2:])
    upper, lower = array[np.triu_indices(len(array), 1)], array[np.tril_indices(len(array))]
    return bool((upper == upper[0]).all() and (lower == lower[0]).all() and upper[0] != lower[0])
