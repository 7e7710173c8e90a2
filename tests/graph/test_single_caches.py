"""Caches of which the graph has one end: those of an encoder are read, those of the first tokens are handed out."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxprune.graph.edit import Editor
from onnxprune.graph.narrowing import caches, free_caches, narrow_caches
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import remove
from onnxprune.structure.structure import Structure

HEADS, SIZE, WIDTH = 4, 8, 16

ATTEND = """t = Transpose<perm = [0, 1, 3, 2]>(key) q1 = MatMul(x, wq) q2 = Reshape(q1, by_head)
    q = Transpose<perm = [0, 2, 1, 3]>(q2) s = MatMul(q, t) p = Softmax<axis = -1>(s) m = MatMul(p, value)
    m1 = Transpose<perm = [0, 2, 1, 3]>(m) m2 = Reshape(m1, joined) y = MatMul(m2, wo) }"""
MAKE = """k1 = MatMul(e, wk) k2 = Reshape(k1, by_head) key = Transpose<perm = [0, 2, 1, 3]>(k2)
    v1 = MatMul(e, wv) v2 = Reshape(v1, by_head) value = Transpose<perm = [0, 2, 1, 3]>(v2)"""
CACHE = "float[N, 4, L, 8]"
READS = f"""g (float[N, S, 16] x, {CACHE} past_key, {CACHE} past_value) => (float[N, S, 16] y)
    {{ key = Identity(past_key) value = Identity(past_value) {ATTEND}"""
HANDS_OUT = f"""g (float[N, S, 16] x, float[N, L, 16] e)
    => (float[N, S, 16] y, {CACHE} present_key, {CACHE} present_value)
    {{ {MAKE} present_key = Identity(key) present_value = Identity(value) {ATTEND}"""


def weights(proto: ModelProto) -> ModelProto:
    rng = np.random.default_rng(0)
    for name in ("wq", "wk", "wv", "wo"):
        array = rng.standard_normal((WIDTH, 32) if name != "wo" else (32, WIDTH)).astype(np.float32) / 4
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, target in (("by_head", [0, 0, HEADS, SIZE]), ("joined", [0, 0, HEADS * SIZE])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(target, np.int64), name))
    return proto


def merged() -> ModelProto:
    """Optimum's form: the first branch makes the cache of the encoder, the second reads it and hands out nothing."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
            (("y", ["N", "S", WIDTH]), ("present_key", ["N", HEADS, "L", SIZE]),
             ("present_value", ["N", HEADS, "L", SIZE]))]  # fmt: skip
    branches = {}
    for branch, text in (("else_branch", HANDS_OUT), ("then_branch", READS)):
        graph = parser.parse_model(f'<ir_version: 9, opset_import: ["":17]> {text}').graph
        nodes = list(graph.node)
        if branch == "then_branch":
            empty = numpy_helper.from_array(np.zeros((0, HEADS, 1, SIZE), np.float32))
            nodes += [helper.make_node("Constant", [], [end.name], value=empty) for end in ends[1:]]
        branches[branch] = helper.make_graph(nodes, branch, [], ends)
    choice = helper.make_node("If", ["use_cache_branch"], [end.name for end in ends], name="choice", **branches)
    shapes = {"x": ["N", "S", WIDTH], "e": ["N", "L", WIDTH], "past_key": ["N", HEADS, "L", SIZE],
              "past_value": ["N", HEADS, "L", SIZE]}  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, []))
    graph = helper.make_graph([choice], "merged", inputs, ends)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def proto(form: str) -> ModelProto:
    texts = {"reads": READS, "hands out": HANDS_OUT}
    return weights(
        merged() if form == "merged" else parser.parse_model(f'<ir_version: 9, opset_import: ["":17]> {texts[form]}')
    )


def heads_of(structure: Structure) -> int:
    return sum(len(group) for group in structure.groups if group.kind == "heads")


@pytest.mark.parametrize(("form", "count"), [("reads", 2), ("hands out", 2), ("merged", 4)])
def test_heads_go_with_the_end_that_is_there(form: str, count: int) -> None:
    model = proto(form)
    assert len(list(caches(oracle.normalised(model)))) == count
    assert heads_of(analyse(oracle.normalised(model))) == 0

    def load() -> oracle.ir.Model:
        free = oracle.normalised(model)
        assert free_caches(free) == count
        return free

    assert heads_of(analyse(load())) == HEADS
    verdict = oracle.check(load, 0.5, seed=1)
    assert verdict.good and verdict.removed


@pytest.mark.parametrize("form", ["reads", "hands out", "merged"])
def test_the_interface_has_the_heads_that_are_left(form: str) -> None:
    model = oracle.normalised(proto(form))
    free_caches(model)
    structure = analyse(model)
    group = next(group for group in structure.groups if group.kind == "heads")
    removed = np.zeros(structure.terms.count, bool)
    removed[group.atoms[:3]] = True
    remove(structure, removed)
    narrowed = narrow_caches(model)
    assert set(narrowed.heads) == {1} and set(narrowed.size) == {SIZE}
    extents = {str(v.name): v.shape[1] for v in (*model.graph.inputs, *model.graph.outputs)
               if "past" in str(v.name) or "present" in str(v.name)}  # fmt: skip
    assert set(extents.values()) == {1} and len(extents) == (4 if form == "merged" else 2)
    oracle.make_session(model)


def test_an_input_goes_with_the_layer_that_read_it() -> None:
    model = oracle.normalised(proto("reads"))
    free_caches(model)
    y = next(node for node in model.graph if node.outputs[0].is_graph_output())
    x = next(value for value in model.graph.inputs if value.name == "x")
    copy = Editor(model).before(y, "Identity", [x])
    model.graph.outputs[0] = copy
    oracle.RemoveUnusedNodesPass()(model)
    assert narrow_caches(model).gone == {"past_key", "past_value"}
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert not model.graph.inputs[0].metadata_props
