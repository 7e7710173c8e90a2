"""Edits of a graph: names are free in every scope, outputs keep their names, bodies go inline."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import graph, random

from onnxprune import runtime
from onnxprune.graph.edit import Editor, names_in

IF = (
    "agraph (float[N,4] x, bool flag) => (float[N,4] y) {{"
    " h = MatMul(x, w) y = If (flag) <then_branch = yes () => (float[N,4] r) {{ {then} }},"
    " else_branch = no () => (float[N,4] r) {{ s = Neg(h) r = Relu(s) }}> }}"
)


def branches(then: str = "s = Abs(h) r = Sqrt(s)") -> ir.Model:
    return graph(IF.format(then=then), {"w": random(4, 4)})


def run(model: ir.Model, flag: bool) -> np.ndarray:
    feeds = {"x": random(3, 4, seed=5), "flag": np.array(flag)}
    return runtime.run(runtime.make_session(model), {k: v for k, v in feeds.items() if k in names_in(model)})["y"]


@pytest.mark.parametrize("taken", ["x", "w", "h", "s", "y"], ids=["input", "constant", "value", "of a body", "output"])
def test_a_fresh_name_is_free_in_every_scope(taken: str) -> None:
    edit = Editor(branches())
    assert edit.fresh(taken) == f"{taken}_1"
    assert edit.fresh(taken) == f"{taken}_2"
    assert edit.fresh(f"{taken}_2") == f"{taken}_2_1"


def test_a_constant_of_a_taken_name_leaves_the_model_valid() -> None:
    model = branches()
    edit = Editor(model)
    node = next(iter(model.graph))
    one = edit.constant(np.ones(4, np.float32), "s")
    edit.take_place(node.outputs[0], edit.after(node, "Add", [node.outputs[0], one]))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert np.allclose(run(model, True), np.sqrt(np.abs(random(3, 4, seed=5) @ random(4, 4) + 1)), atol=1e-5)


def test_a_shared_constant_is_made_once_for_equal_content_and_shape() -> None:
    edit = Editor(branches())
    first = edit.shared_constant(np.array([1, 2], np.int64), "c")
    assert edit.shared_constant(np.array([1, 2], np.int64), "d") is first
    assert edit.shared_constant(np.array([[1, 2]], np.int64), "c") is not first
    assert edit.shared_constant(np.array([1, 2], np.int32), "c") is not first
    assert edit.shared_constant(np.array(3, np.int64), "c").const_value.numpy().shape == ()


def test_what_takes_the_place_of_an_output_takes_its_name() -> None:
    model = graph("agraph (float[N,4] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": random(4, 4)})
    node = next(iter(model.graph))
    Editor(model).take_place(node.outputs[0], Editor(model).after(node, "Neg", [node.outputs[0]]))
    assert [v.name for v in model.graph.outputs] == ["y"]
    x = random(3, 4, seed=5)
    assert np.allclose(runtime.run(runtime.make_session(model), {"x": x})["y"], -(x @ random(4, 4)), atol=1e-5)


def test_a_copy_keeps_the_metadata_of_its_constant() -> None:
    model = branches()
    value = model.graph.initializers["w"]
    value.metadata_props["source"] = "layer one"
    assert Editor(model).copy(value, "w").metadata_props == {"source": "layer one"}


@pytest.mark.parametrize("then", ["s = Abs(h) r = Sqrt(s)", "r = Identity(h)"])
@pytest.mark.parametrize("flag", [True, False])
def test_a_branch_takes_the_place_of_its_if(flag: bool, then: str) -> None:
    model = branches(then)
    expected = run(model, flag)
    node = next(n for n in model.graph if n.op_type == "If")
    Editor(model).inline(node, node.attributes["then_branch" if flag else "else_branch"].as_graph())
    assert all(n.op_type != "If" for n in model.graph)
    assert np.array_equal(run(model, flag), expected)


def test_two_branches_of_the_same_names_go_inline() -> None:
    """Names of sibling bodies may be equal; in one graph they may not."""
    body = "<then_branch = yes () => (float[N,4] r) {{ s = Abs({0}) r = Sqrt(s) }}, "
    body += "else_branch = no () => (float[N,4] r) {{ r = Neg({0}) }}>"
    text = f"h = If (flag) {body.format('x')} y = If (flag) {body.format('h')}"
    model = graph(f"agraph (float[N,4] x, bool flag) => (float[N,4] y) {{ {text} }}", {})
    expected = run(model, True)
    edit = Editor(model)
    for node in list(model.graph):
        edit.inline(node, node.attributes["then_branch"].as_graph())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert np.array_equal(run(model, True), expected)


def test_texts_are_constants_too() -> None:
    tensor = numpy_helper.from_array(np.array(["a", "bc"], dtype=object), "names")
    proto = onnx.helper.make_model(
        onnx.parser.parse_graph("agraph (int64 i) => (string t) { t = Gather(names, i) }"),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    proto.graph.initializer.append(tensor)
    model = ir.from_proto(proto)
    assert Editor(model).copy(model.graph.initializers["names"], "names").name == "names_1"
