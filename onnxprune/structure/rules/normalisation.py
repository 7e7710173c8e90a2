"""Normalisations: per-channel ones carry channels over; an axis that statistics run over is mixed."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import View

_STATISTICS = "its mean and variance run over this axis"


def _affine_zero(view: View, *operands: int) -> bool:
    """Say whether scale and bias at these inputs, where present, are zeroed with their unit."""
    values = [v for i in operands if (v := view.x(i)) is not None]
    return all(view.zero(v)[-1] for v in values)


@rule("BatchNormalization")
def batch_norm(view: View) -> None:
    """Everything is per channel (axis 1)."""
    x = view.need(0)
    channel = view.axis(x, 1 if view.rank(x) > 1 else 0)
    for i in range(1, 5):
        view.unify(channel, view.axis(view.need(i), 0))
    if view.int_attr("training_mode", 0) or (view.opset < 14 and view.out(1) is not None):
        for i in range(view.rank(x)):
            if i != 1:
                view.mix(0, i, _STATISTICS)
    zero = [False] * view.rank(x)
    zero[1 if view.rank(x) > 1 else 0] = _affine_zero(view, 1, 2)
    view.give(view.out(), view.axes(x), zero)
    for i in range(1, len(view.node.outputs)):
        if view.out(i) is not None:
            view.give(view.out(i), [channel], [False])


@rule("InstanceNormalization")
def instance_norm(view: View) -> None:
    """Channels carry over; statistics run over the rest."""
    x = view.need(0)
    for i in (1, 2):
        view.unify(view.axis(x, 1), view.axis(view.need(i), 0))
    for i in range(2, view.rank(x)):
        view.mix(0, i, _STATISTICS)
    zero = [False, _affine_zero(view, 1, 2), *(False for _ in range(2, view.rank(x)))]
    view.give(view.out(), view.axes(x), zero)


@rule("GroupNormalization", "com.microsoft::GroupNorm")
def group_norm(view: View) -> None:
    """Channels are groups times members; groups go exactly, members are mixed."""
    x = view.need(0)
    last = view.node.domain != ""
    c = view.rank(x) - 1 if last and view.int_attr("channels_last", 1) else 1
    groups = view.int_attr("groups" if last else "num_groups", 1)
    ids = view.ids(x, c)
    group, member = view.terms.split(ids, (groups, len(ids) // groups))
    view.mix(0, c, _STATISTICS, member)
    for i in (1, 2):
        affine = view.need(i)
        view.unify(ids if view.shape(affine)[0] == len(ids) else group, view.axis(affine, 0))
    for i in range(view.rank(x)):
        if i not in (0, c):
            view.mix(0, i, _STATISTICS)
    zero = [i == c and _affine_zero(view, 1, 2) and not last for i in range(view.rank(x))]
    view.give(view.out(), view.axes(x), zero)


@rewriter("GroupNormalization", "com.microsoft::GroupNorm")
def rewrite_group_norm(rw: Rewriter, node: ir.Node) -> None:
    """Count the groups that are left."""
    x = node.inputs[0]
    assert x is not None
    name = "groups" if node.domain else "num_groups"
    last = node.domain != "" and node.attributes.get_int("channels_last", 1) != 0
    c = len(rw.facts.shape(x) or ()) - 1 if last else 1
    groups = node.attributes.get_int(name, 1)
    if not rw.lost(x, c):
        return
    flags = rw.flags(x, c).reshape(groups, -1)
    rw.set_attribute(node, name, int(flags.any(axis=1).sum()))


def normalise_last(view: View, x: int, first: int, affine: Sequence[int], out_axes: list[Axis] | None = None) -> None:
    """Statistics over the axes from ``first`` on; scale and bias broadcast against the last axes."""
    value = view.need(x)
    rank = view.rank(value)
    first %= rank
    for i in range(first, rank):
        view.mix(x, i, _STATISTICS)
    zero = [False] * first + [True] * (rank - first)
    for k in affine:
        operand = view.x(k)
        if operand is None:
            continue
        for j in range(view.rank(operand)):
            i = rank - view.rank(operand) + j
            if view.shape(operand)[j] != 1 or view.shape(value)[i] == 1:
                view.unify(view.axis(value, i), view.axis(operand, j))
                zero[i] = zero[i] and view.zero(operand)[j]
            else:
                zero[i] = False
        for i in range(first, rank - view.rank(operand)):
            zero[i] = False
    axes = out_axes or view.axes(value)
    for k, out in enumerate(view.node.outputs):
        if out.name == "" or view.facts.shape(out) is None:
            continue
        if view.shape(out) == view.shape(value):
            view.give(out, axes, zero if k == 0 else [False] * rank)
        elif view.rank(out) == rank:
            kept = [a if i < first else view.still(1, "an axis of extent 1") for i, a in enumerate(axes)]
            view.give(out, kept, [False] * rank)


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(view: View) -> None:
    """Over the last axes, from ``axis`` on."""
    normalise_last(view, 0, view.int_attr("axis", -1), (1, 2))


@rule("MeanVarianceNormalization")
def mean_variance(view: View) -> None:
    """Over the axes given, by default all but channels."""
    x = view.need(0)
    over = {i % view.rank(x) for i in (view.ints_attr("axes") or [0, 2, 3])}
    for i in over:
        view.mix(0, i, _STATISTICS)
    view.give(view.out(), view.axes(x), [z and i not in over for i, z in enumerate(view.zero(x))])


@rule("LRN")
def lrn(view: View) -> None:
    """Each channel is divided by a sum over its neighbours."""
    x = view.need(0)
    view.mix(0, 1, "each channel depends on its neighbours")
    view.give(view.out(), view.axes(x), view.zero(x))


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(view: View) -> None:
    """The axis sums to one; before opset 13 so do all axes behind it."""
    softmax_of_opset(view, view.opset)


def softmax_of_opset(view: View, opset: int) -> None:
    """Tie the axes of a Softmax as that opset defines it."""
    x = view.need(0)
    rank = view.rank(x)
    old = opset < 13
    axis = view.int_attr("axis", 1 if old else -1) % rank
    for i in range(axis, rank if old else axis + 1):
        view.mix(0, i, "it is normalised over this axis")
    view.give(view.out(), view.axes(x), [False] * rank)


@rule("LpNormalization")
def lp_norm(view: View) -> None:
    """A norm does not see zeros; a row that is all zero would be divided by zero."""
    x = view.need(0)
    axis = view.int_attr("axis", -1) % view.rank(x)
    for i, zero in enumerate(view.zero(x)):
        if i == axis and not zero:
            view.mix(0, i, "it is normalised over this axis")
        elif i != axis and zero:
            view.pin(view.axis(x, i), "the norm of a removed unit would be zero")
    view.give(view.out(), view.axes(x), [z and i == axis for i, z in enumerate(view.zero(x))])
