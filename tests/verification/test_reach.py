"""How far a proof reaches: units that move an output, outputs that react, branches that ran."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import two_layers

from onnxprune import runtime
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.run import prune
from onnxprune.verification import reach as reach_module
from onnxprune.verification.reach import Reach

info = helper.make_tensor_value_info


def model(nodes: list[onnx.NodeProto], weights: dict[str, Any], *outputs: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [2, 8])], [info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).standard_normal(shape)


def reach(built: onnx.ModelProto, **settings: Any) -> Reach:
    given = {
        "sparsity": 0.5,
        "structure": "channels",
        "round_to": "none",
        "ends": "prune",
        "latency": False,
        **settings,
    }
    result = prune(built, **given)
    assert result.record().figures["reach"] == result.figures["reach"]
    return Reach(**result.reach[-1])


PLAIN = [
    helper.make_node("MatMul", ["x", "w"], ["h"]),
    helper.make_node("MatMul", ["h", "v"], ["y"]),
]


def test_units_that_live_move_an_output() -> None:
    found = reach(model(PLAIN, {"w": numbers(8, 16), "v": numbers(16, 4)}, "y"))
    assert found.moved == found.tested == found.units > 4
    assert found.outputs == {"y": True}
    assert f"{found.units} of {found.units} removed units moved an output" in found.line


def test_units_that_move_nothing_are_counted() -> None:
    w = numbers(8, 16)
    w[:, :4] = 0  # dead from the start
    found = reach(model(PLAIN, {"w": w, "v": numbers(16, 4)}, "y"))
    assert (found.units - found.moved, found.tested) == (4, found.units)


def test_an_output_that_does_not_react_is_named() -> None:
    nodes = [*PLAIN, helper.make_node("MatMul", ["x", "u"], ["z"])]
    found = reach(model(nodes, {"w": numbers(8, 16), "v": numbers(16, 4), "u": numbers(8, 3)}, "y", "z"))
    assert found.outputs == {"y": True, "z": False}
    assert "1 of 2 outputs did not react, such as 'z'" in found.line


def test_the_branch_that_ran_is_named() -> None:
    out = [info("o", TensorProto.FLOAT, None)]
    bodies = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["h"], ["o"])], name, [], out)
        for name, op in (("then", "Relu"), ("else", "Neg"))
    }
    nodes = [
        PLAIN[0],
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Mul", ["s", "s"], ["positive"]),
        helper.make_node("Greater", ["positive", "limit"], ["c"]),
        helper.make_node("If", ["c"], ["i"], "choose", **bodies),
        helper.make_node("MatMul", ["i", "v"], ["y"]),
    ]
    found = reach(model(nodes, {"w": numbers(8, 16), "v": numbers(16, 4), "limit": -1.0}, "y"))
    assert found.branches == {"choose": ("then",)}
    assert "then of 'choose'" in found.line


def test_an_inexact_result_says_what_it_equals() -> None:
    nodes = [
        PLAIN[0],
        helper.make_node("LayerNormalization", ["h", "g"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "v"], ["y"]),
    ]
    built = model(nodes, {"w": numbers(8, 16), "g": np.ones(16), "v": numbers(16, 4)}, "y")
    notes = " ".join(prune(built, sparsity=0.5, structure="channels", round_to="none", ends="prune", latency=False,
                           allow_inexact=True).notes)  # fmt: skip
    assert "normalisations" in notes and "running over what is left" in notes and "does not equal" in notes


def test_nothing_is_read_of_constants_that_are_too_large_to_hand_over(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = prepare(two_layers(64))
    removed = np.zeros(structure.terms.count, bool)
    removed[structure.groups[0].atoms[:3]] = True
    batches = runtime.working_inputs(structure.model)
    assert reach_module.reach_of(structure, structure.model, removed, batches).tested == 3
    monkeypatch.setattr(reach_module, "_LARGE", 0)
    monkeypatch.setattr(reach_module, "zeroed_units", None)  # it would read them
    assert reach_module.reach_of(structure, structure.model, removed, batches).tested == 0
