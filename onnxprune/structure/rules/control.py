"""If, Loop and Scan: the walk descends, and what crosses the border is tied to what it becomes inside."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rule
from onnxprune.structure.view import RuleMismatch, View


@rule("If")
def if_(view: View) -> None:
    """Both branches' outputs unify with the node's.

    Where shapes alone decide which branch runs (the exporters' `dim == 1 ? Squeeze : Identity`), the outputs are those
    of that branch. The other one is only tied as far as its axes fit.
    """
    branches = [view.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        view.walk(branch)
    condition = view.data(0)
    if condition is not None and condition.size == 1 and not condition.any():
        branches.reverse()
    for i, out in enumerate(view.node.outputs):
        first, other = (branch.outputs[i] for branch in branches)
        if view.facts.shape(out) is not None and _same_rank(view, out, first):
            if condition is not None and not _fit(view, first, other):
                view.give(out, view.axes(first), view.zero(first))
                continue
            if _same_rank(view, first, other):
                _join(view, out, first, other)
                continue
        for result in (first, other):
            _pin_value(view, result, "its branches give shapes that differ")


def _join(view: View, out: ir.Value, first: ir.Value, other: ir.Value) -> None:
    for axis_a, axis_b in zip(view.axes(first), view.axes(other), strict=True):
        view.unify(axis_a, axis_b)
    zero = [a and b for a, b in zip(view.zero(first), view.zero(other), strict=True)]
    view.give(out, view.axes(first), zero)


def _same_rank(view: View, a: ir.Value, b: ir.Value) -> bool:
    return len(view.facts.shape(a) or ()) == len(view.facts.shape(b) or ())


def _fit(view: View, a: ir.Value, b: ir.Value) -> bool:
    """Say whether two values have the same extents at both settings."""
    return view.facts.dims(a) is not None and view.facts.dims(a) == view.facts.dims(b)


@rule("Loop")
def loop(view: View) -> None:
    """Carried values keep their units from one turn to the next; stacked results get a leading axis."""
    body = view.node.attributes["body"].as_graph()
    carried = list(view.node.inputs[2:])
    for value in body.inputs[:2]:
        _enter(view, None, value)
    _turn(view, body, carried, list(body.inputs[2:]), list(body.outputs[1 : len(carried) + 1]))
    for i, out in enumerate(view.node.outputs):
        _result(view, out, body.outputs[i + 1], [] if i < len(carried) else [0])


@rule("Scan")
def scan(view: View) -> None:
    """State is carried as in Loop; scanned inputs lose an axis inside, scanned outputs get one."""
    if view.opset < 9:
        raise RuleMismatch("Scan 8 has a batch axis of its own")
    body = view.node.attributes["body"].as_graph()
    n_scan = view.int_attr("num_scan_inputs", 0)
    inputs = list(view.node.inputs)
    n_state = len(inputs) - n_scan
    in_axes = view.ints_attr("scan_input_axes") or [0] * n_scan
    out_axes = view.ints_attr("scan_output_axes") or [0] * (len(view.node.outputs) - n_state)
    for outer, inner, along in zip(inputs[n_state:], body.inputs[n_state:], in_axes, strict=True):
        if outer is None:
            _enter(view, outer, inner)
            continue
        axis = along % view.rank(outer)
        view.pin(view.axis(outer, axis), "it is scanned along this axis")
        rest = [k for k in range(view.rank(outer)) if k != axis]
        view.give(inner, [view.axis(outer, k) for k in rest], [view.zero(outer)[k] for k in rest])
    _turn(view, body, inputs[:n_state], list(body.inputs[:n_state]), list(body.outputs[:n_state]))
    for i, out in enumerate(view.node.outputs):
        _result(view, out, body.outputs[i], [] if i < n_state else [out_axes[i - n_state]])


def _turn(
    view: View, body: ir.Graph, carried: list[ir.Value | None], inner: list[ir.Value], results: list[ir.Value]
) -> None:
    """Walk a body, its carried values tied to what one turn makes of them.

    What is zero before the first turn is taken to be zero in every turn; where the walk finds that a turn does not
    leave it so, it walks again without that.
    """
    stays = [True] * len(carried)
    while True:
        for outer, value, zero in zip(carried, inner, stays, strict=True):
            _enter(view, outer, value, zero=zero)
        view.walk(body)
        ends = zip(stays, inner, results, strict=True)
        zero_after = [zero and _stays_zero(view, value, result) for zero, value, result in ends]
        if zero_after == stays:
            break
        stays = zero_after
    for value, result in zip(inner, results, strict=True):
        _leave(view, value, result)


def _stays_zero(view: View, inner: ir.Value, result: ir.Value) -> bool:
    if view.facts.shape(inner) is None or view.facts.shape(result) is None or view.rank(inner) != view.rank(result):
        return False
    return all(b or not a for a, b in zip(view.zero(inner), view.zero(result), strict=True))


def _enter(view: View, outer: ir.Value | None, inner: ir.Value, *, zero: bool = False) -> None:
    """Give a value inside the axes that it has outside."""
    if outer is None or view.facts.shape(outer) is None or view.facts.shape(inner) is None:
        if view.facts.shape(inner) is not None:
            axes: list[Axis] = [view.still_axis(inner, k, "it enters a loop") for k in range(view.rank(inner))]
            view.give(inner, axes, [False] * len(axes))
        if outer is not None:
            _pin_value(view, outer, "it enters a loop under another shape")
        return
    view.give(inner, view.axes(outer), [flag and zero for flag in view.zero(outer)])


def _leave(view: View, inner: ir.Value, result: ir.Value) -> None:
    """Tie a carried value to what the body makes of it; after no turn at all it is what entered."""
    if view.facts.shape(inner) is None or view.facts.shape(result) is None or view.rank(inner) != view.rank(result):
        _pin_value(view, inner, "its shape changes from turn to turn")
        _pin_value(view, result, "its shape changes from turn to turn")
        return
    view.give(result, view.axes(inner), view.zero(inner))


def _result(view: View, out: ir.Value, result: ir.Value, new_axes: list[int]) -> None:
    """Give a loop's output the axes of the body's, with a new axis where turns are stacked."""
    if view.facts.shape(out) is None or view.facts.shape(result) is None:
        _pin_value(view, result, "the shape of its result is not known")
        return
    axes, zero = list(view.axes(result)), list(view.zero(result))
    for axis in new_axes:
        place = axis % (len(axes) + 1)
        axes.insert(place, view.still_axis(out, place, "one index for each turn"))
        zero.insert(place, False)
    view.give(out, axes, zero)


def _pin_value(view: View, value: ir.Value, reason: str) -> None:
    if view.facts.shape(value) is not None:
        for axis in view.axes(value):
            view.pin(axis, reason)
