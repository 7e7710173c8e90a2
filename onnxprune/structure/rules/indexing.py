"""Picking and placing indices: Slice, Gather, Scatter, TopK and their kin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.structure.axes import Axis, Dynamic
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.rules.reshaping import gather_in_order, gathers_in_order, rewrite_gather_in_order
from onnxprune.structure.terms import Bools
from onnxprune.structure.view import RuleMismatch, View

_END = np.iinfo(np.int64).max


# -- Slice ----------------------------------------------------------------------------------------------------------


def _slices(view: View) -> dict[int, slice] | None:
    """Return the slice of each axis that is sliced, None where the bounds are not known."""
    starts, ends = view.numbers(1, "starts"), view.numbers(2, "ends")
    axes, steps = view.numbers(3, "axes"), view.numbers(4, "steps")
    if starts is None or ends is None or (axes is None and view.x(3) is not None):
        return None
    if steps is None and view.x(4) is not None:
        return None
    rank = view.rank(view.need(0))
    axes = [i % rank for i in axes] if axes is not None else list(range(len(starts)))
    steps = steps or [1] * len(starts)
    return {
        axis: slice(_position(start), _position(end), step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def _position(bound: int) -> int | None:
    """A lower bound far out of range means "to the very front" of a reversed slice."""
    return None if bound < -(1 << 31) + 1 else bound


def _picked(n: int, piece: slice) -> npt.NDArray[np.int64]:
    """Return the indices that ONNX picks: bounds are clamped as in numpy."""
    start, stop, step = piece.start, piece.stop, piece.step
    if step > 0 and stop is None:
        stop = 0
    if start is None or start < -n:
        start = 0
    return np.arange(n)[slice(start, stop, step)]


@rule("Slice")
def slice_(view: View) -> None:
    """Terms move with the indices that are picked."""
    x, out = view.need(0), view.out()
    if out is None:
        return
    pieces = _slices(view)
    axes: list[Axis] = []
    for i, axis in enumerate(view.axes(x)):
        same = (view.facts.dims(x) or [])[i] == (view.facts.dims(out) or [])[i]
        if (same and _spared(view, i)) if pieces is None else i not in pieces:
            axes.append(axis)
        elif pieces is None or isinstance(axis, Dynamic) or not view.facts.static(out, i):
            view.pin(axis, "its bounds are not known before the model runs")
            axes.append(view.still_axis(out, i, "its bounds are not known before the model runs"))
        else:
            axes.append(axis[_picked(len(axis), pieces[i])])
    view.give(out, axes, view.zero(x))


def _spared(view: View, axis: int) -> bool:
    """Say whether a slice with unknown bounds leaves an axis alone."""
    chosen = view.numbers(3, "axes")
    return chosen is not None and axis not in {i % view.rank(view.need(0)) for i in chosen}


@rewriter("Slice")
def rewrite_slice(rw: Rewriter, node: ir.Node) -> None:
    """Write new bounds; where the picked indices are no longer evenly spaced, a Gather picks them."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    rank = len(rw.facts.shape(x) or ())
    starts = _bounds(rw, node, 1, "starts")
    if starts is None or not any(rw.lost(x, i) for i in range(rank)):
        return
    ends = _bounds(rw, node, 2, "ends") or []
    axes = [i % rank for i in _bounds(rw, node, 3, "axes") or range(len(starts))]
    steps = _bounds(rw, node, 4, "steps") or [1] * len(starts)
    changed = False
    for k, axis in enumerate(axes):
        if not rw.lost(x, axis):
            continue
        changed = True
        flags = rw.flags(x, axis)
        place = np.cumsum(flags) - 1
        picked = _picked(len(flags), slice(_position(starts[k]), _position(ends[k]), steps[k]))
        left = place[picked[rw.flags(out, axis)]]
        if not len(left):
            starts[k], ends[k], steps[k] = 0, 0, 1
            continue
        gaps = np.diff(left)
        if len(left) > 1 and not (gaps == gaps[0]).all():
            starts[k], ends[k], steps[k] = 0, _END, 1
            places = rw.constant(left.astype(np.int64), node)
            gathered = rw.edit.before(node, "Gather", [node.inputs[0], places], {"axis": axis})
            node.replace_input_with(0, gathered)
            continue
        steps[k] = int(gaps[0]) if len(left) > 1 else 1
        starts[k] = int(left[0])
        last = int(left[-1]) + (1 if steps[k] > 0 else -1)
        ends[k] = last if last >= 0 else -_END
    if changed:
        _write_bounds(rw, node, starts, ends, axes, steps)


