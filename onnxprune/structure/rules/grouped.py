"""GroupQueryAttention: heads of a fused decoder, their caches, and positions inside them as many as a kernel takes."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.rules.attention import (
    POSITIONS,
    Heads,
    attend,
    by_head,
    give_cache,
    give_output,
    give_scores,
    keep_scale,
    operand,
    packed,
    pin_all,
    pin_batch,
    tie_mask,
    with_past,
)
from onnxprune.structure.rules.rotary import tie_pairs
from onnxprune.structure.terms import Ids
from onnxprune.structure.view import RuleMismatch, View

_STEP = 8
"""Its kernels want this many positions in a head, or a multiple; where they rotate, as many pairs of positions."""


def _grouped_operands(view: View) -> list[Heads]:
    heads, kv = view.int_attr("num_heads", 0), view.int_attr("kv_num_heads", 0)
    if view.x(1) is not None:
        return [operand(view, 0, heads), operand(view, 1, kv), operand(view, 2, kv)]
    x = view.need(0)
    view.pin(view.axis(x, 1), POSITIONS)
    ids, zero = view.ids(x, 2), view.zero(x)[2]
    size, left = divmod(len(ids), heads + 2 * kv)
    if left:
        raise RuleMismatch("its width cannot be divided by its heads")
    cuts = [0, heads * size, (heads + kv) * size, len(ids)]
    numbers = (heads, kv, kv)
    return [packed(view, ids[a:b], n, zero, (0, 2)) for a, b, n in zip(cuts, cuts[1:], numbers, strict=False)]


@rule("com.microsoft::GroupQueryAttention")
def group_query_attention(view: View) -> None:
    """Query, key, value, pasts, lengths, cos, sin, positions, bias, sink, scales, norms -> output, presents."""
    if any(view.x(i) is not None for i in (12, 13)):
        raise RuleMismatch("its cache is quantised")
    q, k, v = _grouped_operands(view)
    k, v = with_past(view, k, 3), with_past(view, v, 4)
    batch = pin_batch(view, 0, 1, 2, 3, 4)
    view.unify(k.size, v.size)  # both caches have one head size
    zero = attend(view, q, k, v)
    _tie_steps(view, q.size)
    pin_all(view, 5, 6, 9, 14, 15, 16)
    tie_mask(view, 10, q.heads)
    sink = view.x(11)
    if sink is not None:
        view.unify(q.heads, view.axis(sink, 0))
    give_output(view, batch, q.heads, v.size, zero)
    give_cache(view, 1, batch, k)
    give_cache(view, 2, batch, v)
    give_scores(view, 3, batch, q.heads)


def _tie_steps(view: View, size: Ids) -> None:
    """Let positions inside heads go by as many as the kernels want the rest to be a multiple of."""
    if view.x(14) is not None or view.x(15) is not None:
        view.pin(size, "it normalises each head, whose size stays")
    if not view.int_attr("do_rotary", 0):
        pin_all(view, 7, 8)
        _tie_step(view, size, _STEP)
        return
    tie_pairs(view, size, (7, 8), interleaved=bool(view.int_attr("rotary_interleaved", 0)))
    columns = view.ids(view.need(7), -1)
    _tie_step(view, columns, _STEP)
    _tie_step(view, size[2 * len(columns) :], 2 * _STEP)  # those that do not turn


def _tie_step(view: View, ids: Ids, step: int) -> None:
    if len(ids) % step:
        view.pin(ids, f"they cannot go {step} at a time, as its kernels want it")
        return
    for i in range(1, step):
        view.unify(ids[::step], ids[i::step])


@rewriter("com.microsoft::GroupQueryAttention")
def rewrite_group_query(rw: Rewriter, node: ir.Node) -> None:
    """Count the heads that are left; keep the scale."""
    heads, kv = (node.attributes[name].as_int() for name in ("num_heads", "kv_num_heads"))
    flags = rw.flags(node.inputs[0], 2)
    if node.inputs[1] is None:
        size = len(flags) // (heads + 2 * kv)
        queries, keys = flags[: heads * size], flags[heads * size : (heads + kv) * size]
    else:
        queries, keys = flags, rw.flags(node.inputs[1], 2)
    queries, keys = by_head(queries, heads), by_head(keys, kv)
    rw.set_attribute(node, "num_heads", int(queries.any(axis=1).sum()))
    rw.set_attribute(node, "kv_num_heads", int(keys.any(axis=1).sum()))
    keep_scale(rw, node, queries.any(axis=0))
