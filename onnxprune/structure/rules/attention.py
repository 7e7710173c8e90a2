"""Attention as one operator: heads and head sizes of queries, keys and values.

Query head h reads key head h // groups, so with grouped queries a head is the product of a key head and a place in
its group. Queries and keys are contracted over the head size; values keep a head size of their own, which becomes the
output's. The scale stays what the original head size made it: it is written out when that shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.rules.contraction import contract
from onnxprune.structure.terms import Bools, Ids
from onnxprune.structure.view import RuleMismatch, View

POSITIONS = "positions in a sequence have a meaning"


@dataclass(frozen=True, eq=False)
class Heads:
    """Queries, keys or values by head.

    Attributes:
        heads: Ids of the heads.
        size: Ids of the positions inside a head, the same in every head.
        zero: Whether removed heads, and removed positions, hold zeros.
        place: The (input, axis) that positions lie on, for a report.
    """

    heads: Ids
    size: Ids
    zero: tuple[bool, bool]
    place: tuple[int, int]


def packed(view: View, ids: Ids, heads: int, zero: bool, place: tuple[int, int]) -> Heads:
    """Read an axis of extent heads x size."""
    if heads < 1 or len(ids) % heads:
        raise RuleMismatch("its width cannot be divided by its heads")
    head, size = view.terms.split(ids, (heads, len(ids) // heads))
    return Heads(head, size, (zero, zero), place)


def operand(view: View, i: int, heads: int) -> Heads:
    """Read input ``i``: [batch, sequence, heads x size] or [batch, heads, sequence, size]."""
    x = view.need(i)
    if view.rank(x) == 3:
        view.pin(view.axis(x, 1), POSITIONS)
        return packed(view, view.ids(x, 2), heads, view.zero(x)[2], (i, 2))
    if view.rank(x) != 4:
        raise RuleMismatch("an operand has neither three nor four axes")
    view.pin(view.axis(x, 2), POSITIONS)
    return Heads(view.ids(x, 1), view.ids(x, 3), (view.zero(x)[1], view.zero(x)[3]), (i, 3))


def with_past(view: View, one: Heads, i: int) -> Heads:
    """Tie a cache [batch, heads, sequence, size] to what is appended to it."""
    past = view.x(i)
    if past is None:
        return one
    view.unify(one.heads, view.axis(past, 1))
    view.unify(one.size, view.axis(past, 3))
    view.pin(view.axis(past, 2), POSITIONS)
    zero = view.zero(past)
    return replace(one, zero=(one.zero[0] and zero[1], one.zero[1] and zero[3]))


def attend(view: View, q: Heads, k: Heads, v: Heads) -> tuple[bool, bool]:
    """Tie the heads and head sizes; return whether removed heads and positions of the output hold zeros."""
    groups, left = divmod(len(q.heads), len(k.heads))
    if left or len(k.heads) != len(v.heads):
        raise RuleMismatch("its numbers of heads do not fit")
    lead = q.heads if groups == 1 else view.terms.split(q.heads, (len(k.heads), groups))[0]
    view.unify(lead, k.heads)
    view.unify(k.heads, v.heads)
    view.unify(q.size, k.size)
    if not (q.zero[1] or k.zero[1]):
        view.mix(*q.place, "it sums products of values that are not zero when the unit is", q.size)
    for one in (q, k, v):
        view.tag(one.heads, "heads")
        view.tag(one.size, "head-size")
    return v.zero[0] and groups == 1, v.zero[1]


def tie_mask(view: View, i: int, heads: Ids) -> None:
    """A mask [..., heads or 1, queries, keys] broadcasts against the scores."""
    mask = view.x(i)
    if mask is None:
        return
    rank = view.rank(mask)
    for axis in range(rank):
        if axis == rank - 3 and view.shape(mask)[axis] not in (None, 1):
            view.unify(heads, view.axis(mask, axis))
        elif view.shape(mask)[axis] != 1:
            view.pin(view.axis(mask, axis), POSITIONS)


def pin_batch(view: View, *operands: int) -> Axis:
    """Pin the leading axis of all operands; return that of the first."""
    values = [v for i in operands if (v := view.x(i)) is not None]
    for value in values:
        view.pin(view.axis(value, 0), "it is the batch")
    return view.axis(values[0], 0)


def pin_all(view: View, *operands: int) -> None:
    for i in operands:
        value = view.x(i)
        for axis in view.axes(value) if value is not None else ():
            view.pin(axis, "it holds lengths or positions")


def give_output(view: View, batch: Axis, heads: Ids, size: Ids, zero: tuple[bool, bool]) -> None:
    out = view.out()
    if out is None or view.facts.shape(out) is None:
        return
    if view.rank(out) == 4:
        axes = [batch, heads, view.still_axis(out, 2, POSITIONS), size]
        view.give(out, axes, [False, zero[0], False, zero[1]])
    else:
        axes = [batch, view.still_axis(out, 1, POSITIONS), view.terms.product([heads, size])]
        view.give(out, axes, [False, False, zero[0] and zero[1]])


def give_cache(view: View, i: int, batch: Axis, one: Heads) -> None:
    out = view.out(i)
    if out is not None and view.facts.shape(out) is not None:
        axes = [batch, one.heads, view.still_axis(out, 2, POSITIONS), one.size]
        view.give(out, axes, [False, one.zero[0], False, one.zero[1]])


def give_scores(view: View, i: int, batch: Axis, heads: Ids) -> None:
    out = view.out(i)
    if out is not None and view.facts.shape(out) is not None:
        fixed = [view.still_axis(out, axis, POSITIONS) for axis in (2, 3)]
        view.give(out, [batch, heads, *fixed], [False] * 4)


# -- ai.onnx --------------------------------------------------------------------------------------------------------


@rule("Attention")
def attention(view: View) -> None:
    """Q, K, V, mask, past key, past value, lengths -> Y, present key, present value, scores."""
    q = operand(view, 0, view.int_attr("q_num_heads", 0))
    k = with_past(view, operand(view, 1, view.int_attr("kv_num_heads", 0)), 4)
    v = with_past(view, operand(view, 2, view.int_attr("kv_num_heads", 0)), 5)
    batch = pin_batch(view, 0, 1, 2, 4, 5)
    zero = attend(view, q, k, v)
    tie_mask(view, 3, q.heads)
    pin_all(view, 6)
    give_output(view, batch, q.heads, v.size, zero)
    give_cache(view, 1, batch, k)
    give_cache(view, 2, batch, v)
    give_scores(view, 3, batch, q.heads)


@rewriter("Attention")
def rewrite_attention(rw: Rewriter, node: ir.Node) -> None:
    """Count the heads that are left; keep the scale."""
    q = node.inputs[0]
    assert q is not None
    if len(rw.facts.shape(q) or ()) == 4:
        keep_scale(rw, node, rw.flags(q, 3))
        return
    for name, i in (("q_num_heads", 0), ("kv_num_heads", 1)):
        flags = by_head(rw.flags(node.inputs[i], 2), node.attributes.get_int(name, 1))
        rw.set_attribute(node, name, int(flags.any(axis=1).sum()))
        if i == 0:
            keep_scale(rw, node, flags.any(axis=0))


def by_head(flags: Bools, heads: int) -> Bools:
    return flags.reshape(heads, -1)


def keep_scale(rw: Rewriter, node: ir.Node, size: Bools | np.bool_) -> None:
    """Write 1/sqrt(original head size) where positions go and no scale is written yet."""
    if not size.all() and not node.attributes.get_float("scale", 0.0):
        rw.set_attribute(node, "scale", 1 / math.sqrt(size.size))


# -- com.microsoft::MultiHeadAttention ------------------------------------------------------------------------------


@rule("com.microsoft::MultiHeadAttention")
def multi_head_attention(view: View) -> None:
    """Query, key, value, bias, padding mask, score bias, past key, past value, ... -> output, presents, scores."""
    if view.x(1) is None or view.x(2) is None:
        raise RuleMismatch("it holds queries, keys and values side by side")
    q, k, v = _biased(view, 3, [operand(view, i, view.int_attr("num_heads", 0)) for i in range(3)])
    if view.x(6) is not None or view.rank(view.need(1)) == 4:
        view.unify(k.size, v.size)
    k, v = with_past(view, k, 6), with_past(view, v, 7)
    batch = pin_batch(view, 0, 1, 2, 6, 7)
    zero = attend(view, q, k, v)
    tie_mask(view, 5, q.heads)
    pin_all(view, 4, 8, 9)
    give_output(view, batch, q.heads, v.size, zero)
    give_cache(view, 1, batch, k)
    give_cache(view, 2, batch, v)
    give_scores(view, 3, batch, q.heads)


def _biased(view: View, i: int, operands: list[Heads]) -> list[Heads]:
    """Tie a bias that lies end to end over the heads x size of queries, keys and values."""
    bias = view.x(i)
    if bias is None:
        return operands
    start, ids, zero = 0, view.ids(bias, 0), view.zero(bias)[0]
    out = []
    for one in operands:
        width = len(one.heads) * len(one.size)
        view.unify(view.terms.product([one.heads, one.size]), ids[start : start + width])
        start += width
        out.append(replace(one, zero=(one.zero[0] and zero, one.zero[1] and zero)))
    return out


@rewriter("com.microsoft::MultiHeadAttention")
def rewrite_multi_head(rw: Rewriter, node: ir.Node) -> None:
    """Count the heads that are left; keep the scale."""
    flags = by_head(rw.flags(node.inputs[0], 2), node.attributes["num_heads"].as_int())
    rw.set_attribute(node, "num_heads", int(flags.any(axis=1).sum()))
    keep_scale(rw, node, flags.any(axis=0))


# -- com.microsoft::Attention ---------------------------------------------------------------------------------------


def _widths(node: ir.Node, total: int) -> list[int]:
    return [int(n) for n in node.attributes.get_ints("qkv_hidden_sizes", None) or [total // 3] * 3]


@rule("com.microsoft::Attention")
def packed_attention(view: View) -> None:
    """Input, weights [inputs, q + k + v], bias, mask, past [2, batch, heads, sequence, size], score bias -> output."""
    if view.int_attr("do_rotary", 0):
        raise RuleMismatch("it rotates by a table that it makes itself")
    x, w = view.need(0), view.need(1)
    contract(view, 0, 2, 1, 0)
    view.weight(w)
    view.tag(view.axis(w, 0), "neurons")
    ids, zero, start = view.ids(w, 1), view.zero(w)[1], 0
    operands = []
    for width in _widths(view.node, len(ids)):
        operands.append(packed(view, ids[start : start + width], view.int_attr("num_heads", 1), zero, (1, 1)))
        start += width
    view.pin(view.axis(x, 1), POSITIONS)
    q, k, v = _biased(view, 2, operands)
    past, present = view.x(4), view.out(1)
    if past is not None or present is not None:
        view.unify(k.size, v.size)
    if past is not None:
        for axis in (0, 1, 3):
            view.pin(view.axis(past, axis), "it holds keys and values side by side" if axis == 0 else POSITIONS)
        view.unify(k.heads, view.axis(past, 2))
        view.unify(k.size, view.axis(past, 4))
        past_zero = (view.zero(past)[2], view.zero(past)[4])
        k, v = (replace(one, zero=(one.zero[0] and past_zero[0], one.zero[1] and past_zero[1])) for one in (k, v))
    result = attend(view, q, k, v)
    pin_all(view, 3, 6)
    tie_mask(view, 5, q.heads)
    batch = pin_batch(view, 0)
    give_output(view, batch, q.heads, v.size, result)
    if present is not None and view.facts.shape(present) is not None:
        fixed = [view.still_axis(present, axis, POSITIONS) for axis in (0, 3)]
        axes = [fixed[0], batch, k.heads, fixed[1], k.size]
        view.give(present, axes, [False] * 5)


@rewriter("com.microsoft::Attention")
def rewrite_packed_attention(rw: Rewriter, node: ir.Node) -> None:
    """Count heads and widths that are left; keep the scale."""
    flags = rw.flags(node.inputs[1], 1)
    widths, heads, start = _widths(node, len(flags)), node.attributes["num_heads"].as_int(), 0
    kept = []
    for width in widths:
        kept.append(by_head(flags[start : start + width], heads))
        start += width
    rw.set_attribute(node, "num_heads", int(kept[0].any(axis=1).sum()))
    rw.set_attribute(node, "qkv_hidden_sizes", [int(k.sum()) for k in kept])
    keep_scale(rw, node, kept[0].any(axis=0))


# -- LinearAttention ------------------------------------------------------------------------------------------------


@rule("LinearAttention", "com.microsoft::LinearAttention")
def linear_attention(view: View) -> None:
    """Query, key, value, past state [batch, kv heads, key size, value size], decay, beta -> output, state.

    A state row is made from its key position alone, and read by its query position; with a delta rule keys also read
    the state, so there the key itself has to be zero.
    """
    if view.int_attr("state_window", 0):
        raise RuleMismatch("it keeps a window of states")
    heads, kv = view.int_attr("q_num_heads", 0), view.int_attr("kv_num_heads", 0)
    q, k, v = operand(view, 0, heads), operand(view, 1, kv), operand(view, 2, kv)
    batch = pin_batch(view, 0, 1, 2, 3, 4, 5)
    past, state_zero = view.x(3), (True, True, True)
    if past is not None:
        for ids, axis in ((k.heads, 1), (k.size, 2), (v.size, 3)):
            view.unify(ids, view.axis(past, axis))
        state_zero = (view.zero(past)[1], view.zero(past)[2], view.zero(past)[3])
    k = replace(k, zero=(k.zero[0] and state_zero[0], k.zero[1] and state_zero[1]))
    v = replace(v, zero=(v.zero[0] and state_zero[0], v.zero[1] and state_zero[2]))
    delta = "delta" in view.node.attributes.get_string("update_rule", "gated_delta")
    zero = attend(view, replace(q, zero=(False, False)) if delta else q, k, v)
    _tie_gates(view, k, (4, 5))
    give_output(view, batch, q.heads, v.size, zero)
    state = view.out(1)
    if state is not None and view.facts.shape(state) is not None:
        view.give(state, [batch, k.heads, k.size, v.size], [False, k.zero[0] or v.zero[0], k.zero[1], v.zero[1]])


def _tie_gates(view: View, k: Heads, operands: Sequence[int]) -> None:
    """Decay and rate have one entry for each key head, or for each position of each, or one for all."""
    for i in operands:
        gate = view.x(i)
        if gate is None:
            continue
        view.pin(view.axis(gate, 1), POSITIONS)
        width = view.shape(gate)[2]
        if width == len(k.heads) * len(k.size):
            view.unify(view.terms.product([k.heads, k.size]), view.axis(gate, 2))
        elif width == len(k.heads):
            view.unify(k.heads, view.axis(gate, 2))


@rewriter("LinearAttention", "com.microsoft::LinearAttention")
def rewrite_linear_attention(rw: Rewriter, node: ir.Node) -> None:
    """Count the heads that are left; keep the scale."""
    for name, i in (("q_num_heads", 0), ("kv_num_heads", 1)):
        flags = by_head(rw.flags(node.inputs[i], 2), node.attributes[name].as_int())
        rw.set_attribute(node, name, int(flags.any(axis=1).sum()))
        if i == 0:
            keep_scale(rw, node, flags.any(axis=0))
