"""Sessions: any form of model, any element type, errors in one sentence."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from model_io_models import mlp, stored, stored_external
from onnx import TensorProto, helper
from small_models import halved, two_layers

from onnxprune import model_io
from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.runtime import make_session, run, session

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


def test_all_forms_of_a_model_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = [mlp(), mlp().SerializeToString(), stored(tmp_path), str(stored(tmp_path)), model_io.load_any(mlp())]
    forms.append(model_io.load(stored_external(tmp_path)))
    results = [run(make_session(form, optimize="off"), {"x": X})["y"] for form in forms]
    monkeypatch.setattr(session, "_IN_MEMORY_LIMIT", 0)
    results.append(run(make_session(model_io.load_any(mlp()), optimize="off"), {"x": X})["y"])
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("optimize", ["off", "basic", "all"])
def test_optimisation_levels(optimize: session.Optimize) -> None:
    options = make_session(mlp(), optimize=optimize, threads=2).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.graph_optimization_level == session._LEVELS[optimize]


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16, np.float64, np.uint8])
def test_element_types_that_numpy_lacks(dtype: type) -> None:
    kind = ir.DataType.from_numpy(np.dtype(dtype)).value
    value = [helper.make_tensor_value_info(name, kind, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    array = np.array([[0, 1], [2, -0.0]]).astype(dtype)
    result = run(make_session(model), {"x": array})["y"]
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result.astype(np.float32), array.astype(np.float32))


def test_errors_are_one_sentence_of_the_kind_asked_for() -> None:
    broken = mlp()
    broken.graph.node[1].op_type = "NoSuchOperator"
    for kind in (ModelError, VerificationError):
        with pytest.raises(kind, match="NoSuchOperator") as caught:
            make_session(broken.SerializeToString(), error=kind)
        assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)
    with pytest.raises(DataError) as wrong:
        run(make_session(mlp()), {"x": X[:, :3]})
    assert "\n" not in str(wrong.value) and "/onnxruntime" not in str(wrong.value)


def test_only_the_outputs_asked_for() -> None:
    model = mlp()
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 64]))
    assert list(run(make_session(model), {"x": X}, ["r"])) == ["r"]
    assert list(run(make_session(model), {"x": X})) == ["y", "r"]


@pytest.mark.parametrize(("optimize", "limit"), [("basic", "_CHECK_LIMIT"), ("all", "COPY_LIMIT")])
def test_a_large_model_is_neither_packed_nor_kept_in_an_arena(
    monkeypatch: pytest.MonkeyPatch, optimize: session.Optimize, limit: str
) -> None:
    """16-bit floats count as float32, which ONNX Runtime makes of them. Where time is measured, only beyond memory."""
    monkeypatch.setattr(session, "_IN_MEMORY_LIMIT", 0)
    monkeypatch.setattr(session, "_SMALL", 0)
    model = model_io.load_any(mlp())
    size = model_io.serialized_size(model)
    monkeypatch.setattr(session, limit, size)
    assert make_session(model, optimize=optimize).get_session_options().enable_cpu_mem_arena
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.Tensor(tensor.numpy().astype(np.float16), name=value.name)
    monkeypatch.setattr(session, limit, model_io.serialized_size(model))
    options: list[object] = []
    monkeypatch.setattr(session.ort, "InferenceSession", lambda _, chosen, **__: options.append(chosen))
    make_session(model, optimize=optimize)
    assert options[0].execution_order == session.ort.ExecutionOrder.PRIORITY_BASED  # type: ignore[attr-defined]
    assert not options[0].enable_cpu_mem_arena  # type: ignore[attr-defined]
    assert options[0].get_session_config_entry("session.disable_prepacking") == "1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("half", "kept"), [(False, True), (True, False)])
def test_a_large_session_keeps_its_arena_where_no_weight_is_cast(
    half: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cast weights are given back behind their layer; other values are used again, which the C library seldom does."""
    found = list[bool]()
    make = ort.InferenceSession

    def spy(model: str, options: ort.SessionOptions, **settings: object) -> ort.InferenceSession:
        found.append(options.enable_cpu_mem_arena)
        return make(model, options, **settings)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    for limit in ("_IN_MEMORY_LIMIT", "_CHECK_LIMIT", "_SMALL"):
        monkeypatch.setattr(session, limit, 0)
    make_session(halved(two_layers()) if half else two_layers())
    assert found == [kept]
