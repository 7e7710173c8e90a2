"""int8 of models that ONNX Runtime's quantiser turns inside out, or takes in part: what stays in float is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import graph, random

import onnxprune
from onnxprune import ModelError, model_io, runtime
from onnxprune.graph.size import parameters
from onnxprune.runtime import quantise


def sparse(*shape: int, seed: int = 0) -> np.ndarray:
    array = random(*shape, seed=seed)
    array[np.abs(array) < 0.3] = 0
    return array


def near(model: ir.Model, quantised: ir.Model, feeds: dict[str, Any], limit: float = 0.15) -> None:
    plain, found = (runtime.run(runtime.make_session(m), feeds) for m in (model, quantised))
    assert runtime.compare_outputs(plain, found).max_rel < limit


def int8_weights(model: ir.Model) -> int:
    return sum(p.tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8) for p in parameters(model))


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_vectors_that_the_tools_give_more_axes(form: str) -> None:
    """Channels last around a convolution: its scale and bias become [16, 1, 1], and zeros of theirs are no weights'."""
    model = graph(
        "agraph (float[N,9,9,4] x) => (float[N,5] y) { a = Transpose<perm = [0,3,1,2]>(x) b = Conv(a, k) "
        "c = Transpose<perm = [0,2,3,1]>(b) d = Mul(c, scale) e = Add(d, shift) f = Relu(e) g = MatMul(f, w) "
        "h = ReduceMean<axes = [1,2], keepdims = 0>(g) y = MatMul(h, v) }",
        {
            "k": sparse(16, 4, 3, 3), "scale": np.abs(random(16)) + 0.5, "shift": random(16),
            "w": sparse(16, 12), "v": sparse(12, 5),
        },
    )  # fmt: skip
    batches = [{"x": random(4, 9, 9, 4, seed=s)} for s in range(3)]
    quantised = quantise.quantise(model, form, batches)
    assert int8_weights(quantised.model) >= 3 and not quantised.notes
    near(model, quantised.model, batches[0])


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_a_table_that_is_a_head_too(form: str) -> None:
    model = graph(
        "agraph (int64[N,T] i) => (float[N,T,40] y) { e = Gather(table, i) a = MatMul(e, w) b = Relu(a) "
        "c = MatMul(b, v) t = Transpose(table) y = MatMul(c, t) }",
        {"table": sparse(40, 16), "w": sparse(16, 24), "v": sparse(24, 16)},
    )
    batches = [{"i": np.random.default_rng(s).integers(0, 40, (4, 7))} for s in range(3)]
    near(model, quantise.quantise(model, form, batches).model, batches[0], 0.25)


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
@pytest.mark.parametrize("width", [8, 16])
def test_a_weight_that_is_read_turned_too(form: str, width: int) -> None:
    """The tools store it twice, and zeros of the second are those of the first, turned."""
    model = graph(
        f"agraph (float[N,{width}] x) => (float[N,{width}] y) {{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) "
        "d = Relu(c) y = Gemm<transB = 1>(d, w) }",
        {"w": sparse(width, 16), "v": sparse(16, 16)},
    )
    batches = [{"x": random(4, width, seed=s)} for s in range(3)]
    near(model, quantise.quantise(model, form, batches).model, batches[0])


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_the_factor_of_a_bias_counts(form: str) -> None:
    """ONNX Runtime's quantiser takes it for 1."""
    model = graph(
        "agraph (float[N,8] x) => (float[N,4] y) { a = Gemm<beta = 3.0>(x, w, b) c = Relu(a) "
        "y = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(c, v, b2) }",
        {"w": sparse(8, 16), "b": random(16), "v": sparse(4, 16), "b2": random(4)},
    )
    batches = [{"x": random(4, 8, seed=s)} for s in range(3)]
    near(model, quantise.quantise(model, form, batches).model, batches[0])


def test_nodes_that_fail_stay_in_float_and_are_named() -> None:
    """Transposed convolutions with groups, of which ONNX Runtime counts the channels wrongly; one bears no name."""
    weights = {
        "w1": sparse(8, 3, 3, 3), "t1": sparse(8, 4, 2, 2), "b1": random(16), "t2": sparse(16, 2, 2, 2),
        "b2": random(16), "w2": sparse(4, 16, 1, 1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first"),
        helper.make_node("ConvTranspose", ["a", "t1", "b1"], ["b"], name="", group=4, strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("ConvTranspose", ["c", "t2", "b2"], ["d"], name="up", group=8, strides=[2, 2]),
        helper.make_node("Conv", ["d", "w2"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 6, 6]), ("y", None)))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "up", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    model = model_io.load_any(proto)
    batches = [{"x": random(2, 3, 6, 6, seed=s)} for s in range(3)]
    quantised = quantise.quantise(model, "int8", batches)
    (note,) = quantised.notes
    assert "2 of 4 weights are int8" in note
    for words in ("'t1' (ConvTranspose)", "'t2' (ConvTranspose)", "ConvTranspose 'up'", "ConvTranspose 'b'"):
        assert words in note
    assert {node.name for node in quantised.model.graph if node.op_type == "ConvTranspose"} == {"", "up"}
    near(model, quantised.model, batches[0])


def branching(in_the_main_graph: bool) -> onnx.ModelProto:
    """Weights in the branches of an If, and one before it if wanted."""

    def branch(name: str) -> onnx.GraphProto:
        weight = numpy_helper.from_array(random(8, 12, seed=len(name)), f"{name}_w")
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["h", f"{name}_w"], [name])], name, [], [out], [weight])

    first = helper.make_node("MatMul" if in_the_main_graph else "Add", ["x", "w"], ["h"])
    nodes = [first, helper.make_node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("other"))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(random(8, 8) if in_the_main_graph else random(8), "w")
    made = helper.make_graph(nodes, "branching", [x, c], [y], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_partial_work_is_told(form: str) -> None:
    batches = [{"x": random(4, 8, seed=s), "c": np.array(s % 2 == 0)} for s in range(2)]
    (note,) = quantise.quantise(model_io.load_any(branching(True)), form, batches).notes
    assert "1 of 3 weights are int8" in note and "'then_w' (MatMul)" in note and "'other_w' (MatMul)" in note
    with pytest.raises(ModelError, match="none of the 2 weights int8"):
        quantise.quantise(model_io.load_any(branching(False)), form, batches)


@pytest.mark.parametrize("form", ["int8", "int8-dynamic"])
def test_a_model_older_than_quantised_operators_is_lifted(form: str, tmp_path: Path) -> None:
    model = graph(
        "agraph (float[N,3,9,9] x) => (float[N,5] y) { a = Conv(x, k) b = Relu(a) c = MaxPool<kernel_shape = [7,7]>(b) "
        "d = Flatten(c) y = Gemm(d, w, b0) }",
        {"k": sparse(8, 3, 3, 3), "w": sparse(8, 5), "b0": random(5)},
        opset=8,
    )
    data = {"x": random(16, 3, 9, 9)}
    result = onnxprune.prune(model, sparsity=0.5, quantize=form, calibration=data, recover="no", latency=False)
    assert result.model.opset_imports[""] == 13 and int8_weights(result.model) == 2
    assert any("lifted from opset 8" in note for note in result.notes)
