"""What was asked and computed once serves both settings, and is what asking anew gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import graph, random

from onnxprune.graph import evaluate, inference
from onnxprune.graph.asked import Asked
from onnxprune.graph.shapes import infer_at, probe_at
from onnxprune.passes import Normalise


def layers() -> ir.Model:
    """Two convolutions that are alike, and a few numbers."""
    return graph(
        """g (float[N, 8, 4] x) => (float[N, 32] y) {
            a = Conv <pads = [1, 1]> (x, w)
            r = Relu(a)
            b = Conv <pads = [1, 1]> (r, v)
            four = Mul(two, two)
            h = Shape(b)
            n = Slice(h, two, four)
            z = Reshape(b, last)
            y = Relu(z)
        }""",
        {"w": random(8, 8, 3), "v": random(8, 8, 3, seed=1), "last": np.array([0, -1]), "two": np.array([2])},
    )


def questions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that onnx is asked about from now on."""
    asked: list[str] = []
    ask = onnx.shape_inference.infer_node_outputs
    monkeypatch.setattr(
        onnx.shape_inference,
        "infer_node_outputs",
        lambda schema, *others, **more: asked.append(schema.name) or ask(schema, *others, **more),
    )
    return asked


def computations(monkeypatch: pytest.MonkeyPatch) -> list[ir.Node]:
    """The nodes that are computed from now on."""
    computed: list[ir.Node] = []
    compute = evaluate.evaluate_node
    monkeypatch.setattr(
        "onnxprune.graph.asked.evaluate_node", lambda node, *rest: computed.append(node) or compute(node, *rest)
    )
    return computed


def test_one_question_for_layers_that_are_alike_and_for_both_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers()
    asked = questions(monkeypatch)
    infer_at(model, {"N": 2}, {"N": 2})
    assert asked.count("Conv") == 1
    asked.clear()
    facts = infer_at(model, {"N": 2}, {"N": 3})
    assert asked.count("Conv") == 2  # one for each batch
    by_name = {str(v.name): facts.shape(v) for node in model.graph for v in node.outputs}
    assert by_name["b"] == (2, 8, 4) and by_name["y"] == (2, 32)


def test_what_constants_give_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layers()
    computed = computations(monkeypatch)
    infer_at(model, {"N": 2}, {"N": 3})
    operators = [node.op_type for node in computed]
    assert operators.count("Mul") == 1
    assert operators.count("Slice") == 2  # of a shape, which is another at the other setting


def test_two_nodes_that_are_alike_compute_once_what_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(
        "g (float[N] x) => (int64[2] p, int64[2] q, float[2] r) "
        "{ p = Mul(one, two) q = Mul(three, two) s = Mul(first, two) r = Mul(float, other) }",
        {"one": np.array([1, 1]), "three": np.array([1, 1]), "first": np.array([1, 2]), "two": np.array([2, 2]),
         "float": np.zeros(2, np.float32), "other": np.ones(2, np.float32)},
    )  # fmt: skip
    computed = computations(monkeypatch)
    facts = infer_at(model, {"N": 2}, {"N": 3})
    assert len(computed) == 3  # p and q are one question, also at both settings
    numbers = [facts.data(out) for node in model.graph for out in node.outputs]
    assert [n.tolist() for n in numbers if n is not None] == [[2, 2], [2, 2], [2, 4], [0, 0]]


def test_learnt_numbers_are_no_part_of_a_question_but_scales_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(
        """g (float[N, 8, 4] x) => (float[N, 8, 8] y) {
            a = Conv <pads = [1, 1]> (x, w, b)
            c = Conv <pads = [1, 1]> (a, w, d)
            y = Resize(c, , scales)
        }""",
        {"w": random(8, 8, 3), "b": random(8), "d": random(8, seed=1), "scales": np.array([1, 1, 2], np.float32)},
    )
    asked = questions(monkeypatch)
    facts = infer_at(model, {"N": 2}, {"N": 2})
    assert asked == ["Conv", "Resize"]
    assert facts.shape(model.graph.outputs[0]) == (2, 8, 8)


def test_an_operator_that_onnx_does_not_know_is_not_asked_of() -> None:
    model = layers()
    node = next(iter(model.graph))
    node.domain = "own"
    assert not Asked(model).has_schema(node)


def test_facts_of_normalising_are_those_of_the_normalised_model() -> None:
    """A channel shuffle becomes a Gather; what was known of the shuffle is known of it."""
    model = graph(
        """g (float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y) {
            a = Conv(x, w)
            b = Reshape(a, apart)
            c = Transpose <perm = [0, 2, 1, 3, 4]> (b)
            d = Reshape(c, back)
            y = Relu(d)
        }""",
        {"w": random(8, 8, 1, 1), "apart": np.array([0, 2, 4, 4, 4]), "back": np.array([0, 8, 4, 4])},
    )
    normalise = Normalise()
    normalise(model)
    known, anew = normalise.facts, inference.infer(model)
    assert known is not None and "Gather" in {node.op_type for node in model.graph}
    values = [v for node in model.graph for v in (*node.inputs, *node.outputs) if v is not None]
    assert [known.dims(v) for v in values] == [anew.dims(v) for v in values]
    assert [known.dtype(v) for v in values] == [anew.dtype(v) for v in values]
    for value in values:
        ours, theirs = known.data(value), anew.data(value)
        assert (ours is None) == (theirs is None) and (ours is None or (ours == theirs).all())


@pytest.mark.parametrize("other", [-0.0, 1.0, float("nan")])
def test_nodes_that_are_written_alike_are_one_and_signs_tell_apart(other: float) -> None:
    first, twin, third = (ir.node("LeakyRelu", [ir.val("x")], {"alpha": alpha}) for alpha in (0.0, 0.0, other))
    asked = Asked(layers())
    protos = [asked._proto(node) for node in (first, twin, third)]
    assert protos[0] == protos[1] and protos[0][0] is protos[1][0]
    assert protos[2][1] != protos[0][1] and repr(protos[2][0].attribute[0].f) == repr(float(other))


def test_what_the_second_setting_takes_over_is_what_it_would_find_alone() -> None:
    """Also where a shape is another at the second setting, but not the entries that are read of it."""
    model = graph(
        """g (float[N, 8, 4] x) => (float[R, 4] y, int64[T] t) {
            s = Shape(x)
            rows = Gather <axis = 0> (s, first)
            width = Gather <axis = 0> (s, last)
            most = Mul(width, two)
            target = Concat <axis = 0> (most, minus)
            y = Reshape(x, minus_and_four)
            t = Concat <axis = 0> (rows, target)
        }""",
        {"first": np.array([0]), "last": np.array([2]), "two": np.array([2]), "minus": np.array([-1]),
         "minus_and_four": np.array([-1, 4])},
    )  # fmt: skip
    facts = infer_at(model, {"N": 2}, {"N": 3})
    alone = probe_at(model, {"N": 3})
    assert (facts.second.shapes, facts.second.dtypes) == (alone.shapes, alone.dtypes)
    assert facts.second.data.keys() == alone.data.keys()
    for value, array in alone.data.items():
        np.testing.assert_array_equal(facts.second.data[value], array)
    by_name = {str(v.name): v for node in model.graph for v in node.outputs}
    assert facts.data(by_name["target"]) is facts.first.data[by_name["target"]]
    assert facts.data(by_name["t"]) is None
