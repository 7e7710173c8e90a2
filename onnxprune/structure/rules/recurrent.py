"""Recurrent cells: one atom for each hidden unit, present in every gate.

A removed unit has zero weights and bias in every gate, so its state stays zero from a zero start.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import View

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ZERO_ACTIVATIONS = {"Tanh", "Relu", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "Elu", "Softsign"}


@rule("RNN", "GRU", "LSTM")
def recurrent(view: View) -> None:
    """X [T, B, I], W [D, gates H, I], R [D, gates H, H], B [D, 2 gates H] -> Y [T, D, B, H], Y_h, Y_c [D, B, H]."""
    gates = _GATES[view.node.op_type]
    x, w, r = view.need(0), view.need(1), view.need(2)
    hidden = view.ids(r, 2)
    for operand in (w, r):
        view.weight(operand)
        view.pin(view.axis(operand, 0), "it is the axis of directions")
    view.tag(hidden, "hidden")
    view.unify(view.axis(x, 2), view.axis(w, 2))
    view.unify(view.axis(w, 1), np.tile(hidden, gates))
    view.unify(view.axis(r, 1), np.tile(hidden, gates))
    zero = view.zero(w)[1] and view.zero(r)[1] and _zero_activations(view)
    layout = view.int_attr("layout", 0)
    view.pin(view.axis(x, 1 if layout else 0), "each step depends on those before it")
    batch = view.axis(x, 0 if layout else 1)
    if view.x(4) is not None:
        view.unify(batch, view.axis(view.need(4), 0))
    for i, tiles, states in ((3, 2 * gates, False), (5, 1, True), (6, 1, True), (7, gates - 1, False)):
        operand_ = view.x(i)
        if operand_ is None:
            continue
        view.unify(view.axis(operand_, -1), np.tile(hidden, tiles))
        zero = zero and view.zero(operand_)[-1]
        view.pin(view.axis(operand_, 1 if states and layout else 0), "it is the axis of directions")
        if states:
            view.unify(batch, view.axis(operand_, 0 if layout else 1))
    if not (zero or view.zero(r)[2]):
        view.mix(2, 2, "every unit reads all others, and this one is not zero when its weights are")
    if not (view.zero(x)[2] or view.zero(w)[2]):
        view.mix(0, 2, "it sums products of values that are not zero when the unit is")
    _outputs(view, hidden, zero, layout)


def _zero_activations(view: View) -> bool:
    """Say whether a unit without weights stays at zero: its candidate and output activations keep zero."""
    names = view.node.attributes.get_strings("activations")
    if not names:
        return True
    per = {"RNN": (0,), "GRU": (1,), "LSTM": (1, 2)}[view.node.op_type]
    step = {"RNN": 1, "GRU": 2, "LSTM": 3}[view.node.op_type]
    return all(names[d + i] in _ZERO_ACTIVATIONS for d in range(0, len(names), step) for i in per)


def _outputs(view: View, hidden: Axis, zero: bool, layout: int) -> None:
    x = view.need(0)
    time, batch = (view.axis(x, 1), view.axis(x, 0)) if layout else (view.axis(x, 0), view.axis(x, 1))
    y = view.out(0)
    if y is not None and view.facts.shape(y) is not None:
        direction = view.still_axis(y, 2 if layout else 1, "it is the axis of directions")
        axes = [batch, time, direction, hidden] if layout else [time, direction, batch, hidden]
        view.give(y, axes, [False, False, False, zero])
    for i in (1, 2):
        state = view.out(i)
        if state is not None and view.facts.shape(state) is not None:
            direction = view.still_axis(state, 1 if layout else 0, "it is the axis of directions")
            view.give(state, [batch, direction, hidden] if layout else [direction, batch, hidden], [False, False, zero])


@rewriter("RNN", "GRU", "LSTM")
def rewrite_recurrent(rw: Rewriter, node: ir.Node) -> None:
    """Write the new hidden size."""
    size = rw.extent(node.inputs[2], 2)
    if size is not None:
        rw.set_attribute(node, "hidden_size", size)
