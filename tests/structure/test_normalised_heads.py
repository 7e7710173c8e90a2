"""GroupQueryAttention that normalises its heads: ONNX Runtime has no kernel for processors, so it runs taken apart."""

from __future__ import annotations

import decoders
import numpy as np
import onnx
import onnx_ir as ir

import onnxprune
from onnxprune.graph.edit import Editor
from onnxprune.structure.analysis import analyse
from onnxprune.structure.masking import zero_units
from onnxprune.structure.rewrite import remove

from .graphs import load
from .twins import difference, run

SIZE = 16
TEXT = """g (float[n, s, 24] x, int32[n] lengths, int32 total) => (float[n, s, 10] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    a, pk, pv = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2, qk_norm_epsilon = 1e-6>(
        q, k, v, , , lengths, total, , , , , , , , nq, nk)
    y = MatMul(a, wo) }"""
WEIGHTS = {"wq": (24, 64), "wk": (24, 32), "wv": (24, 32), "wo": (64, 10), "nq": (SIZE,), "nk": (SIZE,)}


def taken_apart(model: ir.Model) -> ir.Model:
    """The same with the norms of queries and keys as nodes of their own."""
    edit = Editor(model)
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    for place, norm in ((0, 14), (1, 15)):
        x = node.inputs[place]
        apart = edit.before(node, "Reshape", [x, edit.constant(np.array([0, 0, -1, SIZE]), "apart")])
        square = edit.before(node, "Mul", [apart, apart])
        mean = edit.before(node, "ReduceMean", [square, edit.constant(np.array([-1]), "last")])
        mean = edit.before(node, "Add", [mean, edit.constant(np.array(1e-6, np.float32), "epsilon")])
        normed = edit.before(node, "Div", [apart, edit.before(node, "Sqrt", [mean])])
        normed = edit.before(node, "Mul", [normed, node.inputs[norm]])
        flat = edit.before(node, "Reshape", [normed, edit.constant(np.array([0, 0, -1]), "flat")], {"allowzero": 0})
        flat_width = edit.constant(np.array([0, 0, -1]), "width")
        node.replace_input_with(place, edit.before(node, "Reshape", [flat, flat_width]))
    node.replace_input_with(14, None)
    node.replace_input_with(15, None)
    node.attributes.pop("qk_norm_epsilon")
    return model


def test_groups_of_heads_go_and_their_size_stays() -> None:
    model, twin = load(TEXT, **WEIGHTS), load(TEXT, **WEIGHTS)
    structure = analyse(model)
    heads = [group for group in structure.groups if group.kind == "heads"]
    assert sorted(map(len, heads)) == [2, 2]  # two groups, and two query heads in each of both
    assert not [group for group in structure.groups if group.kind == "head-size"]
    removed = np.zeros(structure.terms.count, bool)
    removed[max(heads, key=lambda group: len(group.sites)).atoms[:1]] = True
    remove(structure, removed)
    zero_units(analyse(twin), removed)
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert node.attributes["num_heads"].as_int() < 4
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((1, 5, 24)).astype(np.float32), "lengths": np.array([4], np.int32),
             "total": np.array(5, np.int32)}  # fmt: skip
    a, b = run(taken_apart(model), feeds), run(taken_apart(twin), feeds)
    assert difference(a[0], b[0]) < 1e-5


def test_inspection_says_in_words_that_their_size_stays() -> None:
    model = decoders.fused()
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input.extend([""] * (14 - len(node.input)) + ["head.norm"] * 2)
    norm = np.ones(decoders.SIZE, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(norm, "head.norm"))
    caches = onnxprune.inspect(model).caches
    assert caches is not None and list(caches.units) == ["KV groups"]
    assert (
        list(caches.stays) == ["head size"] and "it normalises each head, whose size stays" in caches.stays["head size"]
    )
