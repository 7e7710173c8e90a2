"""Read a model file as a protobuf, and walk it. Every way a file can be no model has its own sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxprune.errors import ModelError

_PROTOBUF_LIMIT = (1 << 31) - 1
_LENGTH_DELIMITED = 2
_IR_VERSION_TAG = 1 << 3  # the first byte of every model: writers order fields by number
# Field number -> wire type of onnx.ModelProto: what the top level of a model file may contain.
_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}
_MISTAKEN_FOR_MODELS = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the model itself: fetch it with 'git lfs pull'"),
    (0, b"PK\x03\x04", "is a zip archive (a PyTorch checkpoint, perhaps), not an ONNX model"),
    (4, b"ORTM", "is in ONNX Runtime's own .ort format: give the .onnx file that it was made from"),
    (4, b"TFL3", "is a TensorFlow Lite model: convert it to ONNX first"),
    (0, b"<!DOCTYPE", "is an HTML page, not an ONNX model"),
)


def read_proto(path: Path) -> onnx.ModelProto:
    """Read a model file without its external data.

    Raises:
        ModelError: The file is missing, unreadable, empty, truncated, no protobuf, or a protobuf that is no model.
    """
    data = _read_bytes(path)
    for offset, magic, reason in _MISTAKEN_FOR_MODELS:
        if data.startswith(magic, offset):
            raise ModelError(f"'{path}' {reason}.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"'{path}' {_why_undecodable(data)}.") from error
    del data
    check_is_model(proto, str(path))
    return proto


def check_is_model(proto: onnx.ModelProto, name: str) -> None:
    """Refuse a message that parsed but is no complete model.

    Raises:
        ModelError: There is no graph, no IR version or no operator set.
    """
    if not proto.HasField("graph") or proto.ir_version <= 0:
        raise ModelError(f"'{name}' is a protobuf but not an ONNX model: it has no graph or no IR version.")
    if proto.ir_version >= 3 and not proto.opset_import:
        raise ModelError(f"'{name}' names no operator set: it is truncated, or not an ONNX model.")


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder: give the .onnx file in it.")
    try:
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT:
            raise ModelError(
                f"'{path}' is larger than the 2 GiB that a protobuf can hold: store its weights as external data."
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    if not data:
        raise ModelError(f"'{path}' is empty.")
    return data


def _why_undecodable(data: bytes) -> str:
    """What is wrong with bytes that protobuf could not parse, found by walking the fields of the top level.

    Wire format: https://protobuf.dev/programming-guides/encoding/
    """
    if data[0] != _IR_VERSION_TAG:
        return "is not a protobuf"
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        field, wire_type = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(field) != wire_type:
            return f"is not an ONNX model, or is damaged at byte {start}"
        value, position = _varint(data, position)
        if wire_type == _LENGTH_DELIMITED:
            position += value
            if position > len(data):
                return f"is truncated: {position - len(data):,} bytes are missing at its end"
    return "is damaged: a part of it is no valid protobuf"


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The base-128 number at `position`, and the position after it; cut-off numbers end at the end of the data."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value, position


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph of a model: the main one, then the subgraphs of all nodes, functions included."""
    yield proto.graph
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, in subgraphs and local functions too. Works on a stack: nesting may be deep."""
    stack = list(proto.graph.node)
    for function in proto.functions:
        stack.extend(function.node)
    while stack:
        node = stack.pop()
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                stack.extend(attribute.g.node)
            for graph in attribute.graphs:
                stack.extend(graph.node)


def initializers(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense initializer, in subgraphs too."""
    for graph in graphs(proto):
        yield from graph.initializer


def attribute_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor that is a node's attribute, such as the value of a Constant."""
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def sparse_tensors(proto: onnx.ModelProto) -> Iterator[onnx.SparseTensorProto]:
    """Every sparse tensor: initializers and attributes."""
    for graph in graphs(proto):
        yield from graph.sparse_initializer
    for node in nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.sparse_tensors


def default_opset(proto: onnx.ModelProto) -> int | None:
    """The version of the ai.onnx operator set; None when the model uses only other domains."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return versions[0] if versions else None