def _bounds(rw: Rewriter, node: ir.Node, i: int, attribute: str) -> list[int] | None:
    if attribute in node.attributes:
        return [int(n) for n in node.attributes[attribute].as_ints()]
    data = rw.facts.data(node.inputs[i]) if i < len(node.inputs) else None
    return None if data is None else [int(n) for n in np.atleast_1d(data)]


def _write_bounds(
    rw: Rewriter, node: ir.Node, starts: list[int], ends: list[int], axes: list[int], steps: list[int]
) -> None:
    if rw.opset < 10:
        for name, content in (("starts", starts), ("ends", ends), ("axes", axes)):
            rw.set_attribute(node, name, content)
        return
    for i, content in enumerate((starts, ends, axes, steps), start=1):
        rw.set_input(node, i, np.array(content, np.int64))


# -- Gather and Scatter ---------------------------------------------------------------------------------------------


@rule("Gather")
def gather(view: View) -> None:
    """Terms move with constant indices; indices known only at run time pin the axis they pick from."""
    if gathers_in_order(view.facts, view.node):
        gather_in_order(view)
        return
    _gather(view, view.int_attr("axis", 0) % view.rank(view.need(0)), view.data(1))


def _gather(view: View, along: int, data: npt.NDArray[np.generic] | None) -> None:
    """Pick from one axis of the first input; ``data`` are the indices, None where they are not constant."""
    axes, zero = view.axes(view.need(0)), view.zero(view.need(0))
    axis = axes[along]
    if data is not None and not isinstance(axis, Dynamic) and data.size:
        picked = axis[data.astype(np.int64)]
        if data.ndim == 1:
            middle: list[Axis] = [picked]
        else:
            view.pin(picked.reshape(-1), "single indices of the axis are picked")
            middle = [view.still(n, "indices are picked") for n in data.shape]
        flags = [zero[along]] * data.ndim
    else:
        if not view.pick(view.x(1), axis):
            view.pin(axis, "its indices are known only while the model runs")
        indices = view.need(1)
        lead = view.rank(indices) - (view.node.op_type == "GatherND")
        middle, flags = list(view.axes(indices))[:lead], [False] * lead
    view.give(view.out(), [*axes[:along], *middle, *axes[along + 1 :]], [*zero[:along], *flags, *zero[along + 1 :]])


@rewriter("Gather")
def rewrite_gather(rw: Rewriter, node: ir.Node) -> None:
    """Renumber constant indices; those whose unit went are dropped."""
    if gathers_in_order(rw.facts, node):
        rewrite_gather_in_order(rw, node)
        return
    x, data = node.inputs[0], rw.facts.data(node.inputs[1])
    assert x is not None
    along = node.attributes.get_int("axis", 0) % len(rw.facts.shape(x) or ())
    if data is not None and rw.lost(x, along):
        rw.set_input(node, 1, _renumbered(data, rw.flags(x, along)))


def _renumbered(data: npt.NDArray[np.generic], flags: Bools) -> npt.NDArray[np.generic]:
    """Return where the indices that are left have moved to; only a list of them may have lost some."""
    picked = data.astype(np.int64) % len(flags)
    new = (np.cumsum(flags) - 1)[picked]
    return (new[flags[picked]] if picked.ndim == 1 else new).astype(data.dtype)


