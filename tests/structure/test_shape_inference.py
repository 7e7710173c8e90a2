"""Shapes and shape data at two settings: never wrong, and known wherever exporters' graphs allow it."""

from __future__ import annotations

import grown
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import inference, shapes
from onnxprune.graph.shapes import Facts

from . import contrib_cases, node_cases
from .node_cases import Case
from .twins import normalised, run


def model_of(text: str) -> ir.Model:
    """Read a model in ONNX's text form."""
    return normalised(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}'))


def named(facts: Facts, name: str) -> ir.Value:
    """Find a value by name."""
    return next(v for v in facts.first.shapes if v.name == name)


def both(facts: Facts, name: str) -> tuple[shapes.Shape, shapes.Shape]:
    """The shape of a value at both settings."""
    value = named(facts, name)
    return facts.first.shapes[value], facts.second.shapes[value]


# -- against what operators really return ---------------------------------------------------------------------------


def test_shapes_are_never_wrong() -> None:
    wrong, unknown, count = [], [], 0
    for operator, cases in node_cases.cases().items():
        for case in cases:
            facts = inference.infer(normalised(case.model))
            names = [o for o in case.node.output if o]
            for name, expected in zip(names, case.shapes, strict=False):
                value = next((v for v in facts.first.shapes if v.name == name), None)
                found = None if value is None else facts.shape(value)
                count += 1
                if found is None or None in found:
                    unknown.append(operator)
                elif found != expected:
                    wrong.append((case.name, name, found, expected))
    assert not wrong
    assert len(unknown) < 0.03 * count, sorted(set(unknown))


@pytest.mark.parametrize("operator", [name for name in contrib_cases.CASES if "::" in name])
def test_contrib_shapes_are_those_of_onnx_runtime(operator: str) -> None:
    for case in contrib_cases.cases(operator):
        _check_contrib(case)


def _check_contrib(case: Case) -> None:
    model = normalised(case.model)
    facts = inference.infer(model)
    try:
        results = run(model, {})
    except Exception as error:
        assert "not implemented" in str(error).lower(), error
        pytest.skip("it runs on GPUs only")
    for name, result in zip([o for o in case.node.output if o], results, strict=True):
        value = next((v for v in facts.first.shapes if v.name == name), None)
        found = facts.shape(value) if value is not None else None
        if found is not None:
            assert len(found) == result.ndim
            assert all(n in (None, m) for n, m in zip(found, result.shape, strict=True)), (case.name, name, found)
            assert ir.DataType(facts.dtype(value)) == ir.DataType.from_numpy(result.dtype)


@pytest.mark.parametrize("kind", ["IMAGE", "SEQUENCE"])
def test_shapes_of_random_graphs_are_known_and_right_at_both_settings(kind: str) -> None:
    rng = np.random.default_rng(0)
    blocks = getattr(grown, kind)
    for seed in range(20):
        steps = [(int(a), int(b), int(c)) for a, b, c in rng.integers(0, 12, (6, 3))]
        model = normalised(grown.grow(blocks, steps, seed))
        facts = inference.infer(model)
        assert all(None not in shape for shape in facts.first.shapes.values())
        for probe in (facts.first, facts.second):
            shape = probe.shapes[model.graph.inputs[0]]
            feeds = {"x": np.zeros([int(n or 0) for n in shape], np.float32)}
            if len(model.graph.inputs) > 1:
                feeds["flag"] = np.array(True)
            for out, result in zip(model.graph.outputs, run(model, feeds), strict=True):
                assert probe.shapes[out] == result.shape


# -- settings -------------------------------------------------------------------------------------------------------


def test_an_extent_is_static_when_both_settings_agree() -> None:
    facts = inference.infer(model_of("agraph (float[n, 3, h] x) => (float[n, 3, h] y) { y = Relu(x) }"))
    x = named(facts, "y")
    assert [facts.static(x, i) for i in range(3)] == [False, True, False]


def test_equal_names_get_equal_extents() -> None:
    facts = inference.infer(model_of("agraph (float[n, k] x, float[k, 3] w) => (float[n, 3] y) { y = MatMul(x, w) }"))
    for first in (True, False):
        x, w = (both(facts, name)[0 if first else 1] for name in ("x", "w"))
        assert x[1] == w[0]


