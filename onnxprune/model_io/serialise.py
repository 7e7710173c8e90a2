"""From `onnx_ir.Model` to bytes, streaming the weights.

Protobuf allows the fields of a message in any order, so a model is written as a skeleton (everything but the main
graph's initializers, a few kilobytes per node) followed by one initializer after the other, each read, written and
forgotten. Memory stays at the largest tensor, where building a ModelProto first would take the model three times.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import onnx
import onnx_ir as ir
from onnx_ir import serde

from onnxprune.errors import ModelError
from onnxprune.model_io.bodies import graphs_of, subgraphs_of
from onnxprune.model_io.protobuf import graphs
from onnxprune.model_io.wire import GRAPH_INITIALIZER, LENGTH_DELIMITED, MODEL_GRAPH, TENSOR_RAW_DATA, write_varint

_GRAPH_TAG = MODEL_GRAPH << 3 | LENGTH_DELIMITED
_INITIALIZER_TAG = GRAPH_INITIALIZER << 3 | LENGTH_DELIMITED
_RAW_DATA_TAG = TENSOR_RAW_DATA << 3 | LENGTH_DELIMITED
PROTOBUF_LIMIT = (1 << 31) - 1
_SKELETON_BYTES = 1024


class Writer(Protocol):
    """What the model is written to."""

    def write(self, data: bytes, /) -> object: ...


def to_bytes(model: ir.Model) -> bytes:
    """The model as one protobuf, external data read in.

    Raises:
        ModelError: The model is larger than a protobuf can be (2 GiB), or a value has no tensor.
    """
    return to_bytes_within(model, PROTOBUF_LIMIT)[1]


def to_bytes_within(model: ir.Model, most: int) -> tuple[int, bytes]:
    """Return how many bytes a model takes as one protobuf, and these; of a model of more than ``most`` none of them.

    Raises:
        ModelError: As `to_bytes`.
    """
    parts = _parts(model, {})
    size, buffer = _size(*parts), io.BytesIO()
    if size <= most or most >= PROTOBUF_LIMIT:
        _write(parts, buffer)
    return size, buffer.getvalue()


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a ModelProto of its own, external data read in.

    Raises:
        ModelError: As `to_bytes`.
    """
    proto = onnx.ModelProto()
    proto.ParseFromString(to_bytes(model))
    return proto


def to_skeleton(model: ir.Model) -> onnx.ModelProto:
    """The model as a small ModelProto of its own: weights over 1 KiB keep name, type and shape, but have no data.

    Enough for shape inference, at any size of the model; nodes are in the same order as in `model`.
    """
    placement = {}
    for value in all_initializers(model):
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > _SKELETON_BYTES:
            shape = ir.Shape(tensor.shape.numpy())
            placement[value] = ir.ExternalTensor(
                "-", 0, tensor.nbytes, tensor.dtype, shape=shape, name=value.name or ""
            )
    buffer = io.BytesIO()
    write_model(model, buffer, placement)
    proto = onnx.ModelProto()
    proto.ParseFromString(buffer.getvalue())
    return proto


def serialized_size(model: ir.Model, placement: Mapping[ir.Value, ir.ExternalTensor] | None = None) -> int:
    """Bytes of the model file, without writing it.

    Args:
        model: The model.
        placement: Initializers that are references to external data; all others are embedded.
    """
    return _size(*_parts(model, placement or {}))


def write_model(model: ir.Model, file: Writer, placement: Mapping[ir.Value, ir.ExternalTensor]) -> None:
    """Write the model file; initializers in `placement` as references to external data, all others embedded.

    Raises:
        ModelError: The file would exceed 2 GiB, or a value has no tensor.
    """
    _write(_parts(model, placement), file)


def _size(head: bytes, graph: bytes, tensors: _Parts) -> int:
    return len(head) + _framed_size(_body_size(graph, tensors))


def _body_size(graph: bytes, tensors: _Parts) -> int:
    return len(graph) + sum(_framed_size(_tensor_size(header, tensor)) for header, tensor in tensors)


def _write(parts: tuple[bytes, bytes, _Parts], file: Writer) -> None:
    head, graph, tensors = parts
    body = _body_size(graph, tensors)
    if len(head) + _framed_size(body) > PROTOBUF_LIMIT:
        raise ModelError("the model is larger than the 2 GiB that a protobuf can hold: save it with external data.")
    file.write(head)
    file.write(write_varint(_GRAPH_TAG) + write_varint(body))
    file.write(graph)
    for header, tensor in tensors:
        file.write(write_varint(_INITIALIZER_TAG) + write_varint(_tensor_size(header, tensor)) + header)
        if tensor is not None:
            file.write(write_varint(_RAW_DATA_TAG) + write_varint(tensor.nbytes))
            write_data(tensor, file)


