"""Values that come from nowhere or from shapes: ConstantOfShape, Shape, Size, Range, random numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import View


@rule("Constant")
def constant(view: View) -> None:
    """A constant that was not lifted to an initializer (a string, the result of a branch) is left alone.

    One without elements stands for a cache that a branch does not make: its fixed axes are free.
    """
    out = view.out()
    if out is not None and view.facts.shape(out) is not None:
        empty = 0 in view.shape(out) and view.node.attributes.get_tensor("value") is not None
        axes: list[Axis] = []
        for i, n in enumerate(view.shape(out)):
            free = empty and n is not None and n > 1
            axes.append(view.terms.fresh(int(n or 0)) if free else view.still_axis(out, i, "it is a constant"))
        view.give(out, axes, [empty] * len(axes))


@rewriter("Constant")
def rewrite_constant(rw: Rewriter, node: ir.Node) -> None:
    """Write a constant without elements in the new shape."""
    value, out = node.attributes.get_tensor("value"), node.outputs[0]
    if value is not None and any(rw.lost(out, i) for i in range(len(value.shape))):
        extents = [rw.extent(out, i) if rw.lost(out, i) else int(n) for i, n in enumerate(value.shape.numpy())]
        array = np.zeros([int(n or 0) for n in extents], value.numpy().dtype)
        node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(array))


@rule("ConstantOfShape")
def constant_of_shape(view: View) -> None:
    """Every fixed axis is free: a smaller constant is as good."""
    out = view.out()
    if out is None or view.facts.shape(out) is None:
        return
    value = view.node.attributes.get_tensor("value")
    fill = 0.0 if value is None else float(value.numpy().reshape(-1)[0])
    axes: list[Axis] = []
    for i, n in enumerate(view.shape(out)):
        fixed = n is not None and n > 1 and view.facts.static(out, i)
        axes.append(view.terms.fresh(int(n or 0)) if fixed else view.still_axis(out, i, "an axis of extent 1"))
    zero = ir.DataType(view.facts.dtype(out)).is_floating_point() and (fill == 0.0 or view.is_source(out))
    view.give(out, axes, [zero] * len(axes))


@rewriter("ConstantOfShape")
def rewrite_constant_of_shape(rw: Rewriter, node: ir.Node) -> None:
    """Write the new shape."""
    rw.patch_extents(node, 0, node.outputs[0])


@rule("Shape")
def shape(view: View) -> None:
    """A shape ties nothing: what is computed from it keeps the original numbers."""
    out = view.out()
    if out is not None:
        view.give(out, [view.still_axis(out, 0, "it is a shape")], [False])


@rewriter("Shape")
def rewrite_shape(rw: Rewriter, node: ir.Node) -> None:
    """Put the original extents in the place of the new ones."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    rank = len(rw.facts.shape(x) or ())
    picked = list(range(rank))[node.attributes.get_int("start", 0) : node.attributes.get_int("end", rank)]
    lost = [axis for axis in picked if rw.lost(x, axis)]
    if not lost:
        return
    users, original = list(out.uses()), out
    counts = {axis: rw.left(x, axis) for axis in lost if rw.keep.axis(x, axis) is None}
    if counts:  # batch x heads: as many times the heads that there were, over those that are left
        before, after = (np.array([counts[i][k] if i in counts else 1 for i in picked], np.int64) for k in (0, 1))
        original = rw.edit.after(node, "Mul", [original, rw.constant(before, node)], ending="all")
        original = rw.edit.after(_maker(original), "Div", [original, rw.constant(after, node)], ending="whole")
    mask = np.array([axis in lost and axis not in counts for axis in picked])
    if mask.any():
        extents = np.array([rw.old(x, i) if fixed else 0 for i, fixed in zip(picked, mask, strict=True)], np.int64)
        inputs = [rw.constant(mask, node), rw.constant(extents, node), original]
        original = rw.edit.after(_maker(original), "Where", inputs, ending="original")
    original.dtype = ir.DataType.INT64
    rw.facts.stand_in(original, out)
    for user, index in users:
        user.replace_input_with(index, original)


def _maker(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


@rule("Size")
def size(view: View) -> None:
    """The number of elements must stay, so nothing of the input can go."""
    x = view.need(0)
    for axis in view.axes(x):
        view.pin(axis, "it counts the elements")
    view.give(view.out(), [], [])


@rule("Range", "RandomNormal", "RandomUniform", "EyeLike", "NonZero", "OneHot", "RandomNormalLike", "RandomUniformLike")
def made_here(view: View) -> None:
    """A position along the new axes means something, so they are pinned; so is what they are shaped after."""
    for value in view.node.inputs:
        if value is not None and view.facts.shape(value) is not None:
            for axis in view.axes(value):
                view.pin(axis, "its position has a meaning")
    for out in view.node.outputs:
        if view.facts.shape(out) is not None:
            axes = [view.still_axis(out, i, "its position has a meaning") for i in range(view.rank(out))]
            view.give(out, axes, [False] * len(axes))
