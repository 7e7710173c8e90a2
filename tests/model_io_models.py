"""Small models, and the ways a model file can be wrong, for the tests of model_io."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def damaged_model(data: st.DataObject) -> bytes:
    """The bytes of a small model with one of them changed, cut off somewhere behind it."""
    content = bytearray(mlp(width=2).SerializeToString())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    return bytes(content[: data.draw(st.integers(position + 1, len(content)))])


def mlp(*, opset: int = 17, ir_version: int = 8, width: int = 64) -> onnx.ModelProto:
    """x [N, 8] -> Gemm -> Relu -> Gemm -> y [N, 4], with names, doc strings and metadata to be kept."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (8, width)), ("b1", (width,)), ("w2", (width, 4)), ("b2", (4,)))
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", doc_string="the first layer"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 4])],
        weights,
        doc_string="a small network",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="tests")
    model.ir_version = ir_version
    model.model_version = 3
    model.doc_string = "documented"
    helper.set_model_props(model, {"author": "nobody"})
    return model


def stored(folder: Path, model: onnx.ModelProto | None = None, name: str = "model.onnx") -> Path:
    """A model file with embedded weights."""
    path = folder / name
    path.write_bytes((model or mlp()).SerializeToString())
    return path


def stored_external(folder: Path, model: onnx.ModelProto | None = None, location: str = "weights.bin") -> Path:
    """A model file whose weights all lie in `location` beside it."""
    path = folder / "model.onnx"
    onnx.save(model or mlp(), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def relocated(path: Path, location: str, *, offset: int | None = None, length: int | None = None) -> None:
    """Rewrite where the first external tensor of a model file says that its data are."""
    proto = onnx.load(path, load_external_data=False)
    tensor = next(t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    entries["location"] = location
    if offset is not None:
        entries["offset"] = str(offset)
    if length is not None:
        entries["length"] = str(length)
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def sparse(dense: np.ndarray, name: str, *, coordinates: bool) -> onnx.SparseTensorProto:
    """The sparse form of an array, with linear indices or with coordinates."""
    indices = np.argwhere(dense) if coordinates else np.flatnonzero(dense)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(dense[dense != 0], name),
        numpy_helper.from_array(indices.astype(np.int64), f"{name}_indices"),
        list(dense.shape),
    )
