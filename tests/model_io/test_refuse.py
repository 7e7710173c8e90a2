"""Loading: every way a file can be no usable model has its own clear sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_io_models import FLOAT, mlp, relocated, sparse, stored, stored_external
from onnx import helper, numpy_helper, parser

from onnxprune import model_io
from onnxprune.errors import ModelError


def refusal(path: Path | onnx.ModelProto, limits: model_io.Limits | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        model_io.load_any(path, limits=limits or model_io.Limits())
    sentence = str(caught.value)
    assert caught.value.exit_status == 2
    assert sentence.endswith((".", "?).")) and "\n" not in sentence and len(sentence) < 400
    return sentence


def test_a_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.onnx")


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"this is some text, not a model\n", "is not a protobuf"),
        (b"\xff" * 100, "is not a protobuf"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x1c\x00\x00\x00ORTMrest", ".ort"),
        (b"<!DOCTYPE html><html>", "HTML"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert words in refusal(path)


def test_a_protobuf_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(numpy_helper.from_array(np.ones(3, np.float32), "t").SerializeToString())
    assert "not an ONNX model" in refusal(path)
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    assert "not an ONNX model" in refusal(path)


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    content = mlp().SerializeToString()
    path = tmp_path / "model.onnx"
    sentences = set()
    for length in range(1, len(content) - 20, 7):
        path.write_bytes(content[:length])
        sentences.add(refusal(path).split("'")[2][:14])
    assert any("is truncated" in sentence for sentence in sentences)
    path.write_bytes(content[: len(content) // 2])
    assert "is truncated" in refusal(path)


def test_a_model_without_an_opset(tmp_path: Path) -> None:
    proto = mlp()
    del proto.opset_import[:]
    assert "names no operator set" in refusal(stored(tmp_path, proto))


def test_weights_shorter_than_their_shape(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
    assert "'w1' needs 2,048 bytes but has 2,044" in refusal(stored(tmp_path, proto))


def test_training_information_is_refused_by_name(tmp_path: Path) -> None:
    proto = mlp()
    proto.training_info.add().algorithm.name = "sgd"
    sentence = refusal(stored(tmp_path, proto))
    assert "training_info" in sentence and "'sgd'" in sentence


def test_maps_are_refused_with_the_way_round_them() -> None:
    number = helper.make_tensor_type_proto(FLOAT, [])
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(onnx.TensorProto.INT64, number))
    node = helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    x = helper.make_tensor_value_info("x", FLOAT, [1, 2])
    graph = helper.make_graph([node], "g", [x], [helper.make_value_info("p", maps)])
    sentence = refusal(helper.make_model(graph))
    assert "the map 'p'" in sentence and "zipmap" in sentence


def test_versions_that_are_too_new(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    assert f"opset {newest + 1}" in refusal(mlp(opset=newest + 1))
    assert "IR version 999" in refusal(mlp(ir_version=999))


def test_an_old_opset_that_cannot_be_upgraded() -> None:
    proto = parser.parse_model("""<ir_version: 3, opset_import: ["":5]>
        g (float[2] x) => (float[2] y) { y = NoSuchOperator(x) }""")
    sentence = refusal(proto)
    assert "opset 5" in sentence and "version converter" in sentence


def test_a_function_that_calls_itself() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["":17,"local":1]>
        g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain:"local", opset_import: ["":17,"local":1]> f (x) => (r) { r = local.f(x) }""")
    assert "cannot be inlined" in refusal(proto)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[2] x) => (float[2] y) { y = Add(x, nothing) }", "'nothing'"),
        ("g (float[2] x) => (float[2] z) { y = Relu(x) }", "'z'"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x) y = Neg(x) }", "redeclared"),
        ("g (float[2] x) => (float[2] y) { a = Add(x, b) b = Relu(a) y = Neg(b) }", "cycle"),
    ],
)
def test_graphs_that_make_no_sense(text: str, words: str) -> None:
    sentence = refusal(parser.parse_model(f'<ir_version: 8, opset_import: ["":17]> {text}'))
    assert "not a valid ONNX graph" in sentence and words in sentence


def test_a_sparse_tensor_that_claims_too_much() -> None:
    proto = mlp()
    bomb = sparse(np.eye(4, dtype=np.float32), "w3", coordinates=False)
    bomb.dims[:] = [1 << 20, 1 << 20]
    proto.graph.sparse_initializer.append(bomb)
    assert "when made dense" in refusal(proto)


