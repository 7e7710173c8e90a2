"""An If whose condition follows from shapes is the branch that runs, wherever it stands."""

from __future__ import annotations

import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper, numpy_helper


def _graph(nodes: list[onnx.NodeProto], *outputs: str, inputs: tuple[onnx.ValueInfoProto, ...] = ()) -> onnx.GraphProto:
    made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    return helper.make_graph(nodes, "body", list(inputs), made)


def _chooses(rank_wanted: int, negated: bool) -> list[onnx.NodeProto]:
    """`Conv -> (rank == rank_wanted ? Unsqueeze : Identity) -> Reshape to three axes -> Conv`, from x to out."""
    unsqueeze = _graph([helper.make_node("Unsqueeze", ["a", "last"], ["more"])], "more")
    same = _graph([helper.make_node("Identity", ["a"], ["same"])], "same")
    equal = [helper.make_node("Equal", ["rank", "wanted"], ["c"])]
    if negated:
        equal = [helper.make_node("Equal", ["rank", "wanted"], ["e"]), helper.make_node("Not", ["e"], ["c"])]
        unsqueeze, same = same, unsqueeze
    return [
        helper.make_node("Conv", ["x", "w1"], ["a0"], pads=[1, 1]),
        helper.make_node("Relu", ["a0"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Size", ["s"], ["rank"]),
        helper.make_node(
            "Constant", [], ["wanted"], value=numpy_helper.from_array(np.array(rank_wanted)), name=f"want{rank_wanted}"
        ),
        *equal,
        helper.make_node("If", ["c"], ["b"], then_branch=unsqueeze, else_branch=same),
        *([helper.make_node("Squeeze", ["b", "last"], ["b3"])] if rank_wanted == 3 else []),
        helper.make_node("Conv", ["b3" if rank_wanted == 3 else "b", "w2"], ["out"], pads=[1, 1]),
    ]


def _model(rank_wanted: int, *, negated: bool, where: str) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((12, 4, 3), np.float32),
        "w2": rng.standard_normal((4, 12, 3), np.float32),
        "last": np.array([-1]),
        "turns": np.array(2),
        "yes": np.array(True),
        "zero": np.array(0, np.float32),
    }
    inner = _chooses(rank_wanted, negated)
    if where == "branch":
        other = [helper.make_node("Neg", ["x"], ["less"])]
        nodes = [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If", ["positive"], ["y"], then_branch=_graph(other, "less"), else_branch=_graph(inner, "out")
            ),
        ]
    elif where == "loop":
        goes = helper.make_tensor_value_info("go2", TensorProto.BOOL, [])
        inputs = (
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        )
        body = _graph([*inner, helper.make_node("Identity", ["go"], ["go2"])], "out", inputs=inputs)
        body.output.insert(0, goes)
        for node in body.node:
            node.input[:] = ["turn" if name == "x" else name for name in node.input]
        body.input[2].name = "turn"
        nodes = [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)]
    else:
        nodes = [*inner, helper.make_node("Identity", ["out"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "chooses",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, "T"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


@pytest.mark.parametrize("where", ["top", "branch", "loop"])
@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("rank_wanted", [3, 4])
def test_the_branch_that_never_runs_ties_nothing(rank_wanted: int, negated: bool, where: str) -> None:
    proto = _model(rank_wanted, negated=negated, where=where)
    verdict = oracle.check(lambda: oracle.normalised(proto), 0.5)
    assert verdict.removed == 6
    assert verdict.good
