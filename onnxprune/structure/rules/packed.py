"""Weights in a few bits: outputs go one by one, inputs in whole blocks, with their scales and zero points."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.packed import layout_of, packed
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
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