@pytest.mark.parametrize("index", [-1, 16, 1 << 40])
def test_a_sparse_tensor_with_wrong_indices(index: int) -> None:
    proto = mlp()
    tensor = sparse(np.eye(4, dtype=np.float32), "w3", coordinates=False)
    indices = numpy_helper.to_array(tensor.indices).copy()
    indices[-1] = index
    tensor.indices.CopyFrom(numpy_helper.from_array(indices, "i"))
    proto.graph.sparse_initializer.append(tensor)
    assert "'w3' is malformed" in refusal(proto)


def test_a_sparse_attribute_of_an_operator_other_than_constant() -> None:
    proto = mlp()
    attribute = helper.make_attribute("sparse_thing", sparse(np.eye(2, dtype=np.float32), "s", coordinates=False))
    proto.graph.node[1].attribute.append(attribute)
    assert "'sparse_thing'" in refusal(proto)


# --- external data -------------------------------------------------------------------------------------------------


def test_missing_external_data(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert "is missing" in refusal(path)


def test_truncated_external_data(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert "is truncated" in refusal(path)


def test_a_proto_with_external_data_has_no_folder(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    assert "without a folder" in refusal(onnx.load(path, load_external_data=False))


def escape_upwards(inside: Path, outside: Path) -> str:
    return f"../{outside.name}"


def escape_through_a_subfolder(inside: Path, outside: Path) -> str:
    (inside / "sub").mkdir()
    return f"sub/../../{outside.name}"


def escape_absolutely(inside: Path, outside: Path) -> str:
    return str(outside)


def escape_by_symlink(inside: Path, outside: Path) -> str:
    (inside / "link.bin").symlink_to(outside)
    return "link.bin"


def escape_by_symlinked_folder(inside: Path, outside: Path) -> str:
    (inside / "folder").symlink_to(outside.parent, target_is_directory=True)
    return f"folder/{outside.name}"


def escape_by_hardlink(inside: Path, outside: Path) -> str:
    os.link(outside, inside / "hard.bin")
    return "hard.bin"


def escape_to_a_device(inside: Path, outside: Path) -> str:
    os.mkfifo(inside / "pipe")
    return "pipe"


def escape_to_a_windows_drive(inside: Path, outside: Path) -> str:
    return "C:\\weights.bin"


@pytest.mark.parametrize(
    "escape",
    [
        escape_upwards,
        escape_through_a_subfolder,
        escape_absolutely,
        escape_by_symlink,
        escape_by_symlinked_folder,
        escape_by_hardlink,
        escape_to_a_device,
        escape_to_a_windows_drive,
    ],
)
def test_external_data_that_escapes_the_folder(tmp_path: Path, escape: Callable[[Path, Path], str]) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    path = stored_external(inside)
    outside = tmp_path / "secret.bin"
    outside.write_bytes((inside / "weights.bin").read_bytes())
    relocated(path, escape(inside, outside))
    sentence = refusal(path)
    assert "external data" in sentence and "tensor 'w1'" in sentence


@pytest.mark.parametrize(("offset", "length"), [(-4, None), (1 << 40, None), (0, 4)])
def test_external_data_with_a_wrong_extent(tmp_path: Path, offset: int, length: int | None) -> None:
    path = stored_external(tmp_path)
    relocated(path, "weights.bin", offset=offset, length=length)
    assert "w1" in refusal(path)


def test_a_symlink_inside_the_folder_is_fine(tmp_path: Path) -> None:
    path = stored_external(tmp_path)
    (tmp_path / "link.bin").symlink_to("weights.bin")
    relocated(path, "link.bin")
    model = model_io.load(path)
    assert model.graph.initializers["w1"].const_value.numpy().shape == (8, 64)


def test_negative_dimensions(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.initializer[1].dims[:] = [-64]
    assert "negative dimension" in refusal(stored(tmp_path, proto))


def test_an_initializer_without_a_name() -> None:
    proto = mlp()
    proto.graph.initializer.append(helper.make_tensor("", FLOAT, [1], [1.0]))
    assert "without a name" in refusal(proto)


def constant(**changes: object) -> onnx.NodeProto:
    node = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.zeros(3, np.float32), "k"))
    for name, value in changes.items():
        setattr(node.attribute[0], name, value)
    return node


def no_value(node: onnx.NodeProto) -> onnx.NodeProto:
    node.attribute[0].ClearField("t")
    return node


def too_many_numbers(node: onnx.NodeProto) -> onnx.NodeProto:
    node.attribute[0].t.dims[:] = [2]
    return node


def negative(node: onnx.NodeProto) -> onnx.NodeProto:
    node.attribute[0].t.dims[:] = [3, -1]
    return node


def untyped(node: onnx.NodeProto) -> onnx.NodeProto:
    node.attribute.add().name = "alpha"
    return node


def twice(node: onnx.NodeProto) -> onnx.NodeProto:
    node.attribute.append(node.attribute[0])
    return node


BROKEN_NODES = {
    "value": (constant(name="walue"), "walue"),
    "nothing": (helper.make_node("Constant", [], ["k"]), "one value"),
    "no tensor": (no_value(constant()), "without a type or a value"),
    "unknown type": (constant(type=0), "without a type or a value"),
    "too many numbers": (too_many_numbers(constant()), "needs 8 bytes but has 12"),
    "negative": (negative(constant()), "negative dimension"),
    "untyped": (untyped(helper.make_node("Elu", ["h"], ["e"], name="elu")), "'elu' (Elu) has the attribute 'alpha'"),
    "misspelt": (helper.make_node("Cast", ["h"], ["e"], name="cast", tp=1), "'cast' (Cast) lacks the attribute 'to'"),
    "twice": (twice(helper.make_node("Elu", ["h"], ["e"], alpha=1.0)), "'alpha' twice"),
}


@pytest.mark.parametrize("name", BROKEN_NODES)
@pytest.mark.parametrize("in_a_body", [False, True])
def test_broken_attributes(tmp_path: Path, name: str, in_a_body: bool) -> None:
    node, words = BROKEN_NODES[name]
    proto = mlp()
    if in_a_body:
        out = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, None)
        body = helper.make_graph([node, helper.make_node("Identity", ["h"], ["b"])], "body", [], [out])
        node = helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body)
    proto.graph.node.insert(1, node)
    assert words in refusal(stored(tmp_path, proto))


