"""Outputs that are exact to the range of a function, not to their own size.

A Sigmoid is computed to a few roundings of 1: where it is 1e-3, its relative error is a thousand times that. Two graphs
that are equal but for the order of their sums then differ by more than their largest output suggests.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.graph.operators import operator_of

ROUNDING = 4e-6
"""What the values of a function of range 1 may be off by, in float32: 32 units of the last place."""


def bounded_outputs(model: ir.Model) -> set[str]:
    """Return the names of the outputs that come from a function of range 1 without any arithmetic in between."""
    return {str(value.name) for value in model.graph.outputs if _is_bounded(value)}


def _is_bounded(output: ir.Value) -> bool:
    """Whether all numbers of an output, but for constants, come from functions of range 1."""
    seen: set[ir.Value] = set()
    waiting = [output]
    bounded = False
    while waiting:
        value = waiting.pop()
        if value in seen or value.is_initializer():
            continue
        seen.add(value)
        node = value.producer()
        operator = None if node is None else operator_of(node)
        if node is None or operator is None or not (operator.bounded or operator.within_range):
            return False
        bounded |= operator.bounded
        if not operator.bounded:
            waiting += [v for i, v in enumerate(node.inputs) if v is not None and operator.reads(i)]
    return bounded