def _tie_aligned(view: View, values: Sequence[ir.Value], skip: int, reason: str) -> list[Axis]:
    """Unify axes of equal extents of operands of equal rank; axis ``skip`` and unequal ones are pinned."""
    first = values[0]
    out: list[Axis] = []
    for i in range(view.rank(first)):
        mine = [view.axis(v, i) for v in values]
        same = all((view.facts.dims(v) or [])[i] == (view.facts.dims(first) or [])[i] for v in values)
        if i != skip and same:
            for other in mine[1:]:
                view.unify(mine[0], other)
        else:
            for axis in mine:
                view.pin(axis, reason)
        out.append(mine[0])
    return out


@rule("GatherElements")
def gather_elements(view: View) -> None:
    """Indices along one axis are data; the other axes unify."""
    x, indices = view.need(0), view.need(1)
    along = view.int_attr("axis", 0) % view.rank(x)
    _tie_aligned(view, [x, indices], along, "its indices are known only while the model runs")
    zero = [z and i != along for i, z in enumerate(view.zero(x))]
    view.give(view.out(), view.axes(indices), zero)


@rule("ScatterElements", "Scatter")
def scatter_elements(view: View) -> None:
    """Data, indices and updates unify on all axes but the one that is scattered along."""
    values = [view.need(i) for i in range(3)]
    along = view.int_attr("axis", 0) % view.rank(values[0])
    axes = _tie_aligned(view, values, along, "its indices are known only while the model runs")
    zero = [a and b for a, b in zip(view.zero(values[0]), view.zero(values[2]), strict=True)]
    view.give(view.out(), axes, zero)


@rule("GatherND")
def gather_nd(view: View) -> None:
    """Indexed axes are pinned, but by constant indices of one axis; batch axes unify, trailing axes carry over."""
    x, indices = view.need(0), view.need(1)
    data = view.data(1)
    if data is not None and _of_one_axis(view.node, data) and not isinstance(view.axis(x, 0), Dynamic):
        _gather(view, 0, data[..., 0])
        return
    if view.shape(indices)[-1] == 1 and view.int_attr("batch_dims", 0) == 0 and indices in view.findings.picks:
        view.pin(view.axis(indices, -1), "it holds index tuples")
        _gather(view, 0, None)
        return
    batch = view.int_attr("batch_dims", 0)
    depth = view.shape(indices)[-1]
    if depth is None:
        raise RuleMismatch("the length of its index tuples is not known")
    for i in range(batch):
        view.unify(view.axis(x, i), view.axis(indices, i))
    for i in range(batch, batch + depth):
        view.pin(view.axis(x, i), "its indices are known only while the model runs")
    view.pin(view.axis(indices, -1), "it holds index tuples")
    lead = view.rank(indices) - 1
    zero = [view.zero(x)[i] if i < batch else False for i in range(lead)]
    view.give(
        view.out(),
        [*view.axes(indices)[:-1], *view.axes(x)[batch + depth :]],
        [*zero, *view.zero(x)[batch + depth :]],
    )


def _of_one_axis(node: ir.Node, data: npt.NDArray[np.generic]) -> bool:
    """Say whether a GatherND with these indices does what a Gather along the first axis does."""
    return data.size > 0 and data.shape[-1] == 1 and node.attributes.get_int("batch_dims", 0) == 0


@rewriter("GatherND")
def rewrite_gather_nd(rw: Rewriter, node: ir.Node) -> None:
    """Renumber constant indices, as for Gather."""
    x, data = node.inputs[0], rw.facts.data(node.inputs[1])
    if x is not None and data is not None and _of_one_axis(node, data) and rw.lost(x, 0):
        rw.set_input(node, 1, _renumbered(data[..., 0], rw.flags(x, 0))[..., None])


@rule("ScatterND")
def scatter_nd(view: View) -> None:
    """Indexed axes are pinned; trailing axes of data and updates unify."""
    x, indices, updates = view.need(0), view.need(1), view.need(2)
    depth = view.shape(indices)[-1]
    if depth is None:
        raise RuleMismatch("the length of its index tuples is not known")
    for axis in (*view.axes(x)[:depth], *view.axes(indices)):
        view.pin(axis, "its indices are known only while the model runs")
    lead = view.rank(indices) - 1
    for axis in view.axes(updates)[:lead]:
        view.pin(axis, "it is placed by indices known only while the model runs")
    for i, j in zip(range(depth, view.rank(x)), range(lead, view.rank(updates)), strict=True):
        view.unify(view.axis(x, i), view.axis(updates, j))
    zero = [z and (i < depth or view.zero(updates)[lead + i - depth]) for i, z in enumerate(view.zero(x))]
    view.give(view.out(), view.axes(x), zero)


