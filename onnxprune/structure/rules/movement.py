"""Moving whole axes or runs of indices: terms move with their indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis, Dynamic, parts
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import RuleMismatch, View


@rule("Transpose")
def transpose(view: View) -> None:
    """Axes change places."""
    x = view.need(0)
    order = view.ints_attr("perm") or list(range(view.rank(x)))[::-1]
    axes, zero = view.axes(x), view.zero(x)
    view.give(view.out(), [axes[i] for i in order], [zero[i] for i in order])


@rule("Squeeze")
def squeeze(view: View) -> None:
    """Axes of extent 1 go."""
    x = view.need(0)
    shape = view.shape(x)
    chosen = view.numbers(1, "axes")
    if chosen is None:
        if view.x(1) is not None:
            raise RuleMismatch("its axes are not known before the model runs")
        chosen = [i for i, n in enumerate(shape) if n == 1]
    gone = {i % len(shape) for i in chosen}
    stay = [i for i in range(len(shape)) if i not in gone]
    view.give(view.out(), [view.axis(x, i) for i in stay], [view.zero(x)[i] for i in stay])


@rule("Unsqueeze")
def unsqueeze(view: View) -> None:
    """New axes of extent 1."""
    x = view.need(0)
    chosen = view.numbers(1, "axes")
    if chosen is None:
        raise RuleMismatch("its axes are not known before the model runs")
    rank = view.rank(x) + len(chosen)
    new = {i % rank for i in chosen}
    axes, zero = iter(view.axes(x)), iter(view.zero(x))
    view.give(
        view.out(),
        [view.still(1, "an axis of extent 1") if i in new else next(axes) for i in range(rank)],
        [False if i in new else next(zero) for i in range(rank)],
    )


@rule("Concat")
def concat(view: View) -> None:
    """Indices are laid end to end along one axis; all other axes unify."""
    values = [view.need(i) for i in range(len(view.node.inputs))]
    view.give(view.out(), *joined(view, values, view.int_attr("axis", 1) % view.rank(values[0])))


def joined(view: View, values: Sequence[ir.Value], along: int) -> tuple[list[Axis], list[bool]]:
    """Return the axes and zero flags of values laid end to end."""
    rank = view.rank(values[0])
    axes: list[Axis] = []
    zero = [all(view.zero(v)[i] for v in values) for i in range(rank)]
    for i in range(rank):
        mine = [view.axis(v, i) for v in values]
        if i == along:
            axes.append(_joined(view, mine))
        else:
            for other in mine[1:]:
                view.unify(mine[0], other)
            axes.append(mine[0])
    return axes, zero


def _joined(view: View, pieces: list[Axis]) -> Axis:
    if len(pieces) == 1:
        return pieces[0]
    if any(isinstance(p, Dynamic) for p in pieces):
        for piece in pieces:
            if parts(piece):
                view.pin(piece, "it is joined to an axis of unknown extent")
        return Dynamic()
    return np.concatenate([p for p in pieces if not isinstance(p, Dynamic)])


@rule("Split")
def split(view: View) -> None:
    """One axis is cut into runs."""
    x = view.need(0)
    along = view.int_attr("axis", 0) % view.rank(x)
    source = view.axis(x, along)
    start = 0
    for out in view.node.outputs:
        extent = view.shape(out)[along]
        if isinstance(source, Dynamic) or extent is None or not view.facts.static(out, along):
            view.pin(source, "its runs have no fixed extent")
            piece: Axis = view.still_axis(out, along, "its runs have no fixed extent")
        else:
            piece = source[start : start + extent]
            start += extent
        axes = [piece if i == along else a for i, a in enumerate(view.axes(x))]
        view.give(out, axes, view.zero(x))


@rewriter("Split")
def rewrite_split(rw: Rewriter, node: ir.Node) -> None:
    """Write the new length of each run."""
    x = node.inputs[0]
    assert x is not None
    along = node.attributes.get_int("axis", 0) % len(rw.facts.shape(x) or ())
    if not rw.lost(x, along):
        return
    sizes = [rw.extent(out, along) or 0 for out in node.outputs]
    if rw.opset < 13:
        rw.set_attribute(node, "split", sizes)
    else:
        rw.set_input(node, 1, np.array(sizes, np.int64))
        node.attributes.pop("num_outputs", None)
