"""Mixtures of experts in one operator: whole experts go with their columns of the router, and their inner width.

MoE holds three stacks of matrices [experts, outputs, inputs]: fc1 and fc3 from the hidden to the inner width, fc2 back.
QMoE holds them in a few bits, so that what lies along their inputs goes in whole bytes, or in whole blocks of a scale.
With fused SwiGLU fc1 has two outputs for each inner one, next to each other or in two halves. (ONNX Runtime's
ContribOperators.md, MoE and QMoE.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.packed import Packed, layout_of, packed
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.terms import Ids
from onnxprune.structure.view import RuleMismatch, View

_GATED = ("swiglu", "geglu")
_RANKS = "it takes the best experts of each token"
_SUMS = "it sums products of values that are not zero when the unit is"


@rule("com.microsoft::MoE")
def experts(view: View) -> None:
    """Inputs: x, router, fc1 and its bias, fc2 and its bias, fc3 and its bias."""
    fc1, fc2 = view.need(2), view.need(4)
    hidden, inner = view.ids(view.need(0), -1), view.ids(fc2, 2)
    _check_layout(view, fc1, fc2, len(hidden), len(inner))
    for i in (2, 6):
        if view.x(i) is not None:
            view.unify(hidden, view.axis(view.need(i), 2))
    _follow(view, [(2, 3), (4, 5), (6, 7)], inner)


@rule("com.microsoft::QMoE")
def quantised_experts(view: View) -> None:
    """Inputs: x, router, then weights, scales and bias of fc1, fc2 and fc3, and their zero points."""
    layouts: dict[int, Packed] = {}
    for i in (2, 5, 8):
        if view.x(i) is None:
            continue
        layout = layout_of(view.node, i)
        if isinstance(layout, str):
            raise RuleMismatch(layout)
        layouts[i] = layout
    hidden = view.ids(view.need(0), -1)
    _check_layout(view, view.need(2), view.need(5), len(hidden), layouts[5].inputs)
    for i, layout in layouts.items():
        if not view.pack(view.need(i), layout):
            raise RuleMismatch(f"{view.need(i).name} is packed in another way for another node")
        _tie_scales(view, i, layout)
    inner = np.repeat(view.ids(view.need(5), 2), layouts[5].per_byte)
    for i in set(layouts) - {5}:
        view.terms.unify(hidden, np.repeat(view.ids(view.need(i), 2), layouts[i].per_byte))
    _follow(view, [(2, 4), (5, 7), (8, 10)], inner)
    if view.x(14) is not None:
        _tie_router(view, 14)


def _check_layout(view: View, fc1: ir.Value, fc2: ir.Value, hidden: int, inner: int) -> None:
    """Refuse weights that are not [experts, outputs, inputs]: an older layout is [experts, inputs, outputs]."""
    rows, outputs = view.shape(fc1)[1], view.shape(fc2)[1]
    fused = 2 if _is_fused(view) else 1
    if outputs != hidden or rows != fused * inner:
        raise RuleMismatch("its weights are in a layout that is not followed")


def _is_fused(view: View) -> bool:
    """Whether fc1 holds the gate as well: the kernels for CPUs take all of SwiGLU without an fc3 for fused."""
    gated = view.node.attributes.get_string("activation_type", "relu") in _GATED
    return gated and (view.int_attr("swiglu_fusion", 0) != 0 or view.x(8 if view.node.op_type == "QMoE" else 6) is None)


def _follow(view: View, projections: Sequence[tuple[int, int]], inner: Ids) -> None:
    """Tie experts, inner width and hidden width of fc1, fc2 and fc3, given as (weight, bias)."""
    x, fc2 = view.need(0), view.need(projections[1][0])
    stack, hidden = view.axis(fc2, 0), view.axis(x, -1)
    view.unify(hidden, view.axis(fc2, 1))
    _tie_router(view, 1)
    if view.rank(x) != 2:
        for axis in view.axes(x)[:-1]:
            view.pin(axis, "its tokens are rows of the router")
    for number, (weight, bias) in enumerate(projections, start=1):
        w, b = view.x(weight), view.x(bias)
        if w is None:
            continue
        if number != 2 and not (view.zero(x)[-1] or view.zero(w)[2]):
            view.mix(0, -1, _SUMS)
            view.mix(weight, 2, _SUMS)
        view.weight(w)
        view.unify(stack, view.axis(w, 0))
        if number != 2:
            view.terms.unify(view.ids(w, 1), _rows(view, inner) if number == 1 else inner)
        if b is not None:
            view.unify(stack, view.axis(b, 0))
            view.unify(view.axis(w, 1), view.axis(b, 1))
    view.tag(inner, "neurons")
    view.tag(hidden, "neurons")
    _mix(view, projections)
    second_bias = view.x(projections[1][1])
    zero = view.zero(fc2)[1] and (second_bias is None or view.zero(second_bias)[1])
    view.give(view.out(), view.axes(x), [*[False] * (view.rank(x) - 1), zero])


def _mix(view: View, projections: Sequence[tuple[int, int]]) -> None:
    """Experts are ranked; inner neurons are summed by fc2, and every activation leaves 0 as it is."""
    (first, bias), (second, _), _ = projections
    b = view.x(bias)
    view.mix(1, -1, _RANKS)
    silent = view.zero(view.need(first))[1] and (b is None or view.zero(b)[1])
    if not (silent or view.zero(view.need(second))[2]):
        view.mix(second, 2, _SUMS)


def _rows(view: View, inner: Ids) -> Ids:
    """The outputs of fc1, two for each inner one where the gate is fused: next to each other, or in two halves."""
    if not _is_fused(view):
        return inner
    return np.tile(inner, 2) if view.int_attr("swiglu_fusion", 0) == 2 else np.repeat(inner, 2)


def _tie_router(view: View, operand: int) -> None:
    """The router has a column for each expert; as many experts are left as it takes of each token."""
    router, x = view.need(operand), view.need(0)
    stack = view.ids(view.need(2), 0)
    view.unify(view.axis(router, -1), stack)
    view.tag(stack, "experts")
    view.findings.least.append((stack, view.int_attr("k", 1)))
    if view.rank(x) == 2:
        view.unify(view.axis(x, 0), view.axis(router, 0))
    else:
        view.pin(view.axis(router, 0), "its rows are tokens")


def _tie_scales(view: View, weight: int, layout: Packed) -> None:
    """One scale for each output, or for each block of inputs, whose bytes go together. Zero points are packed anew."""
    w, scales = view.need(weight), layout.scales
    for axis in (0, 1):
        view.unify(view.axis(w, axis), view.axis(scales, axis))
    if view.rank(scales) == 3:
        bytes_of_block = layout.block // layout.per_byte
        view.terms.unify(view.ids(w, 2), np.repeat(view.ids(scales, 2), bytes_of_block))


@rewriter("com.microsoft::QMoE")
def rewrite_quantised_experts(rw: Rewriter, node: ir.Node) -> None:
    """Pack the zero points of the experts, outputs and blocks that are left."""
    for number, i in enumerate((2, 5, 8), start=1):
        w = node.inputs[i] if i < len(node.inputs) else None
        layout = None if w is None else rw.structure.packed[w]
        if layout is None or layout.zero_points is None:
            continue
        stack, outputs, bytes_ = (rw.flags(w, axis) for axis in range(3))
        points = layout.points().reshape(*layout.lead, layout.blocks)[stack][:, outputs]
        blocks = bytes_.reshape(layout.blocks, -1).all(axis=1)
        whole = len(layout.zero_points.shape or ()) == 2
        new = packed(points[..., 0] if whole else points[..., blocks], layout.bits)
        rw.set_input(node, 10 + number, new)
