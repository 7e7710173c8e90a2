"""Pooling and sampling over spatial axes: batch and channels carry over, spatial axes are pinned."""

from __future__ import annotations

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rule
from onnxprune.structure.view import View


def spatial(view: View, *, channels: int = 1, keep_zero: bool = True) -> None:
    """Carry the batch and channel axes of input 0 over to every output."""
    x = view.need(0)
    for i in range(channels + 1, view.rank(x)):
        view.pin(view.axis(x, i), "it is a spatial axis")
    for out in view.node.outputs:
        if out.name == "" or view.facts.shape(out) is None:
            continue
        axes: list[Axis] = list(view.axes(x)[: channels + 1])
        axes += [view.still_axis(out, i, "it is a spatial axis") for i in range(channels + 1, view.rank(out))]
        zero = [keep_zero and i == channels and view.zero(x)[i] for i in range(len(axes))]
        view.give(out, axes, zero)


@rule("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
def pool(view: View) -> None:
    """Each channel on its own; where the positions of the largest elements are asked for, nothing can go."""
    if view.node.op_type == "MaxPool" and view.out(1) is not None:
        for axis in view.axes(view.need(0)):
            view.pin(axis, "it returns positions counted over the whole tensor")
    spatial(view)


@rule("GridSample")
def grid_sample(view: View) -> None:
    """Each channel is sampled at the same points."""
    grid = view.need(1)
    view.unify(view.axis(view.need(0), 0), view.axis(grid, 0))
    for axis in view.axes(grid)[1:]:
        view.pin(axis, "it holds sampling points")
    spatial(view)


@rule("RoiAlign", "MaxRoiPool")
def roi(view: View) -> None:
    """Channels carry over; the batch becomes the list of regions."""
    x, out = view.need(0), view.out()
    for i in (1, 2):
        value = view.x(i)
        for axis in view.axes(value) if value is not None else ():
            view.pin(axis, "it lists regions")
    if out is None:
        return
    for i in (0, 2, 3):
        view.pin(view.axis(x, i), "regions are cut out of it")
    rest = [view.still_axis(out, i, "regions are cut out of it") for i in (0, 2, 3)]
    view.give(out, [rest[0], view.axis(x, 1), *rest[1:]], [False, view.zero(x)[1], False, False])
