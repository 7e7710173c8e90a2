"""Normalising keeps the function and frees what only happens to be tied."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import graph, random

from onnxprune import model_io, runtime
from onnxprune.passes import Normalise, Tidy
from onnxprune.passes.normalise import COPY_OF
from onnxprune.structure.analysis import analyse


def same_function(a: ir.Model, b: ir.Model) -> bool:
    feeds = runtime.working_inputs(a, count=2)
    return all(runtime.compare(a, b, f).max_rel == 0 for f in feeds)


def shared_bias() -> ir.Model:
    weights = {"w1": random(6, 16), "w2": random(16, 16, seed=1), "w3": random(16, 4), "b": random(16)}
    return graph(
        "agraph (float[N,6] x) => (float[N,4] y) {"
        "a = MatMul(x, w1) c = Add(a, b) d = Relu(c) e = MatMul(d, w2) f = Add(e, b) g = Relu(f) y = MatMul(g, w3) }",
        weights,
    )


def test_a_shared_bias_does_not_tie_layers_together() -> None:
    model = shared_bias()
    original = model.clone()
    assert len(analyse(model).groups) == 1
    Normalise()(model)
    assert [len(g) for g in analyse(model).groups] == [16, 16]
    assert same_function(original, model)


def test_a_shared_first_state_does_not_tie_recurrent_layers_together() -> None:
    """The dynamo exporter gives all layers one tensor of zeros."""
    gates = {"w1": random(2, 32, 4), "r1": random(2, 32, 8), "w2": random(2, 32, 16), "r2": random(2, 32, 8)}
    model = graph(
        "agraph (float[5,1,4] x) => (float[5,2,1,8] y) <int64[3] flat = {5, 1, 16}> {"
        'a = LSTM <hidden_size = 8, direction = "bidirectional"> (x, w1, r1, none, none, zeros, zeros)'
        "b = Transpose <perm = [0,2,1,3]> (a) c = Reshape(b, flat)"
        'y = LSTM <hidden_size = 8, direction = "bidirectional"> (c, w2, r2, none, none, zeros, zeros) }'.replace(
            "none", ""
        ),
        {**gates, "zeros": np.zeros((2, 1, 8), np.float32)},
    )
    original = model.clone()
    assert not analyse(model).groups
    Normalise()(model)
    assert sum(len(g) for g in analyse(model).groups) == 8
    assert same_function(original, model)


def test_copies_that_stay_equal_become_one_again() -> None:
    model = shared_bias()
    names = set(model.graph.initializers)
    Normalise()(model)
    assert any(COPY_OF in v.metadata_props for v in model.graph.initializers.values())
    Tidy()(model)
    assert set(model.graph.initializers) == names


def test_places_that_readers_share_are_expanded_for_each_and_once_again() -> None:
    model = graph(
        "agraph (float[N,4,6] x, int64[3] shape) => (float[N,4,6] y) {"
        "p = Expand(places, shape) a = GatherElements<axis = 1>(x, p) b = GatherElements<axis = 2>(x, p) "
        "y = Add(a, b) }",
        {"places": np.zeros((1, 1, 1), np.int64)},
    )
    (node,) = (node for node in model.graph if node.op_type == "Expand")
    node.outputs[0].dtype = ir.DataType.INT64
    original = model.clone()

    def expanded() -> int:
        return sum(node.op_type == "Expand" for node in model.graph)

    Normalise()(model)
    assert expanded() == 2
    Normalise()(model)
    assert expanded() == 2
    Tidy()(model)
    assert expanded() == 1 and not any(node.metadata_props for node in model.graph)
    assert [n.op_type for n in model.graph] == [n.op_type for n in original.graph]


def test_constant_nodes_become_initializers_under_their_names() -> None:
    model = graph(
        "agraph (float[N,2] x) => (float[N,2] y) { c = Constant <value = float[2] {1.0, 2.0}> () y = Add(x, c) }", {}
    )
    original = model.clone()
    Normalise()(model)
    assert list(model.graph.initializers) == ["c"]
    assert same_function(original, model)


def test_a_constant_behind_identity_is_read_directly() -> None:
    model = graph(
        "agraph (float[N,4] x) => (float[N,4] y, float[4,4] z) {"
        "v = Identity(w) a = MatMul(x, w) y = MatMul(a, v) z = Identity(w) }",
        {"w": random(4, 4)},
    )
    original = model.clone()
    Normalise()(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "MatMul", "Identity"]
    assert same_function(original, model)


def shuffled() -> ir.Model:
    text = (
        "agraph (float[N,3,5,5] x) => (float[N,4] y) {"
        "a = Conv(x, w1) b = Reshape(a, split) c = Transpose <perm = [0,2,1,3,4]> (b) d = Reshape(c, merge)"
        "e = Conv(d, w2) f = GlobalAveragePool(e) g = Flatten(f) y = Gemm <transB = 1> (g, w3) }"
    )
    return graph(
        text,
        {
            "w1": random(8, 3, 1, 1), "w2": random(6, 8, 1, 1), "w3": random(4, 6),
            "split": np.array([-1, 2, 4, 5, 5]), "merge": np.array([-1, 8, 5, 5]),
        },
    )  # fmt: skip


def test_a_channel_shuffle_becomes_a_gather_and_frees_every_channel() -> None:
    model = shuffled()
    original = model.clone()
    Normalise()(model)
    Tidy()(model)
    assert [n.op_type for n in model.graph].count("Gather") == 1
    assert not any(n.op_type == "Transpose" for n in model.graph)
    assert same_function(original, model)
    assert sorted(len(g) for g in analyse(model).groups) == [6, 8]


def sibling_bodies(ir_version: int = 8) -> ir.Model:
    """Both branches have weights of the same names and other numbers; IR version 3 has them as nodes."""
    proto = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : 12]> '
        "agraph (float[N,8] x, bool c) => (float[N,4] y) { y = If (c) <then_branch = yes () => (float[N,4] r)"
        " { a = MatMul(x, w) b = Relu(a) r = MatMul(b, v) }, else_branch = no () => (float[N,4] r)"
        " { a = MatMul(x, w) b = Relu(a) r = MatMul(b, v) }> }"
    )
    for seed, attribute in enumerate(proto.graph.node[0].attribute):
        constants = [numpy_helper.from_array(random(8, 16, seed=seed), "w")]
        constants.append(numpy_helper.from_array(random(16, 4, seed=seed), "v"))
        if ir_version >= 4:
            attribute.g.initializer.extend(constants)
            continue
        nodes = [onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in constants]
        nodes += list(attribute.g.node)
        del attribute.g.node[:]
        attribute.g.node.extend(nodes)
    return ir.from_proto(proto)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_constants_of_the_same_name_in_sibling_bodies_are_told_apart(ir_version: int) -> None:
    model = sibling_bodies(ir_version)
    original = model.clone()
    Normalise()(model)
    names = [str(v.name) for v in model_io.all_initializers(model)]
    assert sorted(names) == ["v", "v_1", "w", "w_1"]
    assert sum(len(group) for group in analyse(model).groups) == 32
    for flag in (True, False):
        feeds = {"x": random(3, 8, seed=7), "c": np.array(flag)}
        assert runtime.compare(original, model, feeds).max_rel == 0


def test_constants_of_bodies_get_their_names_back() -> None:
    model = sibling_bodies()
    Normalise()(model)
    Tidy()(model)
    assert sorted(str(v.name) for v in model_io.all_initializers(model)) == ["v", "v", "w", "w"]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("always", [True, False])
def test_an_if_over_a_constant_becomes_the_branch_that_runs(always: bool) -> None:
    model = sibling_bodies()
    value = model.graph.inputs.pop(1)
    value.const_value = ir.tensor(np.array(always), name="c")
    model.graph.register_initializer(value)
    original = model.clone()
    Normalise()(model)
    assert all(node.op_type != "If" for node in model.graph.all_nodes())
    assert [len(group) for group in analyse(model).groups] == [16]
    assert same_function(original, model)
