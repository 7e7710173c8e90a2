"""Repeating: Expand and Tile. A repeated index is a unit of its own; what was there before carries over."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis, Dynamic, parts
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import View


@rule("Expand")
def expand(view: View) -> None:
    """A repeated index is a unit of its own; what was there before carries over."""
    x, out = view.need(0), view.out()
    if out is None:
        return
    shape, full = view.shape(x), view.shape(out)
    axes: list[Axis] = []
    zero: list[bool] = []
    for i, extent in enumerate(full):
        j = i - (len(full) - len(shape))
        if j >= 0 and (shape[j] != 1 or extent == 1):
            axes.append(view.axis(x, j))
            zero.append(view.zero(x)[j])
        else:
            fixed = extent is not None and view.facts.static(out, i)
            axes.append(view.terms.fresh(int(extent or 0)) if fixed else _like_its_model(view, out, i))
            zero.append(False)
    view.give(out, axes, zero)


def _like_its_model(view: View, out: ir.Value, axis: int) -> Dynamic:
    """Make a dynamic axis divided like one of the same extents before it, such as batch x heads; its units are free.

    Where the guess is wrong, the axis matches no other and stays whole.
    """
    target, extents = view.need(1), (view.facts.dims(out) or [])[axis]
    if target not in view.facts.first.data or target not in view.facts.second.data:
        return Dynamic()
    model = view.findings.divided.get(extents, Dynamic())
    return Dynamic(tuple(None if f is None else view.terms.fresh(len(f)) for f in model.factors))


@rewriter("Expand")
def rewrite_expand(rw: Rewriter, node: ir.Node) -> None:
    """Write the new extents into the shape."""
    out = node.outputs[0]
    shape = node.inputs[1]
    assert shape is not None
    rank = len(rw.facts.shape(out) or ())
    entries = (rw.facts.shape(shape) or (0,))[0]
    if any(rw.lost(out, i) for i in range(rank)):
        if entries == rank:
            rw.patch_extents(node, 1, out)
        else:  # a shorter shape says nothing of the leading axes
            data = rw.facts.data(shape)
            new = [rw.extent(out, i) for i in range(rank)]
            if data is not None:
                lead = rank - int(entries or 0)
                kept = [
                    int(entry) if entry == 1 or not rw.lost(out, i) else new[i]
                    for i, entry in enumerate(data.tolist(), start=lead)
                ]
                rw.set_input(node, 1, np.array(kept, np.int64))


@rule("Tile")
def tile(view: View) -> None:
    """Index r n + i is the product of repetition r and index i."""
    x, out = view.need(0), view.out()
    repeats = view.data(1)
    if out is None:
        return
    axes: list[Axis] = []
    zero: list[bool] = []
    for i, axis in enumerate(view.axes(x)):
        zero.append(view.zero(x)[i])
        fixed = view.facts.static(out, i) and not isinstance(axis, Dynamic)
        if view.facts.dims(x) is not None and (view.facts.dims(x) or [])[i] == (view.facts.dims(out) or [])[i]:
            axes.append(axis)
        elif repeats is not None and fixed:
            count = int(repeats[i])
            new = view.terms.fresh(count)
            if view.shape(x)[i] != 1:
                view.terms.pin(new, f"{view.name}: a repetition goes only as a whole")
            axes.append(view.terms.product([new, parts(axis)[0]]))
        elif not isinstance(axis, Dynamic) and not view.facts.static(out, i) and view.shape(x)[i] != 1:
            axes.append(Dynamic((None, axis)))  # repeats that are computed from shapes count the original ones
        else:
            view.pin(axis, "its repeats are not known before the model runs")
            axes.append(view.still_axis(out, i, "its repeats are not known before the model runs"))
    view.give(out, axes, [z and n != 1 for z, n in zip(zero, view.shape(x), strict=True)])


@rewriter("Tile")
def rewrite_tile(rw: Rewriter, node: ir.Node) -> None:
    """Count the repetitions that are left."""
    data = rw.facts.data(node.inputs[1])
    out, x = node.outputs[0], node.inputs[0]
    if data is None or not any(rw.lost(out, i) for i in range(len(rw.facts.shape(out) or ()))):
        return
    repeats = data.astype(np.int64).copy()
    for i in range(len(rw.facts.shape(out) or ())):
        new, old = rw.extent(out, i), rw.extent(x, i)
        if new is not None and old and rw.lost(out, i):
            repeats[i] = new // old
    rw.set_input(node, 1, repeats)
