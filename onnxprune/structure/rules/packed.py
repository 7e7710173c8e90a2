"""Weights in a few bits: outputs go one by one, inputs in whole blocks, with their scales and zero points."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.linear import source_of
from onnxprune.graph.packed import layout_of, packed
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.rules.quantised import tie_scales
from onnxprune.structure.terms import Ids
from onnxprune.structure.view import RuleMismatch, View

_BYTES = "its bytes are the numbers of one block"


@rule("com.microsoft::MatMulNBits")
def matmul_nbits(view: View) -> None:
    """Weights in blocks of bits: neurons in front go in whole blocks, those behind one by one."""
    x, w, out = view.need(0), view.need(1), view.out()
    layout = layout_of(view.node)
    if isinstance(layout, str):
        raise RuleMismatch(layout)
    if not view.pack(w, layout):
        raise RuleMismatch(f"{w.name} is packed in another way for another node")
    outputs, blocks = view.ids(w, 0), view.ids(w, 1)
    view.pin(view.axis(w, 2), _BYTES)
    columns = view.ids(x, -1)
    view.terms.unify(columns, np.repeat(blocks, layout.block)[: len(columns)])
    view.weight(w)
    for axis in (columns, outputs):
        view.tag(axis, "neurons")
    _tie(view, layout.scales, outputs, blocks)
    if layout.zero_points is not None:
        bytes_ = -(-layout.blocks * layout.bits // 8)
        _tie(view, layout.zero_points, outputs, view.terms.pinned_axis(bytes_, f"{view.name}: they are packed"))
    zero, bias = True, view.x(5)
    if bias is not None:
        view.unify(outputs, view.axis(bias, 0))
        zero = view.zero(bias)[0]
    view.give(out, [*view.axes(x)[:-1], outputs], [*view.zero(x)[:-1], zero])


def _tie(view: View, value: ir.Value, outputs: Ids, second: Ids) -> None:
    """Tie a setting of each block, [outputs, ..] or flat, to the axes of the weight."""
    if view.rank(value) == 1:
        view.unify(view.axis(value, 0), view.terms.product([outputs, second]))
    else:
        view.unify(view.axis(value, 0), outputs)
        view.unify(view.axis(value, 1), second)


@rewriter("com.microsoft::MatMulNBits")
def rewrite_matmul_nbits(rw: Rewriter, node: ir.Node) -> None:
    """Count what is left; pack the zero points of the blocks that are left."""
    w = node.inputs[1]
    assert w is not None
    layout = rw.structure.packed[w]
    outputs, blocks = rw.flags(w, 0), rw.flags(w, 1)
    rw.set_attribute(node, "N", int(outputs.sum()))
    rw.set_attribute(node, "K", int(np.repeat(blocks, layout.block)[: layout.inputs].sum()))
    if layout.zero_points is not None and not blocks.all():
        points = packed(layout.points()[outputs][:, blocks], layout.bits)
        flat = len(layout.zero_points.shape or ()) == 1
        rw.set_input(node, 3, points.reshape(-1) if flat else points)


@rule("com.microsoft::GatherBlockQuantized")
def gather_block_quantized(view: View) -> None:
    """Rows of a table in a few bits: rows stay, positions inside rows go in whole blocks, with their scales."""
    x, indices = view.need(0), view.need(1)
    rank = view.rank(x)
    along, blocked = (view.int_attr(name, i) % rank for i, name in enumerate(("gather_axis", "quantize_axis")))
    axes = list(view.axes(x))
    view.pin(axes[along], "its indices are known only while the model runs")
    if ir.DataType(view.facts.dtype(x)) == ir.DataType.UINT8:
        axes[-1], is_zero = _columns_of_bytes(view, x)
    else:
        tie_scales(view, x, blocked, 2, 3)
        is_zero = view.fill(x, view.x(3), blocked)
    zero = [is_zero] * rank
    view.give(
        view.out(),
        [*axes[:along], *view.axes(indices), *axes[along + 1 :]],
        [*zero[:along], *[False] * view.rank(indices), *zero[along + 1 :]],
    )


def _columns_of_bytes(view: View, x: ir.Value) -> tuple[Ids, bool]:
    """The numbers of a row, several in each byte, and whether those that go become zero.

    The table may be the weight of another operator, seen in rows.
    """
    layout, source = layout_of(view.node, 0), source_of(x)
    if isinstance(layout, str) or source is None:
        raise RuleMismatch(str(layout))
    if not view.pack(source, layout):
        raise RuleMismatch(f"{source.name} is packed in another way for another node")
    bytes_ = view.ids(x, 1)
    view.unify(view.axis(x, 0), view.axis(layout.scales, 0))
    view.terms.unify(bytes_, np.repeat(view.ids(layout.scales, 1), layout.block // layout.per_byte))
    return np.repeat(bytes_, layout.per_byte), view.zero(source)[0]


@rewriter("com.microsoft::GatherBlockQuantized")
def rewrite_gather_block_quantized(rw: Rewriter, node: ir.Node) -> None:
    """Pack the zero points of the blocks that are left."""
    x, layout = node.inputs[0], layout_of(node, 0)
    if x is None or isinstance(layout, str) or layout.zero_points is None:
        return
    blocks = rw.flags(x, 1)[:: layout.block // layout.per_byte]
    rw.set_input(node, 3, packed(layout.points()[:, blocks], layout.bits))