def write_data(tensor: ir.TensorProtocol, file: Writer) -> None:
    """Write the raw bytes of a tensor. External data go from file to file in small parts, never mapped.

    Raises:
        ModelError: The tensor holds more or fewer bytes than its shape says.
    """
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)
        return
    data = tensor.tobytes()
    if len(data) != tensor.nbytes:
        raise ModelError(f"tensor '{tensor.name}' has {len(data):,} bytes of data but needs {tensor.nbytes:,}.")
    file.write(data)


def all_initializers(model: ir.Model) -> Iterator[ir.Value]:
    """Every initializer of the model, in subgraphs and functions too."""
    for graph in _all_graphs(model):
        yield from graph.initializers.values()


_Parts = list[tuple[bytes, "ir.TensorProtocol | None"]]


def _parts(model: ir.Model, placement: Mapping[ir.Value, ir.ExternalTensor]) -> tuple[bytes, bytes, _Parts]:
    """(model without graph, graph without its initializers, [(tensor header, tensor whose data follows)])."""
    with _without_main_weights(model, placement):
        proto = serde.serialize_model(model)
    _without_types_of_initializers(proto)
    _declare_initializers(proto, model)
    graph = onnx.GraphProto()
    graph.CopyFrom(proto.graph)
    proto.ClearField("graph")
    del graph.initializer[:]
    tensors = [_header(value, placement.get(value)) for value in model.graph.initializers.values()]
    return proto.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True), tensors


def _without_types_of_initializers(proto: onnx.ModelProto) -> None:
    """An initializer tells its own type and shape: an entry in value_info would be a copy that can go stale."""
    for graph in graphs(proto):
        stored = {tensor.name for tensor in graph.initializer}
        stored.update(tensor.values.name for tensor in graph.sparse_initializer)
        entries = [info for info in graph.value_info if info.name not in stored]
        if len(entries) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(entries)


def _declare_initializers(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Before IR version 4 every initializer had to be an input as well; passes add some that are not."""
    if proto.ir_version >= 4:
        return
    graph_inputs = {value.name for value in proto.graph.input}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value.name and value.name not in graph_inputs and tensor is not None:
            shape = list(tensor.shape.numpy())
            proto.graph.input.append(onnx.helper.make_tensor_value_info(value.name, tensor.dtype.value, shape))


def _header(value: ir.Value, external: ir.ExternalTensor | None) -> tuple[bytes, ir.TensorProtocol | None]:
    """The serialised TensorProto up to its raw data; the tensor is None when nothing is left to follow."""
    tensor = value.const_value
    if tensor is None:
        raise ModelError(f"initializer '{value.name}' has no value.")
    if external is not None:
        return serde.serialize_tensor(external).SerializeToString(deterministic=True), None
    proto = onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    for key, entry in tensor.metadata_props.items():
        proto.metadata_props.add(key=key, value=entry)
    if tensor.dtype == ir.DataType.STRING:
        proto.string_data.extend(tensor.numpy().reshape(-1).tolist())
        return proto.SerializeToString(deterministic=True), None
    return proto.SerializeToString(deterministic=True), tensor


@contextmanager
def _without_main_weights(model: ir.Model, placement: Mapping[ir.Value, ir.ExternalTensor]) -> Iterator[None]:
    """While inside, main-graph weights are empty stand-ins, and no tensor elsewhere is external by accident."""
    values = [(value, value.const_value) for value in all_initializers(model)]
    attributes = []
    main = set(model.graph.initializers.values())
    try:
        for value, tensor in values:
            if value in main:
                value.const_value = ir.ExternalTensor(
                    "", 0, 0, ir.DataType.FLOAT, shape=ir.Shape([0]), name=value.name or ""
                )
            elif value in placement:
                value.const_value = placement[value]
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = _in_memory(tensor)
        for node in _all_nodes(model):
            for name, attribute in node.attributes.items():
                embedded = _embedded_attribute(attribute)
                if embedded is not None:
                    attributes.append((node, name, attribute))
                    node.attributes[name] = embedded
        yield
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, name, attribute in attributes:
            node.attributes[name] = attribute


def _embedded_attribute(attribute: ir.Attr) -> ir.Attr | None:
    """The attribute with its external tensors read in; None when it has none."""
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
        return ir.AttrTensor(attribute.name, _in_memory(attribute.value), doc_string=attribute.doc_string)
    if attribute.type == ir.AttributeType.TENSORS:
        tensors = attribute.as_tensors()
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
            read = [_in_memory(t) if isinstance(t, ir.ExternalTensor) else t for t in tensors]
            return ir.AttrTensors(attribute.name, read, doc_string=attribute.doc_string)
    return None


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from graphs_of(model)
    for function in model.functions.values():
        yield function.graph
        yield from subgraphs_of(function.graph)


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    for graph in _all_graphs(model):
        yield from graph


def _tensor_size(header: bytes, tensor: ir.TensorProtocol | None) -> int:
    return len(header) + (_framed_size(tensor.nbytes) if tensor is not None else 0)


def _framed_size(size: int) -> int:
    """Bytes of a length-delimited field with a payload of `size` bytes; all tags we write take one byte."""
    return 1 + len(write_varint(size)) + size