@pytest.mark.parametrize("place", ["node", "input", "initializer", "metadata", "dimension", "producer"])
def test_names_that_are_no_text(tmp_path: Path, place: str) -> None:
    proto = mlp()
    if place == "node":
        proto.graph.node[0].op_type = "QQQQ"
    elif place == "input":
        proto.graph.node[1].input[0] = "QQQQ"
    elif place == "initializer":
        proto.graph.initializer[0].name = "QQQQ"
    elif place == "metadata":
        proto.metadata_props.add(key="a", value="QQQQ")
    elif place == "dimension":
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "QQQQ"
    else:
        proto.producer_name = "QQQQ"
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"QQQQ", b"\xc3\x28\xa0\xa1"))
    assert "not UTF-8 text" in refusal(path)


def functions_of(depth: int, calls: int) -> onnx.ModelProto:
    """Functions of which each calls the next so many times."""
    proto = mlp()
    proto.opset_import.add(domain="local", version=1)
    for i in range(depth):
        last = i == depth - 1
        nodes, name = [], "a"
        for j in range(calls):
            node = helper.make_node("Relu" if last else f"f{i + 1}", [name], [f"t{j}"], domain="" if last else "local")
            nodes, name = [*nodes, node], f"t{j}"
        nodes.append(helper.make_node("Identity", [name], ["b"]))
        proto.functions.append(helper.make_function("local", f"f{i}", ["a"], ["b"], nodes, proto.opset_import))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "f0", "local"
    return proto


@pytest.mark.parametrize(("depth", "calls"), [(30, 2), (7, 12), (3, 200)])
def test_functions_that_become_too_many_nodes(depth: int, calls: int) -> None:
    assert "more than 1,000,000 nodes" in refusal(functions_of(depth, calls))


def test_functions_that_become_some_nodes_are_fine() -> None:
    model = model_io.load_any(functions_of(4, 3))
    assert sum(node.op_type == "Relu" for node in model.graph) == 81


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda node: node.ClearField("op_type"), "names no operator"),
        (lambda node: node.ClearField("output"), "has no output"),
        (lambda node: node.CopyFrom(helper.make_node("Print", node.input, [], domain="my.own")), "has no output"),
        (lambda node: node.CopyFrom(helper.make_node("TopK", node.input, ["top", "places"])), "too few inputs"),
        (lambda node: node.ClearField("input"), "too few inputs"),
    ],
)
def test_nodes_that_lack_what_their_operator_needs(change: Callable[[onnx.NodeProto], object], words: str) -> None:
    model = mlp()
    model.graph.node.add().CopyFrom(helper.make_node("Transpose", [model.graph.input[0].name], ["turned"]))
    change(model.graph.node[-1])
    assert words in refusal(model)
