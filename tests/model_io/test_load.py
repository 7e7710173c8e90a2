"""Loading: what a loaded model holds, whatever the file was like."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from model_io_models import FLOAT, mlp, sparse, stored, stored_external
from onnx import helper, numpy_helper, parser

from onnxprune import model_io
from onnxprune.runtime import make_session, run


def outputs(model: ir.Model | Path | bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return list(run(make_session(model, optimize="off"), feeds).values())


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


def test_everything_a_model_says_about_itself_is_kept(tmp_path: Path) -> None:
    original = mlp()
    model = model_io.load(stored(tmp_path, original))
    again = model_io.to_proto(model)
    assert list(again.graph.node) == list(original.graph.node)
    assert list(again.graph.input) == list(original.graph.input)
    assert list(again.graph.output) == list(original.graph.output)
    assert list(again.opset_import) == list(original.opset_import)
    assert list(again.metadata_props) == list(original.metadata_props)
    for field in ("ir_version", "producer_name", "model_version", "doc_string"):
        assert getattr(again, field) == getattr(original, field)
    assert again.graph.doc_string == "a small network"
    for ours, theirs in zip(again.graph.initializer, original.graph.initializer, strict=True):
        assert ours.name == theirs.name
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))


def test_external_data_stays_on_disk_until_it_is_read(tmp_path: Path) -> None:
    model = model_io.load(stored_external(tmp_path))
    tensors = [value.const_value for value in model.graph.initializers.values()]
    assert all(isinstance(tensor, ir.ExternalTensor) and tensor.raw is None for tensor in tensors)
    source = model_io.source_of(model.clone())
    assert source is not None and source.data_files == (tmp_path / "weights.bin",)
    np.testing.assert_array_equal(outputs(model, {"x": X})[0], outputs(model_io.load_any(mlp()), {"x": X})[0])


def test_external_data_in_a_folder_below_and_in_attributes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    proto = mlp()
    value = proto.graph.initializer[0]
    node = helper.make_node("Constant", [], ["w1"], value=value)
    proto.graph.node.insert(0, node)
    del proto.graph.initializer[0]
    (tmp_path / "data" / "w.bin").write_bytes(value.raw_data)
    constant = proto.graph.node[0].attribute[0].t
    constant.ClearField("raw_data")
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="data/w.bin")
    model = model_io.load(stored(tmp_path, proto))
    np.testing.assert_array_equal(outputs(model, {"x": X})[0], outputs(model_io.load_any(mlp()), {"x": X})[0])


@pytest.mark.parametrize("coordinates", [False, True])
def test_sparse_initializers_become_dense(tmp_path: Path, coordinates: bool) -> None:
    proto = mlp()
    dense = numpy_helper.to_array(proto.graph.initializer[0]) * (np.arange(64) % 3 == 0)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(dense, "w1"))
    expected = outputs(model_io.load_any(proto), {"x": X})[0]
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(sparse(dense, "w1", coordinates=coordinates))
    model = model_io.load(stored(tmp_path, proto))
    np.testing.assert_array_equal(weights(model)["w1"], dense)
    np.testing.assert_array_equal(outputs(model, {"x": X})[0], expected)
    assert not model_io.to_proto(model).graph.sparse_initializer


def test_sparse_tensors_inside_subgraphs_and_constants_become_dense() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["":17]>
        g (float[3] x, bool c) => (float[3] y) {
            y = If (c) <then_branch = a () => (float[3] t) { t = Add(x, s) },
                        else_branch = b () => (float[3] e) { k = Constant() e = Mul(x, k) }> }""")
    dense = np.array([0, 2, 0], np.float32)
    then, other = (attribute.g for attribute in proto.graph.node[0].attribute)
    then.sparse_initializer.append(sparse(dense, "s", coordinates=False))
    other.node[0].attribute.append(helper.make_attribute("sparse_value", sparse(dense, "k", coordinates=False)))
    model = model_io.load_any(proto)
    x = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(outputs(model, {"x": x, "c": np.array(True)})[0], x + dense)
    np.testing.assert_array_equal(outputs(model, {"x": x, "c": np.array(False)})[0], x * dense)


def test_local_functions_are_inlined_without_name_clashes() -> None:
    """onnx-ir's own inliner uses t_2 twice here, outside and inside the branch, which ONNX Runtime refuses."""
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["":17,"local":1]>
        g (float[N] x, bool c) => (float[N] y) {
            a = local.f(x)
            y = If(c) <then_branch = g1 () => (float[N] t) { t_2 = Relu(a) t = Neg(t_2) },
                       else_branch = g2 () => (float[N] e) { t = Identity(a) e = local.f(t) }> }
        <domain:"local", opset_import: ["":17]> f (x) => (r) { t = Abs(x) t_2 = Neg(t) r = Relu(t_2) }""")
    feeds = {"x": np.array([-1, 2], np.float32), "c": np.array(True)}
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)
    model = model_io.load_any(proto)
    assert not model.functions
    np.testing.assert_array_equal(outputs(model, feeds)[0], expected[0])
    assert not model_io.load_any(ir.from_proto(proto)).functions


def test_a_function_written_for_another_opset_is_converted() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["":18,"local":1]>
        g (float[2,3] x) => (float[2,1] y) { y = local.mean(x) }
        <domain:"local", opset_import: ["":13]> mean (x) => (r) { r = ReduceMean <axes = [1]> (x) }""")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(outputs(model_io.load_any(proto), {"x": x})[0], x.mean(1, keepdims=True))