@rule("TensorScatter")
def tensor_scatter(view: View) -> None:
    """A cache is written along one axis; the others unify with the update."""
    x, update = view.need(0), view.need(1)
    along = view.int_attr("axis", -2) % view.rank(x)
    axes = _tie_aligned(view, [x, update], along, "it is written at positions known only while the model runs")
    if view.x(2) is not None:
        view.unify(axes[0], view.axis(view.need(2), 0))
    view.give(view.out(), axes, [a and b for a, b in zip(view.zero(x), view.zero(update), strict=True)])


# -- along one axis only --------------------------------------------------------------------------------------------


def _still_along(view: View, chosen: Sequence[int], reason: str, *, zero: bool = True) -> None:
    """Pin some axes of the first input; the others carry over to every output."""
    x = view.need(0)
    gone = {i % view.rank(x) for i in chosen}
    for out in view.node.outputs:
        if out.name == "" or view.facts.shape(out) is None:
            continue
        axes: list[Axis] = []
        for i, axis in enumerate(view.axes(x)):
            if i in gone:
                view.pin(axis, reason)
            axes.append(view.still_axis(out, i, reason) if i in gone else axis)
        view.give(out, axes, [z and zero and i not in gone for i, z in enumerate(view.zero(x))])


@rule("TopK")
def top_k(view: View) -> None:
    """Positions along the axis are results; indices can go where all that reads the positions picks by them.

    What is taken of the rest is something else than before, and as many must be left as are taken.
    """
    x, k, out = view.need(0), view.data(1), view.out(1)
    along = view.int_attr("axis", -1) % view.rank(x)
    axis = view.axis(x, along)
    if k is None or out is None or isinstance(axis, Dynamic) or not view.int_attr("largest", 1):
        _still_along(view, [along], "it ranks the indices of this axis", zero=False)
        return
    view.mix(0, along, "it ranks the indices of this axis")
    view.tag(axis, "experts")
    view.findings.picks[out] = axis
    view.findings.least.append((axis, int(k.reshape(-1)[0])))
    for result in view.node.outputs:
        if result.name != "" and view.facts.shape(result) is not None:
            taken = view.still_axis(result, along, "it is one of those taken")
            view.give(result, [taken if i == along else a for i, a in enumerate(view.axes(x))], [False] * view.rank(x))


@rule("Trilu")
def trilu(view: View) -> None:
    """What is zeroed depends on positions in the last two axes."""
    _still_along(view, [-1, -2], "it masks by position")


@rule("ReverseSequence")
def reverse_sequence(view: View) -> None:
    """The time axis is reversed up to lengths that are data."""
    _still_along(view, [view.int_attr("time_axis", 0), view.int_attr("batch_axis", 1)], "it reverses this axis")


@rule("Compress")
def compress(view: View) -> None:
    """What stays is known only while the model runs."""
    axis = view.node.attributes.get_int("axis", None)
    if axis is None:
        raise RuleMismatch("it flattens and picks at run time")
    _still_along(view, [axis], "what it picks is known only while the model runs")


@rule("CumSum", "CumProd")
def cumulative(view: View) -> None:
    """A running sum skips what is zero; a running product, or values that are not zero, do not."""
    x = view.need(0)
    along = view.numbers(1, "axis")
    if along is None:
        raise RuleMismatch("its axis is not known before the model runs")
    axis = along[0] % view.rank(x)
    if not (view.node.op_type == "CumSum" and view.zero(x)[axis]):
        view.mix(0, axis, "each index depends on those before it")
    view.give(view.out(), view.axes(x), [z and i != axis for i, z in enumerate(view.zero(x))])


# -- Pad and Resize -------------------------------------------------------------------------------------------------
