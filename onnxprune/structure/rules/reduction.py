"""Reductions over axes: sums of what is zero are exact, all others are mixed."""

from __future__ import annotations

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rule
from onnxprune.structure.view import RuleMismatch, View

_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
_OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


@rule(*_SUMS, *_OTHERS)
def reduce(view: View) -> None:
    """Reduced axes go or become 1; the others carry over."""
    x = view.need(0)
    chosen = view.numbers(1, "axes")
    if chosen is None and view.x(1) is not None:
        raise RuleMismatch("its axes are not known before the model runs")
    if not chosen:
        chosen = [] if view.int_attr("noop_with_empty_axes", 0) else list(range(view.rank(x)))
    gone = {i % view.rank(x) for i in chosen}
    op = view.node.op_type
    if any(view.shape(x)[i] == 0 for i in gone):
        raise RuleMismatch("it reduces over no elements")
    for i in gone:
        if not (op in _SUMS and view.zero(x)[i]):
            view.mix(0, i, "it reduces over this axis")
    axes: list[Axis] = []
    zero: list[bool] = []
    for i, axis in enumerate(view.axes(x)):
        if i in gone:
            if view.int_attr("keepdims", 1):
                axes.append(view.still(1, "an axis of extent 1"))
                zero.append(False)
        else:
            axes.append(axis)
            zero.append(view.zero(x)[i] and not op.startswith("ReduceLog"))
    view.give(view.out(), axes, zero)


@rule("ArgMax", "ArgMin")
def arg(view: View) -> None:
    """Positions along the axis are the result, so nothing of it can go."""
    x = view.need(0)
    along = view.int_attr("axis", 0) % view.rank(x)
    view.pin(view.axis(x, along), "it returns positions along this axis")
    axes = [view.still(1, "an axis of extent 1") if i == along else a for i, a in enumerate(view.axes(x))]
    if not view.int_attr("keepdims", 1):
        del axes[along]
    view.give(view.out(), axes, [False] * len(axes))