def test_large_weights_survive_inlining_in_their_order() -> None:
    proto = mlp(width=4096)
    proto.opset_import.add(domain="local", version=1)
    proto.functions.append(
        helper.make_function("local", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], proto.opset_import)
    )
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "f", "local"
    model = model_io.load_any(proto)
    assert list(model.graph.initializers) == ["w1", "b1", "w2", "b2"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    np.testing.assert_array_equal(outputs(model, {"x": X})[0], outputs(model_io.load_any(mlp(width=4096)), {"x": X})[0])


def old_model(opset: int, batch: int | str) -> onnx.ModelProto:
    """Add with the broadcast attribute that opset 7 abolished; weights are inputs too, as IR version 3 demands."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((8, 1024)).astype(np.float32), "b": np.ones(1024, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["y"], name="bias", broadcast=1),
    ]
    info = [helper.make_tensor_value_info(name, FLOAT, array.shape) for name, array in arrays.items()]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 8]), *info],
        [helper.make_tensor_value_info("y", FLOAT, [batch, 1024])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 3
    return model


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("opset", [1, 5, 6])
def test_opsets_before_7_are_upgraded(opset: int, batch: int | str) -> None:
    proto = old_model(opset, batch)
    model = model_io.load_any(proto)
    assert model.opset_imports[""] == 7
    assert list(model.graph.inputs[0].shape)[1] == 8
    assert [str(dim) for dim in model.graph.outputs[0].shape] == [str(batch), "1024"]
    assert list(model.graph.initializers) == ["w", "b"]
    expected = X @ numpy_helper.to_array(proto.graph.initializer[0]) + 1
    np.testing.assert_allclose(outputs(model, {"x": X})[0], expected, rtol=1e-5, atol=1e-5)


def test_every_opset_from_7_to_the_newest_is_kept() -> None:
    for opset in range(7, onnx.defs.onnx_opset_version() + 1):
        if model_io.limits.runtime_refusal(8, opset) is None:
            assert model_io.load_any(mlp(opset=opset)).opset_imports[""] == opset


def test_nodes_out_of_order_are_sorted() -> None:
    proto = mlp()
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = model_io.load_any(proto)
    assert [node.name for node in model.graph] == ["first", "relu", "second"]


def test_a_body_that_reads_what_comes_later_is_sorted_behind_it() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (bool c, float[2] x) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] a) { a = Neg(late) },
            else_branch = e () => (float[2] b) { b = Identity(late) }
        >
        late = Exp(x)
    }"""
    model = model_io.load_any(onnx.parser.parse_model(text))
    assert [node.op_type for node in model.graph] == ["Exp", "If"]
    assert [node.op_type for node in model.clone().graph] == ["Exp", "If"]


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn],
)
@pytest.mark.parametrize("external", [False, True])
def test_element_types_survive_loading_and_saving(tmp_path: Path, dtype: type, external: bool) -> None:
    array = (np.arange(15, dtype=np.float32) % 7).reshape(3, 5).astype(dtype)
    kind = ir.DataType.from_numpy(np.dtype(dtype)).value
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", kind, array.shape)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    proto.ir_version = 10
    proto.graph.initializer.append(ir.to_proto(ir.tensor(array, name="w")))
    model = model_io.load(stored(tmp_path, proto))
    model_io.save(model, tmp_path / "out.onnx", external=external)
    again = model_io.load(tmp_path / "out.onnx").graph.initializers["w"].const_value
    assert again.dtype == kind
    np.testing.assert_array_equal(again.numpy(), array)


def test_what_came_in_is_never_changed() -> None:
    proto = mlp()
    before = proto.SerializeToString()
    model_io.load_any(proto).graph.initializers["w1"].const_value = ir.tensor(np.zeros((8, 64), np.float32))
    assert proto.SerializeToString() == before
    model = ir.from_proto(mlp())
    copy = model_io.load_any(model)
    copy.graph.initializers["w1"].const_value = ir.tensor(np.zeros((8, 64), np.float32))
    copy.graph.initializers["w1"].name = "renamed"
    assert model.graph.initializers["w1"].const_value.numpy().any()


def test_a_path_a_proto_and_a_model_give_the_same(tmp_path: Path) -> None:
    path = stored(tmp_path)
    results = [model_io.to_bytes(model_io.load_any(m)) for m in (path, str(path), mlp(), model_io.load(path))]
    assert len(set(results)) == 1
    with pytest.raises(TypeError):
        model_io.load_any(3)  # type: ignore[arg-type]


def test_the_light_models_load(light_models: list[Path]) -> None:
    assert light_models
    for path in light_models:
        model = model_io.load(path)
        assert len(model_io.to_bytes(model)) == model_io.serialized_size(model)
