"""Walks through all graphs give what onnx-ir's own walks give, in the same order."""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from onnxprune import model_io
from onnxprune.model_io.bodies import bodies, graphs_of, nodes_of, subgraphs_of

_NESTED = """<ir_version: 10, opset_import: ["": 20]> g (float[N] x, bool c) => (float[N] y) {
    a = Abs(x)
    b = If (c) <
        then_branch = then () => (float[N] t) {
            u = Neg(a)
            t = If (c) <
                then_branch = inner () => (float[N] p) { p = Exp(u) },
                else_branch = outer () => (float[N] q) { q = Identity(u) }
            >
        },
        else_branch = other () => (float[N] e) { e = Sqrt(a) }
    >
    y = Relu(b)
}"""


def test_the_order_is_that_of_onnx_ir() -> None:
    model = model_io.load_any(parser.parse_model(_NESTED))
    assert [n.op_type for n in nodes_of(model.graph)] == [n.op_type for n in model.graph.all_nodes()]
    assert subgraphs_of(model.graph) == list(model.graph.subgraphs())
    assert graphs_of(model) == list(model.graphs()) and len(graphs_of(model)) == 5


def test_a_body_of_no_nodes_and_a_reference_to_an_attribute() -> None:
    value = ir.val("x", ir.DataType.FLOAT, ir.Shape([1]))
    empty = ir.Graph([value], [value], nodes=[], name="empty")
    node = ir.Node("", "Own", [], attributes=[ir.AttrGraph("body", empty), ir.AttrInt64("axis", 1)])
    assert list(bodies(node)) == [empty]
    node.attributes["body"] = ir.RefAttr("body", "of_the_function", ir.AttributeType.GRAPH)
    assert list(bodies(node)) == []
