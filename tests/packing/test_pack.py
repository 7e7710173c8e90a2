"""Packing: smaller, bit-exact, folded at session load, and honest about what it left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import RecipeError
from onnxprune.packing import Mode, Values, output_error, pack, to_sparse_initializers, unpack

from .builders import (
    DECODER_OPERATORS,
    LEVELS,
    initializers,
    matmul,
    network,
    operators_left,
    proto,
    run,
    sparse_array,
)

MODES = get_args(Mode)
VALUES = get_args(Values)
X = np.random.default_rng(9).standard_normal((1, 16, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 23])
@pytest.mark.parametrize("mode", MODES)
def test_exact_values_give_identical_outputs_and_fold(mode: Any, opset: int, tmp_path: Path) -> None:
    dense = network(0.9, opset)
    packed, report = pack(ir.from_proto(dense), mode=mode)
    result = ir.to_proto(packed)
    onnx.checker.check_model(result, full_check=True)
    assert {t.name for t in report.packed} >= {"conv.weight", "fc.weight"}
    assert result.ByteSize() < 0.4 * dense.ByteSize()
    for level in LEVELS:
        assert run(dense, {"x": X}, level)[0].tobytes() == run(result, {"x": X}, level)[0].tobytes()
        assert not operators_left(result, level, str(tmp_path / "o.onnx")) & DECODER_OPERATORS
    assert initializers(unpack(packed)) == initializers(ir.from_proto(dense))


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", VALUES[1:])
def test_lossy_values_run_fold_and_report_their_error(values: Any, mode: Any, sparsity: float, tmp_path: Path) -> None:
    model = ir.from_proto(network(sparsity))
    packed, report = pack(model, values=values, mode=mode)
    result = ir.to_proto(packed)
    onnx.checker.check_model(result, full_check=True)
    for level in LEVELS:
        assert not operators_left(result, level, str(tmp_path / "o.onnx")) & DECODER_OPERATORS
    assert run(ir.to_proto(unpack(packed)), {"x": X})[0].tobytes() == run(result, {"x": X})[0].tobytes()
    limit = {"fp16": 1e-3, "int8": 0.02, "codebook256": 0.02, "codebook16": 0.2}[values]
    assert all(t.relative_error < limit for t in report.tensors)
    error = output_error(model, packed, [{"x": X}])
    assert error.relative < 5 * limit
    assert error.identical == all(t.values == "exact" for t in report.tensors)
    assert next(t for t in report.tensors if t.name == "conv.bias").values == "exact"


def test_zeros_stay_zero_under_lossy_values() -> None:
    before = sparse_array((64, 64), 0.8)
    for values in VALUES:
        packed, _ = pack(ir.from_proto(matmul(before)), values=values)
        after = unpack(packed).graph.initializers["w"].const_value
        assert after is not None
        assert (after.numpy()[before == 0] == 0).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("width", [1, 3, 8, 40, 300])
@pytest.mark.parametrize("mode", MODES)
def test_never_larger_than_dense_however_small(mode: Any, width: int, sparsity: float) -> None:
    dense = matmul(sparse_array((width, 13), sparsity))
    for values in VALUES:
        packed, _ = pack(ir.from_proto(dense), values=values, mode=mode)
        assert ir.to_proto(packed).ByteSize() <= ir.to_proto(ir.from_proto(dense)).ByteSize()


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_smallest_is_the_smallest(sparsity: float) -> None:
    model = ir.from_proto(matmul(sparse_array((600, 400), sparsity)))
    sizes = {mode: ir.to_proto(pack(model, mode=mode)[0]).ByteSize() for mode in MODES}
    assert sizes["smallest"] == min(sizes.values())
    assert sizes["smallest"] < to_sparse_initializers(model).ByteSize()


def test_report_says_how_many_bytes_within_a_percent() -> None:
    dense = network(0.9)
    packed, report = pack(ir.from_proto(dense))
    saved = ir.to_proto(ir.from_proto(dense)).ByteSize() - ir.to_proto(packed).ByteSize()
    assert saved == pytest.approx(report.dense_bytes - report.packed_bytes, rel=0.01)


def test_same_input_same_bytes_and_the_input_is_left_alone() -> None:
    model = ir.from_proto(network(0.9))
    before = ir.to_proto(model).SerializeToString()
    first, second = (ir.to_proto(pack(model, values="codebook16")[0]).SerializeToString() for _ in range(2))
    assert first == second
    assert ir.to_proto(model).SerializeToString() == before


def test_packing_twice_changes_nothing() -> None:
    once, _ = pack(ir.from_proto(network(0.9)))
    twice, _ = pack(once)
    assert ir.to_proto(twice).SerializeToString() == ir.to_proto(once).SerializeToString()


def test_unknown_choices_are_refused() -> None:
    model = ir.from_proto(network(0.9))
    with pytest.raises(RecipeError, match="mode is 'tiny'"):
        pack(model, mode="tiny")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="values is 'int4'"):
        pack(model, values="int4")  # type: ignore[arg-type]


# --- what is left dense, and why -------------------------------------------------------------------------------------


def _reason(model: onnx.ModelProto, name: str) -> str:
    packed, report = pack(ir.from_proto(model))
    assert name in packed.graph.initializers
    return next(t for t in report.tensors if t.name == name).reason


def test_below_opset_11() -> None:
    assert "opset is 10" in _reason(matmul(sparse_array((64, 64), 0.9), opset=10), "w")


def test_overridable_initializers() -> None:
    model = matmul(sparse_array((64, 64), 0.9))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 64]))
    assert "override" in _reason(model, "w")


def test_integer_tensors_that_may_be_shapes() -> None:
    model = matmul(sparse_array((64, 64), 0.9))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(500, np.int64), "indices"))
    model.graph.node.append(helper.make_node("Cast", ["indices"], ["z"], to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [500]))
    assert _reason(model, "indices") == "INT64 is not packed"


def test_too_few_zeros() -> None:
    assert "no form is smaller" in _reason(matmul(sparse_array((64, 64), 0.02)), "w")


def test_more_elements_than_int32_can_count() -> None:
    def never() -> ir.TensorProtocol:
        raise AssertionError("a tensor beyond the limit was read")

    model = ir.from_proto(matmul(sparse_array((4, 4), 0.0)))
    shape = ir.Shape([2**16, 2**16])
    model.graph.initializers["w"].const_value = ir.LazyTensor(never, ir.DataType.FLOAT, shape, name="w")
    _, report = pack(model)
    assert report.tensors[0].reason == "more than 2**31 - 1 elements"


def test_tensors_that_are_no_weights_stay_exact() -> None:
    node = helper.make_node("Add", ["x", "anchors"], ["y"])
    model = ir.from_proto(proto([node], {"anchors": sparse_array((40, 40), 0.5)}, {"x": [40, 40]}, {"y": [40, 40]}))
    packed, report = pack(model, values="codebook16")
    assert report.tensors[0].values == "exact" and "not read as a weight" in report.tensors[0].reason
    assert initializers(unpack(packed)) == initializers(model)


def test_weights_with_nan_or_infinity_stay_exact() -> None:
    weight = sparse_array((40, 40), 0.9)
    weight[3, 4], weight[5, 6] = np.nan, -np.inf
    model = ir.from_proto(matmul(weight))
    packed, report = pack(model, values="int8")
    assert "NaN" in report.tensors[0].reason and report.tensors[0].form != "dense"
    assert initializers(unpack(packed)) == initializers(model)


# --- where tensors may sit -------------------------------------------------------------------------------------------


def _round_trip(model: onnx.ModelProto, feeds: dict[str, np.ndarray], tmp_path: Path) -> ir.Model:
    """Packs, compares at both levels, checks folding and unpacking; returns the packed model."""
    packed, report = pack(ir.from_proto(model), mode="smallest")
    assert report.packed
    result = ir.to_proto(packed)
    onnx.checker.check_model(result, full_check=True)
    for level in LEVELS:
        for a, b in zip(run(model, feeds, level), run(result, feeds, level), strict=True):
            assert a.tobytes() == b.tobytes()
        assert not operators_left(result, level, str(tmp_path / "o.onnx")) & DECODER_OPERATORS
    assert initializers(unpack(packed)) == initializers(ir.from_proto(model))
    return packed


def test_shared_by_two_nodes(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    model = proto(nodes, {"w": sparse_array((50, 50), 0.9)}, {"x": [2, 50]}, {"y": [2, 50]})
    _round_trip(model, {"x": np.ones((2, 50), np.float32)}, tmp_path)


def test_graph_output(tmp_path: Path) -> None:
    model = matmul(sparse_array((50, 50), 0.9))
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [50, 50]))
    _round_trip(model, {"x": np.ones((2, 50), np.float32)}, tmp_path)


def _branch(name: str, weight: np.ndarray | None, used: str) -> onnx.GraphProto:
    tensors = [] if weight is None else [numpy_helper.from_array(weight, used)]
    output = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [2, 50])
    return helper.make_graph([helper.make_node("MatMul", ["x", used], [f"{name}.y"])], name, [], [output], tensors)


def test_read_from_the_outer_scope_and_owned_by_a_branch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            then_branch=_branch("then", None, "w"),
            else_branch=_branch("else", sparse_array((50, 50), 0.95, 7), "inner"),
        ),
    ]
    tensors = {"w": sparse_array((50, 50), 0.9), "zero": np.array(0, np.float32)}
    model = proto(nodes, tensors, {"x": [2, 50]}, {"y": [2, 50]})
    for sign in (1, -1):
        packed = _round_trip(model, {"x": np.full((2, 50), sign, np.float32)}, tmp_path)
    names = {n for graph in packed.graphs() for n in graph.initializers}
    assert not names & {"w", "inner"}


def test_used_inside_a_loop(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"]), helper.make_node("Identity", ["go"], ["more"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, 50]),
        ],
        [
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2, 50]),
        ],
    )
    tensors = {"w": sparse_array((50, 50), 0.9), "times": np.array(3), "true": np.array(True)}
    model = proto(
        [helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body)], tensors, {"x": [2, 50]}, {"y": [2, 50]}
    )
    _round_trip(model, {"x": np.ones((2, 50), np.float32)}, tmp_path)


def test_constant_nodes_are_packed_and_come_back_as_initializers() -> None:
    weight = sparse_array((50, 50), 0.9)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = proto(nodes, {}, {"x": [2, 50]}, {"y": [2, 50]})
    packed, _ = pack(ir.from_proto(model))
    assert ir.to_proto(packed).ByteSize() < model.ByteSize() / 2
    back = unpack(packed).graph.initializers["w"].const_value
    assert back is not None and back.tobytes() == weight.tobytes()


def test_names_that_look_like_helpers_do_not_collide(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "pk_0.gaps"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    tensors = {"pk_0.gaps": sparse_array((50, 50), 0.9), "w": sparse_array((50, 50), 0.9, 1)}
    model = proto(nodes, tensors, {"x": [2, 50]}, {"y": [2, 50]})
    _round_trip(model, {"x": np.ones((2, 50), np.float32)}, tmp_path)


def test_external_data(tmp_path: Path) -> None:
    dense = network(0.9)
    ir.save(ir.from_proto(dense), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    packed, report = pack(ir.load(tmp_path / "m.onnx"))
    assert len(report.packed) == 2
    ir.save(packed, tmp_path / "packed.onnx", external_data="packed.data")
    result = onnx.load(tmp_path / "packed.onnx")
    assert run(dense, {"x": X})[0].tobytes() == run(result, {"x": X})[0].tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.uint8])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("opset", [13, 21])
def test_other_data_types(dtype: Any, mode: Any, opset: int, tmp_path: Path) -> None:
    wide = sparse_array((80, 50), 0.9)
    weight = np.clip(wide * 20, -127, 127).astype(dtype) if np.dtype(dtype).kind in "iu" else wide.astype(dtype)
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    model = proto(nodes, {"w": weight}, {"x": [2, 80]}, {"y": [2, 50]}, opset)
    feeds = {"x": np.ones((2, 80), np.float32)}
    _round_trip(model, feeds, tmp_path)
    packed, report = pack(ir.from_proto(model), mode=mode)
    assert run(model, feeds)[0].tobytes() == run(ir.to_proto(packed), feeds)[0].tobytes()
    if dtype is ml_dtypes.bfloat16 and opset < 20:  # ConstantOfShape writes no bfloat16 yet
        assert report.tensors[0].form in ("dense", "bitmask")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("values", VALUES)
def test_lossy_values_of_other_float_types(dtype: Any, values: Any, tmp_path: Path) -> None:
    model = matmul(sparse_array((80, 50), 0.9).astype(dtype))
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for put in (*model.graph.input, *model.graph.output):
        put.type.tensor_type.elem_type = elem
    packed, _ = pack(ir.from_proto(model), values=values)
    result = ir.to_proto(packed)
    onnx.checker.check_model(result, full_check=True)
    feeds = {"x": np.ones((2, 80), dtype)}
    for level in LEVELS:
        plain = ir.to_proto(unpack(packed))
        assert run(plain, feeds, level)[0].tobytes() == run(result, feeds, level)[0].tobytes()


def test_quantised_model_keeps_its_integer_convolution(tmp_path: Path) -> None:
    """Sparse uint8 weights around a zero point of 128 pack, and QLinearConv is still what runs."""
    codes = np.full((16, 16, 3, 3), 128, np.uint8)
    codes[sparse_array(codes.shape, 0.9) != 0] = 200
    scalar = {"s": np.array(0.05, np.float32), "z": np.array(128, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    model = proto(nodes, {"w": codes, **scalar}, {"x": [1, 16, 8, 8]}, {"y": [1, 16, 6, 6]})
    packed = _round_trip(model, {"x": X}, tmp_path)
    assert "QLinearConv" in operators_left(ir.to_proto(packed), LEVELS[1], str(tmp_path / "q.onnx"))


def test_weights_that_were_clustered_are_stored_through_a_table_exactly(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).choice(np.array([0, -0.5, -0.0, 0.25, 1e-40], np.float32), (80, 80))
    model = matmul(weight)
    packed = _round_trip(model, {"x": np.ones((2, 80), np.float32)}, tmp_path)
    assert ir.to_proto(packed).ByteSize() < 0.2 * model.ByteSize()
