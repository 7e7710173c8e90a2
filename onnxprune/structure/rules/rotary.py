"""Rotary position embedding: two positions of a head turn together by one column of the cos and sin tables."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.terms import Bools, Ids
from onnxprune.structure.view import RuleMismatch, View


def tie_pairs(view: View, size: Ids, tables: tuple[int, int], *, interleaved: bool, turned: int = 0) -> None:
    """Tie the two positions of each pair to each other and to their columns of both tables.

    Args:
        view: The node.
        size: Ids of the positions inside a head.
        tables: The inputs that hold cos and sin, [..., half of the turned positions].
        interleaved: Whether pairs are neighbours, instead of half the turned width apart.
        turned: How many positions turn, the first ones; 0 takes it from the tables.
    """
    cos = view.need(tables[0])
    half = (turned or 2 * len(view.ids(cos, -1))) // 2
    if 2 * half > len(size) or any(len(view.ids(view.need(i), -1)) != half for i in tables):
        raise RuleMismatch("its tables do not fit its head size")
    stride, apart = (2, 1) if interleaved else (1, half)
    first = size[: 2 * half : 2] if interleaved else size[:half]
    second = size[apart : apart + stride * (half - 1) + 1 : stride]
    view.unify(first, second)
    for i in tables:
        table = view.need(i)
        view.unify(first, view.axis(table, -1))
        for axis in view.axes(table)[:-1]:
            view.pin(axis, "it is looked up by position")


def _places(node: ir.Node) -> tuple[int, int, int]:
    """Return the inputs that hold cos, sin and positions."""
    return (2, 3, 1) if node.domain else (1, 2, 3)


@rule("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def rotary_embedding(view: View) -> None:
    """[batch, heads, sequence, size] or [batch, sequence, heads x size]; heads carry over, pairs stay together."""
    x = view.need(0)
    cos, sin, positions = _places(view.node)
    turned = view.int_attr("rotary_embedding_dim", 0)
    if view.rank(x) == 4:
        size = view.ids(x, 3)
        view.pin(view.axis(x, 2), "positions in a sequence have a meaning")
    else:
        width = len(view.ids(x, 2))
        heads = view.int_attr("num_heads", 0) or width // (2 * len(view.ids(view.need(cos), -1)))
        if width % heads:
            raise RuleMismatch("its width cannot be divided by its heads")
        _, size = view.terms.split(view.ids(x, 2), (heads, width // heads))
        view.pin(view.axis(x, 1), "positions in a sequence have a meaning")
    tie_pairs(view, size, (cos, sin), interleaved=bool(view.int_attr("interleaved", 0)), turned=turned)
    view.pin(view.axis(x, 0), "it is the batch")
    index = view.x(positions)
    for axis in view.axes(index) if index is not None else ():
        view.pin(axis, "it holds positions")
    view.give(view.out(), view.axes(x), view.zero(x))


@rewriter("RotaryEmbedding", "com.microsoft::RotaryEmbedding")
def rewrite_rotary(rw: Rewriter, node: ir.Node) -> None:
    """Count the heads, and the positions that still turn."""
    x, cos = node.inputs[0], node.inputs[_places(node)[0]]
    assert x is not None
    heads = node.attributes.get_int("num_heads", 0)
    if heads and len(rw.facts.shape(x) or ()) == 3:
        flags: Bools = rw.flags(x, 2).reshape(heads, -1)
        rw.set_attribute(node, "num_heads", int(flags.any(axis=1).sum()))
    columns = rw.extent(cos, len(rw.facts.shape(cos) or ()) - 1) if cos is not None else None
    if node.attributes.get_int("rotary_embedding_dim", 0) and columns is not None:
        rw.set_attribute(node, "rotary_embedding_dim", 2 * columns)
