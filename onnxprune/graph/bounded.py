"""Outputs that are exact to the range of a function, not to their own size.

A Sigmoid is computed to a few roundings of 1: where it is 1e-3, its relative error is a thousand times that. Two graphs
that are equal but for the order of their sums then differ by more than their largest output suggests.
"""

from __future__ import annotations

import onnx_ir as ir

ROUNDING = 4e-6
"""What the values of a function of range 1 may be off by, in float32: 32 units of the last place."""

_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf", "Softsign"})
_PASS_ON = frozenset({
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather", "Concat", "Split",
    "Expand", "Pad", "Where", "ReduceMean", "ReduceMax", "ReduceMin", "MaxPool", "AveragePool", "GlobalAveragePool",
})  # fmt: skip
"""Operators whose results lie where their operands do."""


def bounded_outputs(model: ir.Model) -> set[str]:
    """Return the names of the outputs that come from a function of range 1 without any arithmetic in between."""
    return {str(value.name) for value in model.graph.outputs if _is_bounded(value)}


def _is_bounded(value: ir.Value | None) -> bool:
    seen: set[ir.Value] = set()
    while value is not None and value not in seen:
        seen.add(value)
        node = value.producer()
        if node is None or node.op_type in _BOUNDED:
            return node is not None
        if node.op_type not in _PASS_ON:
            return False
        value = node.inputs[1 if node.op_type == "Where" else 0]
    return False