def test_an_expression_of_names_is_followed() -> None:
    graph = helper.make_graph(
        [helper.make_node("Concat", ["p", "x"], ["y"], axis=1)],
        "g",
        [
            helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", "past"]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "s"]),
            helper.make_tensor_value_info("m", TensorProto.FLOAT, ["n", "past + s"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    facts = inference.infer(normalised(helper.make_model(graph)))
    assert both(facts, "y") == both(facts, "m")


def test_a_setting_that_contradicts_the_graph_is_passed_over() -> None:
    """Halving the side five times needs a side that is a multiple of 32."""
    text = """agraph (float[n, 3, h, h] x) => (float[n, c, k, k] y)
        <int64[4] s = {0, 3, 16, 16}> {
        a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  y = Reshape(a, s) }"""
    facts = inference.infer(model_of(text))
    assert facts.first.failures + facts.second.failures == 0


# -- data of shapes -------------------------------------------------------------------------------------------------


def test_a_computed_target_is_known_at_both_settings() -> None:
    text = """agraph (float[n, 4, 6] x) => (float[m, 24] y)
        <int64 zero = {0}, int64[1] first = {0}, int64[1] rest = {-1}>
        { s = Shape(x)  b = Gather(s, zero)  u = Unsqueeze(b, first)  t = Concat <axis = 0> (u, rest)
          y = Reshape(x, t) }"""
    facts = inference.infer(model_of(text))
    t = named(facts, "t")
    first, second = facts.first.data[t], facts.second.data[t]
    assert first[1] == second[1] == -1 and first[0] != second[0]
    assert facts.data(t) is None and [s[1] for s in both(facts, "y")] == [24, 24]


def test_static_entries_of_a_dynamic_shape_are_data() -> None:
    text = """agraph (float[n, 4, 6] x) => (int64 y)
        <int64 one = {1}> { s = Shape(x)  y = Gather(s, one) }"""
    facts = inference.infer(model_of(text))
    assert facts.data(named(facts, "y")) == 4


def test_random_numbers_are_not_data() -> None:
    facts = inference.infer(model_of("agraph () => (float[2] y) { y = RandomNormal <shape = [2]> () }"))
    assert facts.data(named(facts, "y")) is None and both(facts, "y")[0] == (2,)


def test_a_huge_constant_is_not_computed() -> None:
    text = """agraph () => (float[a, b] y) <int64[2] s = {1000000, 1000000}> { y = ConstantOfShape(s) }"""
    facts = inference.infer(model_of(text))
    assert both(facts, "y")[0] == (10**6, 10**6) and facts.data(named(facts, "y")) is None


def test_a_node_that_takes_no_such_type_is_a_failure_and_no_crash() -> None:
    facts = inference.infer(model_of("agraph (uint8[4] x) => (uint8[4] y) { y = Relu(x) }"))
    assert facts.failures == 2


# -- control flow ---------------------------------------------------------------------------------------------------


def _branch(name: str, columns: int) -> onnx.GraphProto:
    w = numpy_helper.from_array(np.zeros((4, columns), np.float32), f"w{name}")
    node = helper.make_node("MatMul", ["x", f"w{name}"], [name])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], [w])


@pytest.mark.parametrize(("columns", "expected"), [(5, 5), (6, None)])
def test_branches_that_differ_leave_an_extent_open(columns: int, expected: int | None) -> None:
    node = helper.make_node("If", ["c"], ["y"], then_branch=_branch("a", 5), else_branch=_branch("b", columns))
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    facts = inference.infer(normalised(helper.make_model(helper.make_graph([node], "g", inputs, outputs))))
    assert [s[1] for s in both(facts, "y")] == [expected, expected]


def test_measured_shapes_fill_gaps_only() -> None:
    text = """agraph (float[n, 4] x) => (float[n, 4] y)  { z = NonZero(x)  y = Relu(x) }"""
    model = model_of(text)
    facts = inference.infer(model)
    z, y = named(facts, "z"), named(facts, "y")
    before = both(facts, "y")
    facts.fill({z: (2, 8), y: (9, 9)}, {z: (2, 12), y: (9, 9)})
    assert both(facts, "z") == ((2, 8), (2, 12)) and both(facts, "y") == before
