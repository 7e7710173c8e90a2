"""Splitting and merging axes: Reshape, Flatten, DepthToSpace.

Old and new shape are cut into the shortest runs with equal products; in each run both sides get their common
refinement. A split axis becomes the product of its parts (heads x head size), a merged axis the product of what it is
made of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.graph.shapes import Facts
from onnxprune.structure.axes import Axis, Dynamic
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.terms import Ids
from onnxprune.structure.view import RuleMismatch, View

Pair = tuple[int, int]
"""An extent at both settings of the dynamic dimensions."""


@dataclass(frozen=True)
class Factor:
    """One part of the common refinement: its ids, None where its extent is not fixed."""

    ids: Ids | None
    zero: bool


def reshaped(
    view: View, axes: Sequence[Axis], zero: Sequence[bool], old: Sequence[Pair], new: Sequence[Pair]
) -> tuple[list[Axis], list[bool]]:
    """Return the axes and zero flags of a value of shape ``old`` seen as shape ``new``, in row-major order."""
    if any(0 in pair for pair in (*old, *new)):
        raise RuleMismatch("it has no elements")
    out_axes: list[Axis] = []
    out_zero: list[bool] = []
    for ins, outs in _runs(old, new):
        if len(ins) == len(outs) == 1:  # the same axis, whatever it is made of
            out_axes.append(axes[ins[0]])
            out_zero.append(zero[ins[0]])
            continue
        sizes = _refinement([old[i] for i in ins], [new[j] for j in outs])
        if sizes is None:
            for i in ins:
                view.pin(axes[i], "old and new shape have no common refinement")
            for j in outs:
                n = new[j][0] if new[j][0] == new[j][1] else None
                out_axes.append(view.still(n, "old and new shape have no common refinement"))
                out_zero.append(False)
            continue
        factors: list[Factor] = []
        used = 0
        for i in ins:
            mine = _take(sizes, used, old[i])
            used += len(mine)
            factors.extend(Factor(ids, zero[i]) for ids in _split_axis(view, axes[i], mine))
        used = 0
        for j in outs:
            count = len(_take(sizes, used, new[j]))
            axis, flag = _merged(view, factors[used : used + count])
            out_axes.append(axis)
            out_zero.append(flag)
            used += count
    return out_axes, out_zero


def _runs(old: Sequence[Pair], new: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Cut both shapes into the shortest runs of axes with equal products."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        ins, outs = [], []
        p, q = (1, 1), (1, 1)
        if i < len(old):
            p, ins, i = old[i], [i], i + 1
        if j < len(new):
            q, outs, j = new[j], [j], j + 1
        while p != q:
            if p <= q and i < len(old):
                p, ins, i = (p[0] * old[i][0], p[1] * old[i][1]), [*ins, i], i + 1
            elif j < len(new):
                q, outs, j = (q[0] * new[j][0], q[1] * new[j][1]), [*outs, j], j + 1
            elif i < len(old):
                p, ins, i = (p[0] * old[i][0], p[1] * old[i][1]), [*ins, i], i + 1
            else:
                raise RuleMismatch("its shapes have different numbers of elements")
        runs.append((ins, outs))
    return runs


def _refinement(old: Sequence[Pair], new: Sequence[Pair]) -> list[Pair] | None:
    """Return the extents of the common refinement of one run, None where there is none."""
    edges = {(1, 1)}
    for dims in (old, new):
        a = b = 1
        for x, y in reversed(dims):
            a, b = a * x, b * y
            edges.add((a, b))
    ordered = sorted(edges)
    sizes: list[Pair] = []
    for (a, b), (c, d) in zip(ordered, ordered[1:], strict=False):
        if c % a or d % b:
            return None
        sizes.append((c // a, d // b))
    return sizes[::-1]


def _take(sizes: Sequence[Pair], start: int, extent: Pair) -> list[Pair]:
    """Return the factors from ``start`` on whose product is ``extent``."""
    a = b = 1
    taken: list[Pair] = []
    while (a, b) != extent:
        x, y = sizes[start + len(taken)]
        a, b = a * x, b * y
        taken.append((x, y))
    return taken


def _split_axis(view: View, axis: Axis, sizes: Sequence[Pair]) -> list[Ids | None]:
    """Split one axis into its factors."""
    fixed = [a if a == b else None for a, b in sizes]
    if not isinstance(axis, Dynamic):
        if len(fixed) == 1:
            return [axis]
        numbers = [n for n in fixed if n is not None]
        return list(view.terms.split(axis, numbers)) if len(numbers) == len(fixed) and numbers else []
    runs = _runs_of_a_kind(fixed)
    ours = _merge_neighbours(view, axis.factors)
    if [None in r for r in runs] != [f is None for f in ours] or any(
        f is not None and math.prod(n or 0 for n in r) != len(f) for r, f in zip(runs, ours, strict=False)
    ):
        view.pin(axis, "its axes of unknown extent cannot be told apart")
        return [
            None if n is None else view.terms.pinned_axis(n, f"{view.name}: part of an unknown extent") for n in fixed
        ]
    out: list[Ids | None] = []
    for run, ids in zip(runs, ours, strict=True):
        if ids is None:
            out.extend([None] * len(run))
        else:
            out.extend(view.terms.split(ids, [n or 0 for n in run]) if len(run) > 1 else [ids])
    return out


def _runs_of_a_kind(fixed: Sequence[int | None]) -> list[list[int | None]]:
    """Cut extents into runs of known ones and runs of unknown ones."""
    return [list(run) for _, run in itertools.groupby(fixed, key=lambda n: n is None)]


def _merge_neighbours(view: View, factors: Sequence[Ids | None]) -> list[Ids | None]:
    out: list[Ids | None] = []
    for ids in factors:
        last = out[-1] if out else None
        if ids is not None and last is not None:
            out[-1] = view.terms.product([last, ids])
        elif not (ids is None and out and last is None):
            out.append(ids)
    return out


def _merged(view: View, factors: Sequence[Factor]) -> tuple[Axis, bool]:
    flag = all(f.zero for f in factors if f.ids is not None and not view.terms.all_pinned(f.ids))
    if not factors:
        return view.still(1, "an axis of extent 1"), False
    if all(f.ids is not None for f in factors):
        return view.terms.product([f.ids for f in factors if f.ids is not None]), flag
    return Dynamic(tuple(_merge_neighbours(view, [f.ids for f in factors]))), flag


def _pairs(view: View, value: ir.Value) -> list[Pair]:
    dims = view.facts.dims(value)
    if dims is None or any(a is None or b is None for a, b in dims):
        raise RuleMismatch(f"the shape of {value.name} is not known")
    return [(int(a or 0), int(b or 0)) for a, b in dims]


# -- Reshape and Flatten --------------------------------------------------------------------------------------------


@rule("Reshape", "Flatten")
def reshape(view: View) -> None:
    """The same elements in the same order under another shape."""
    x, out = view.need(0), view.out()
    if out is None:
        return
    axes, zero = reshaped(view, view.axes(x), view.zero(x), _pairs(view, x), _pairs(view, out))
    if view.node.op_type == "Reshape":
        for i, axis in enumerate(axes):
            if isinstance(axis, Dynamic) and axis.static and not _can_rescale(view, i):
                view.pin(axis, "its extent is computed while the model runs")
    view.give(out, axes, zero)


def _can_rescale(view: View, axis: int) -> bool:
    """Say whether the target stays right where dynamic axis ``axis`` loses units.

    An entry that is computed from shapes is the original extent, which the rewriter scales; -1 and 0 need nothing.
    Of a target that nobody knows, one entry can be made a -1.
    """
    target, out = view.x(1), view.out()
    if target is None or out is None:
        return True
    first, second = view.facts.first.data.get(target), view.facts.second.data.get(target)
    if first is None or second is None:
        return all(view.facts.static(out, i) or i == axis for i in range(view.rank(out)))
    return bool(first[axis] > 0) == bool(second[axis] > 0)


@rewriter("Reshape")
def rewrite_reshape(rw: Rewriter, node: ir.Node) -> None:
    """Write the new extents into the target."""
    out = node.outputs[0]
    if not any(rw.lost(out, i) for i in range(len(rw.facts.shape(out) or ()))):
        return
    if "shape" in node.attributes:  # opset 1 to 4
        entries = list(node.attributes["shape"].as_ints())
        new = [rw.extent(out, i) if rw.lost(out, i) else e for i, e in enumerate(entries)]
        rw.set_attribute(node, "shape", [-1 if n is None else n for n in new])
    elif rw.facts.data(node.inputs[1]) is None and _one_unknown(rw, node, out):
        rw.set_input(node, 1, np.array([n if (n := rw.extent(out, i)) is not None else -1 for i in _axes(rw, out)]))
    else:
        rw.patch_extents(node, 1, out, infer_one=True)


def _axes(rw: Rewriter, value: ir.Value) -> range:
    return range(len(rw.facts.shape(value) or ()))


def _one_unknown(rw: Rewriter, node: ir.Node, out: ir.Value) -> bool:
    return sum(rw.extent(out, i) is None for i in _axes(rw, out)) <= 1


# -- Gather that moves nothing --------------------------------------------------------------------------------------


def gathers_in_order(facts: Facts, node: ir.Node) -> bool:
    """Say whether a Gather picks all of a flat value in order, as exporters write ``as_strided``: it only reshapes.

    Its indices may be computed from shapes; then that must hold at both settings of the dynamic dimensions.
    """
    x, indices = node.inputs[0], node.inputs[1]
    if x is None or indices is None or len(facts.shape(x) or ()) != 1:
        return False
    for probe in (facts.first, facts.second):
        data, extent = probe.data.get(indices), probe.shapes[x][0]
        if data is None or data.size != extent or not np.array_equal(data.reshape(-1), np.arange(extent)):
            return False
    return len([i for i, (a, b) in enumerate(facts.dims(node.outputs[0]) or []) if a != b]) <= 1


def gather_in_order(view: View) -> None:
    """Tie the axes of such a Gather as those of a Reshape."""
    x, out = view.need(0), view.out()
    if out is not None:
        view.give(out, *reshaped(view, view.axes(x), view.zero(x), _pairs(view, x), _pairs(view, out)))


def rewrite_gather_in_order(rw: Rewriter, node: ir.Node) -> None:
    """Write such a Gather as a Reshape."""
    out = node.outputs[0]
    if any(rw.lost(out, i) for i in _axes(rw, out)):
        extents = [rw.extent(out, i) for i in _axes(rw, out)]
        node.op_type = "Reshape"
        node.attributes.clear()
        rw.set_input(node, 1, np.array([-1 if n is None else n for n in extents], np.int64))


# -- DepthToSpace, SpaceToDepth -------------------------------------------------------------------------------------


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(view: View) -> None:
    """[N, C b b, H, W] <-> [N, C, H b, W b], as a reshape, a transpose and a reshape."""
    x, out = view.need(0), view.out()
    if out is None:
        return
    b = view.int_attr("blocksize", 1)
    n, c, h, w = _pairs(view, x)
    axes, zero = view.axes(x), view.zero(x)
    side = (b, b)
    if view.node.op_type == "DepthToSpace":
        small = (c[0] // (b * b), c[1] // (b * b))
        crd = view.node.attributes.get_string("mode", "DCR") == "CRD"
        middle = [n, small, side, side, h, w] if crd else [n, side, side, small, h, w]
        sides = [2, 3] if crd else [1, 2]
        order = [0, 1, 4, 2, 5, 3] if crd else [0, 3, 4, 1, 5, 2]
    else:
        middle = [n, c, (h[0] // b, h[1] // b), side, (w[0] // b, w[1] // b), side]
        sides = [3, 5]
        crd = view.node.attributes.get_string("mode", "DCR") == "CRD"
        order = [0, 1, 3, 5, 2, 4] if crd else [0, 3, 5, 1, 2, 4]
    axes, zero = reshaped(view, axes, zero, [n, c, h, w], middle)
    for i in sides:
        view.pin(axes[i], "it is a position inside a block")
    moved = [middle[i] for i in order]
    axes, zero = reshaped(view, [axes[i] for i in order], [zero[i] for i in order], moved, _pairs(view, out))
    view.give(out, axes, zero)
