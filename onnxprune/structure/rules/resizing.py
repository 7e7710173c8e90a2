"""Pad, Resize and CenterCropPad: an axis gets another extent, and its other indices keep their terms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis, Dynamic
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.rules.indexing import _still_along
from onnxprune.structure.view import View


def _pads(view: View) -> list[tuple[int, int]] | None:
    """Return (before, after) for each axis of the input, None where not known."""
    numbers = view.numbers(1, "pads")
    if numbers is None:
        numbers = view.ints_attr("paddings")
    rank = view.rank(view.need(0))
    if numbers is None or (view.x(3) is not None and view.data(3) is None):
        return None
    chosen = [int(i) % rank for i in view.data(3)] if view.data(3) is not None else list(range(rank))  # type: ignore[union-attr]
    pads = [(0, 0)] * rank
    for k, axis in enumerate(chosen):
        pads[axis] = (numbers[k], numbers[k + len(chosen)])
    return pads


@rule("Pad")
def pad(view: View) -> None:
    """Constant padding adds indices that can go on their own; other modes repeat what is there."""
    x, out = view.need(0), view.out()
    pads = _pads(view)
    if out is None:
        return
    constant = view.node.attributes.get_string("mode", "constant") == "constant"
    data = view.data(2)
    fill = view.node.attributes.get_float("value", 0.0) if view.x(2) is None else None if data is None else float(data)
    axes: list[Axis] = []
    for i, axis in enumerate(view.axes(x)):
        if (pads is not None and pads[i] == (0, 0)) or (pads is None and _untouched(view, x, out, i)):
            axes.append(axis)
        elif pads is None or not constant or isinstance(axis, Dynamic) or min(pads[i]) < 0:
            view.pin(axis, "it is padded with what is not constant, or by a number known only at run time")
            axes.append(view.still_axis(out, i, "it is padded"))
        else:
            before, after = (view.terms.fresh(n) for n in pads[i])
            axes.append(np.concatenate([before, axis, after]))
    view.give(out, axes, [z and fill == 0.0 for z in view.zero(x)])


def _untouched(view: View, x: ir.Value, out: ir.Value, i: int) -> bool:
    return view.facts.static(x, i) and (view.facts.dims(x) or [])[i] == (view.facts.dims(out) or [])[i]


@rewriter("Pad")
def rewrite_pad(rw: Rewriter, node: ir.Node) -> None:
    """Count the padded indices that are left on each side."""
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    rank = len(rw.facts.shape(x) or ())
    name = "pads" if "pads" in node.attributes else "paddings"
    if name in node.attributes:
        numbers: list[int] | None = [int(n) for n in node.attributes[name].as_ints()]
    else:
        data = rw.facts.data(node.inputs[1])
        numbers = None if data is None else [int(n) for n in data]
    if numbers is None:
        return
    chosen = rw.facts.data(node.inputs[3]) if len(node.inputs) > 3 else None
    axes = [int(i) % rank for i in chosen] if chosen is not None else list(range(rank))
    count = len(axes)
    changed = False
    for k, axis in enumerate(axes):
        if (numbers[k] or numbers[k + count]) and rw.lost(out, axis):
            flags = rw.flags(out, axis)
            before = numbers[k]
            numbers[k] = int(flags[:before].sum())
            numbers[k + count] = int(flags[before + rw.old(x, axis) :].sum())
            changed = True
    if changed and name in node.attributes:
        rw.set_attribute(node, name, numbers)
    elif changed:
        rw.set_input(node, 1, np.array(numbers, np.int64))


@rule("Resize", "Upsample")
def resize(view: View) -> None:
    """An axis whose extent stays is untouched; a resized axis is pinned."""
    x, out = view.need(0), view.out()
    if out is None:
        return
    crop = view.node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    policy = view.node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch"
    axes: list[Axis] = []
    for i, axis in enumerate(view.axes(x)):
        same = (view.facts.dims(x) or [])[i] == (view.facts.dims(out) or [])[i]
        if same and not crop and not policy:
            axes.append(axis)
        else:
            view.pin(axis, "it is resampled")
            axes.append(view.still_axis(out, i, "it is resampled"))
    view.give(out, axes, view.zero(x))


@rewriter("Resize")
def rewrite_resize(rw: Rewriter, node: ir.Node) -> None:
    """Write new extents into the sizes, where sizes are given."""
    out = node.outputs[0]
    if len(node.inputs) > 3 and node.inputs[3] is not None and "axes" not in node.attributes:
        rw.patch_extents(node, 3, out)


@rule("CenterCropPad")
def center_crop_pad(view: View) -> None:
    """Cropped or padded axes are pinned."""
    x = view.need(0)
    _still_along(view, view.ints_attr("axes") or range(view.rank(x)), "it is cropped or padded around its centre")
