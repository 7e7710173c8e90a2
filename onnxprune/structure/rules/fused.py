"""Operators fused from simpler ones: norms with a skip, embeddings, gated activations, convolutions with a state."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.structure.registry import rule
from onnxprune.structure.rules.elementwise import aligned, elementwise
from onnxprune.structure.view import RuleMismatch, View

_STATISTICS = "its mean and variance run over this axis"


def _give_normalised(view: View, total: ir.Value, affine: Sequence[int], sum_output: int, sum_zero: list[bool]) -> None:
    """Give a norm over the last axis its output, statistics and the sum that it was taken of."""
    width, rank = view.axis(total, -1), view.rank(total)
    zero = True
    for i in affine:
        operand = view.x(i)
        if operand is not None:
            view.unify(width, view.axis(operand, -1))
            zero = zero and view.zero(operand)[-1]
    for i, out in enumerate(view.node.outputs):
        if out.name == "" or view.facts.shape(out) is None:
            continue
        if i in (0, sum_output):
            view.give(out, view.axes(total), sum_zero if i else [*[False] * (rank - 1), zero])
        else:
            view.give(out, [*view.axes(total)[:-1], view.still(1, "an axis of extent 1")], [False] * rank)


@rule("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
def skip_layer_norm(view: View) -> None:
    """The norm of input + skip + bias over the last axis; the sum itself is output 3."""
    affine, bias = ((2, 3), 4) if view.node.op_type == "SkipLayerNormalization" else ((2,), 3)
    x = view.need(0)
    addends = [x, view.need(1), *([b] if (b := view.x(bias)) is not None else [])]
    _, zero = aligned(view, addends, x, all)
    view.mix(0, -1, _STATISTICS)
    _give_normalised(view, x, affine, 3, zero)


@rule("com.microsoft::EmbedLayerNormalization")
def embed_layer_norm(view: View) -> None:
    """The norm of the sum of word, position and segment embeddings; the sum itself is output 2."""
    ids = view.need(0)
    tables = [table for i in (2, 3, 4) if (table := view.x(i)) is not None]
    for table in tables:
        view.unify(view.axis(tables[0], 1), view.axis(table, 1))
        view.pin(view.axis(table, 0), "its rows are looked up")
    for i in (0, 1, 7, 8):
        value = view.x(i)
        for axis in view.axes(value) if value is not None else ():
            view.pin(axis, "it holds tokens or positions")
    view.mix(2, 1, _STATISTICS)
    zero, width = True, view.axis(tables[0], 1)
    for i in (5, 6):
        affine = view.need(i)
        view.unify(width, view.axis(affine, 0))
        zero = zero and view.zero(affine)[0]
    axes = [*view.axes(ids), width]
    view.give(view.out(0), axes, [False, False, zero])
    mask, total = view.out(1), view.out(2)
    if mask is not None:
        view.give(mask, [view.axis(ids, 0)], [False])
    if total is not None:
        view.give(total, axes, [False, False, all(view.zero(t)[1] for t in tables)])


@rule("SwiGLU")
def swiglu(view: View) -> None:
    """swish(a) x b: zero where one of them is."""
    elementwise(view, any)


@rule("BitCast")
def bit_cast(view: View) -> None:
    """The same bits under another type of the same width: all bits of zero are zero."""
    elementwise(view, all)


@rule("CausalConvWithState", "com.microsoft::CausalConvWithState")
def causal_conv(view: View) -> None:
    """Depthwise convolution over time: input, weight [channels, 1, taps], bias, past state -> output, state."""
    x, w = view.need(0), view.need(1)
    if view.rank(x) != 3 or view.rank(w) != 3 or view.int_attr("channels_last", 0) or view.int_attr("state_window", 0):
        raise RuleMismatch("only the plain layout [batch, channels, time] is followed")
    channels = view.axis(w, 0)
    view.weight(w)
    view.tag(channels, "channels")
    view.pin(view.axis(w, 2), "it is a side of the kernel")
    view.pin(view.axis(x, 2), "positions in a sequence have a meaning")
    view.unify(channels, view.axis(x, 1))
    bias, past, zero, state_zero = view.x(2), view.x(3), view.zero(w)[0], view.zero(x)[1]
    if bias is not None:
        view.unify(channels, view.axis(bias, 0))
        zero = zero and view.zero(bias)[0]
    if past is not None:
        view.unify(channels, view.axis(past, 1))
        view.unify(view.axis(x, 0), view.axis(past, 0))
        view.pin(view.axis(past, 2), "positions in a sequence have a meaning")
        state_zero = state_zero and view.zero(past)[1]
    for i, flag in ((0, zero), (1, state_zero)):
        out = view.out(i)
        if out is not None and view.facts.shape(out) is not None:
            time = view.still_axis(out, 2, "positions in a sequence have a meaning")
            view.give(out, [view.axis(x, 0), channels, time], [False, flag, False])
