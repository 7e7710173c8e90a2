"""What an integer input is for, read off the operators it reaches."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from onnxprune.graph.operators import operator_of

_MAX_VALUES = 200  # values followed from one input; ids reach their embedding within a few


@dataclasses.dataclass(frozen=True)
class IntegerRole:
    """What the numbers of an integer input must be.

    Attributes:
        bound: They must be below this; None where nothing limits them.
        constant: The graph compares them with this constant, which at least one of them should be.
    """

    bound: int | None = None
    constant: int | None = None


def integer_role(value: ir.Value) -> IntegerRole:
    """Follow the numbers of an input to whatever indexes or compares with them."""
    bounds: list[int] = []
    constants: list[int] = []
    pending: list[tuple[ir.Value, int]] = [(value, 0)]  # (value, what has been added to the input's numbers)
    seen = {value}
    while pending and len(seen) < _MAX_VALUES:
        current, offset = pending.pop()
        for node, index in current.uses():
            bound = index_bound(node, index)
            if bound is not None:
                bounds.append(bound - offset)
            if node.op_type == "Equal":
                constant = _scalar(node.inputs[1 - index])
                if constant is not None:
                    constants.append(constant - offset)
            step = _step(node, index)
            if step is None:
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    pending.append((output, offset + step))
    bound = max(min(bounds), 1) if bounds else None
    allowed = [c for c in constants if c >= 0 and (bound is None or c < bound)]
    return IntegerRole(bound, allowed[0] if allowed else None)


def _step(node: ir.Node, index: int) -> int | None:
    """What the node adds to the numbers as they pass through; None where they do not."""
    operator = operator_of(node)
    if operator.passes_integers:
        return 0 if operator.reads(index) else None
    if node.op_type == "Add":
        return _largest(node.inputs[1 - index])
    return None


def index_bound(node: ir.Node, index: int) -> int | None:
    """Return the extent that input `index` of the node indexes into, where that is known."""
    operator = operator_of(node)
    if index in operator.indices:
        indexed, axis = operator.indices[index]
        return _extent(node.inputs[indexed], node.attributes.get_int("axis", 0) if axis is None else axis)
    if node.op_type == "OneHot" and index == 0:
        return _scalar(node.inputs[1])
    return 2 if index in operator.lengths else None


def _extent(value: ir.Value | None, axis: int) -> int | None:
    if value is None:
        return None
    shape = value.const_value.shape if value.const_value is not None else value.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    dim = shape[axis]
    return dim if isinstance(dim, int) else None


def _largest(value: ir.Value | None) -> int | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or not tensor.dtype.is_integer() or tensor.size == 0:
        return None
    return int(np.max(tensor.numpy()))


def _scalar(value: ir.Value | None) -> int | None:
    """The number in a constant of one element."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    number = np.asarray(tensor.numpy()).reshape(-1)[0].item()
    return int(number) if float(number).is_integer() else None
