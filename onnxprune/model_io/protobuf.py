"""Read a model file as a protobuf, and walk it. Every way a file can be no model has its own sentence."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import onnx
from google.protobuf.message import DecodeError

from onnxprune.errors import ModelError
from onnxprune.model_io import wire

_PROTOBUF_LIMIT = (1 << 31) - 1
_A = onnx.AttributeProto
_GRAPH, _GRAPHS = _A.GRAPH, _A.GRAPHS
_PARTS = {_GRAPH, _GRAPHS, _A.TENSOR, _A.TENSORS, _A.SPARSE_TENSOR, _A.SPARSE_TENSORS}  # attributes that hold a part
_IR_VERSION_TAG = 1 << 3  # the first byte of every model: writers order fields by number
_MISTAKEN_FOR_MODELS = (
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the model itself: fetch it with 'git lfs pull'"),
    (0, b"PK\x03\x04", "is a zip archive (a PyTorch checkpoint, perhaps), not an ONNX model"),
    (4, b"ORTM", "is in ONNX Runtime's own .ort format: give the .onnx file that it was made from"),
    (4, b"TFL3", "is a TensorFlow Lite model: convert it to ONNX first"),
    (0, b"<!DOCTYPE", "is an HTML page, not an ONNX model"),
)


def read_proto(path: Path, left: dict[str, wire.Extent] | None = None) -> onnx.ModelProto:
    """Read a model file without its external data.

    Args:
        path: The file.
        left: See `wire.parse_model`.

    Raises:
        ModelError: The file is missing, unreadable, empty, truncated, no protobuf, or a protobuf that is no model.
    """
    with _mapped(path) as (data, file):
        for offset, magic, reason in _MISTAKEN_FOR_MODELS:
            if data[offset : offset + len(magic)] == magic:
                raise ModelError(f"'{path}' {reason}.")
        if data[0] != _IR_VERSION_TAG:
            raise ModelError(f"'{path}' is not a protobuf.")
        try:
            proto = wire.parse_model(data, file, left)
        except wire.WireError as error:
            raise ModelError(f"'{path}' {error}.") from error
        except DecodeError as error:
            raise ModelError(f"'{path}' is damaged or not an ONNX model: a part of it is no valid protobuf.") from error
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


@contextmanager
def _mapped(path: Path) -> Iterator[tuple[mmap.mmap, BinaryIO]]:
    """The content of a file that is neither missing nor empty nor too large, mapped, and the file."""
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder: give the .onnx file in it.")
    try:
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT:
            raise ModelError(
                f"'{path}' is larger than the 2 GiB that a protobuf can hold: store its weights as external data."
            )
        if not path.is_file():
            raise ModelError(f"'{path}' is not a regular file.")
        if not size:
            raise ModelError(f"'{path}' is empty.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data, file
    except FileNotFoundError:
        raise ModelError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph of a model: the main one, then the subgraphs of all nodes, functions included."""
    yield proto.graph
    for node in nodes(proto):
        yield from _bodies(node)


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model, in subgraphs and local functions too. Works on a stack: nesting may be deep."""
    yield from nodes_below([*proto.graph.node, *(node for function in proto.functions for node in function.node)])


def nodes_below(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """These nodes, and all in their subgraphs."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        for graph in _bodies(node):
            stack.extend(graph.node)


def _bodies(node: onnx.NodeProto) -> Sequence[onnx.GraphProto]:
    """The graphs in a node's attributes. Types are asked, as all readers do: that takes half of the time."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        kind = attribute.type
        if kind == _GRAPH:
            found.append(attribute.g)
        elif kind == _GRAPHS:
            found.extend(attribute.graphs)
    return found


class Parts(NamedTuple):
    """What a model is made of, in subgraphs and local functions too, found in one walk.

    Attributes:
        nodes: Every node.
        graphs: The main graph, then the subgraphs of all nodes.
        initializers: The tensors of graphs.
        attributes: The tensors of nodes, such as the value of a Constant.
        sparse: Sparse tensors, of graphs and of nodes.
        sparse_attributes: The attributes that hold one, with their nodes.
    """

    nodes: list[onnx.NodeProto]
    graphs: list[onnx.GraphProto]
    initializers: list[onnx.TensorProto]
    attributes: list[onnx.TensorProto]
    sparse: list[onnx.SparseTensorProto]
    sparse_attributes: list[tuple[onnx.NodeProto, onnx.AttributeProto]]

    @property
    def dense(self) -> list[onnx.TensorProto]:
        """Initializers, then tensors of nodes."""
        return [*self.initializers, *self.attributes]


def parts_of(proto: onnx.ModelProto) -> Parts:
    """All parts of a model. To ask a protobuf takes long: who loads a model walks it once."""
    found, inside, tensors = list[onnx.NodeProto](), [proto.graph], list[onnx.TensorProto]()
    sparse_attributes: list[tuple[onnx.NodeProto, onnx.AttributeProto]] = []
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        found.append(node)
        for attribute in node.attribute:
            kind = attribute.type
            if kind not in _PARTS:
                continue
            if kind == _A.TENSOR or kind == _A.TENSORS:
                tensors += [attribute.t] if kind == _A.TENSOR else attribute.tensors
            elif kind in (_GRAPH, _GRAPHS):
                bodies = [attribute.g] if kind == _GRAPH else attribute.graphs
                inside += bodies
                waiting += [inner for body in bodies for inner in body.node]
            else:
                sparse_attributes.append((node, attribute))
    sparse = [tensor for graph in inside for tensor in graph.sparse_initializer]
    for _, attribute in sparse_attributes:
        sparse += [attribute.sparse_tensor] if attribute.type == _A.SPARSE_TENSOR else attribute.sparse_tensors
    initializers = [tensor for graph in inside for tensor in graph.initializer]
    return Parts(found, inside, initializers, tensors, sparse, sparse_attributes)


def default_opset(proto: onnx.ModelProto) -> int | None:
    """The version of the ai.onnx operator set; None when the model uses only other domains."""
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return versions[0] if versions else None
