"""Which axes of Scaler live and die together, and what its attributes become when features go."""

import onnx_ir as ir

from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import View

_NUMBERS = ("offset", "scale")


@rule("ai.onnx.ml::Scaler")
def scaler(view: View) -> None:
    """Features keep their places; zeros become something else behind an offset."""
    x = view.need(0)
    view.give(view.out(), view.axes(x), [False] * view.rank(x))


@rewriter("ai.onnx.ml::Scaler")
def cut_scaler(rw: Rewriter, node: ir.Node) -> None:
    """Offset and scale of the features that are left; a single number serves all of them."""
    x = node.inputs[0]
    assert x is not None
    axis = len(rw.facts.shape(x) or ()) - 1
    for name in _NUMBERS:
        attribute = node.attributes.get(name)
        if attribute is not None and len(attribute.as_floats()) > 1 and rw.lost(x, axis):
            kept = [number for number, stays in zip(attribute.as_floats(), rw.flags(x, axis), strict=True) if stays]
            node.attributes[name] = ir.AttrFloat32s(name, kept)
