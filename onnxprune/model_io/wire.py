"""The protobuf wire format, as far as a model file needs it: walk fields, and parse a model one weight at a time.

Format: https://protobuf.dev/programming-guides/encoding/. Parsing a file in one go holds it in memory twice, as bytes
and as messages; parsing initializer by initializer from the mapped file holds it once, and large weights may stay in
the file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import onnx

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH = 7  # field number of ModelProto.graph
GRAPH_INITIALIZER = 5  # of GraphProto.initializer
TENSOR_RAW_DATA = 9  # of TensorProto.raw_data
SMALLEST_LEFT = 256 << 10  # bytes; smaller weights are read at once, for what looks at small constants
Buffer = bytes | mmap.mmap


class WireError(ValueError):
    """The bytes are no sequence of fields."""


class Field(NamedTuple):
    """One field: its number and wire type, where its tag starts, where its payload starts and ends (bytes)."""

    number: int
    wire_type: int
    start: int
    payload: int
    end: int


class Extent(NamedTuple):
    """Where bytes lie in a file."""

    offset: int
    length: int


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields in data[start:end], in order.

    Raises:
        WireError: A field is cut off or has no valid wire type; what came before it has been yielded.
    """
    position = start
    while position < end:
        tag, payload = read_varint(data, position, end)
        wire_type = tag & 7
        if wire_type == LENGTH_DELIMITED:
            length, payload = read_varint(data, payload, end)
            after = payload + length
        elif wire_type == VARINT:
            _, after = read_varint(data, payload, end)
        elif wire_type in (FIXED64, FIXED32):
            after = payload + (8 if wire_type == FIXED64 else 4)
        else:
            raise WireError(f"is not an ONNX model, or is damaged at byte {position:,}")
        if after > end:
            raise WireError(f"is truncated: {after - end:,} bytes are missing at its end")
        yield Field(tag >> 3, wire_type, position, payload, after)
        position = after


def read_varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """The base-128 number at `position`, least significant group first, and the position after it.

    Raises:
        WireError: It is cut off, or longer than ten bytes.
    """
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
    raise WireError("is truncated in the middle of a number" if position >= end else f"is damaged at byte {position:,}")


def write_varint(value: int) -> bytes:
    """`value` >= 0 as a base-128 number."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def parse_model(data: Buffer, file: BinaryIO | None = None, left: dict[str, Extent] | None = None) -> onnx.ModelProto:
    """The same message as `ModelProto.FromString(data)`, without a second copy of the main graph's weights.

    Args:
        data: The content of a model file, mapped or in memory.
        file: The file that `data` maps: weights are read from it, since pages read through a map stay in memory.
        left: Where given, the raw data of large weights are not read: their messages lack them, and this is filled with
            where they lie, by the name of the weight.

    Raises:
        WireError: The top level or the main graph is no sequence of fields.
        google.protobuf.message.DecodeError: A part of it is no valid protobuf.
    """
    head, graph = bytearray(), bytearray()
    initializers: list[Field] = []
    proto = onnx.ModelProto()
    for field in fields(data, 0, len(data)):
        if (field.number, field.wire_type) != (MODEL_GRAPH, LENGTH_DELIMITED):
            head += data[field.start : field.end]
            continue
        proto.graph.SetInParent()
        for inner in fields(data, field.payload, field.end):
            if (inner.number, inner.wire_type) == (GRAPH_INITIALIZER, LENGTH_DELIMITED):
                initializers.append(inner)
            else:
                graph += data[inner.start : inner.end]
    proto.MergeFromString(bytes(head))
    if graph:
        proto.graph.MergeFromString(bytes(graph))
    for initializer in initializers:
        tensor = proto.graph.initializer.add()
        if left is not None and (raw := _raw_data(data, initializer)) is not None:
            tensor.MergeFromString(data[initializer.payload : raw.start] + data[raw.end : initializer.end])
            if tensor.name not in left:
                left[tensor.name] = Extent(raw.payload, raw.end - raw.payload)
                continue
            tensor.Clear()  # two of one name
        if file is None:
            weight = data[initializer.payload : initializer.end]
        else:
            file.seek(initializer.payload)
            weight = file.read(initializer.end - initializer.payload)
        tensor.MergeFromString(weight)
    return proto


def _raw_data(data: Buffer, initializer: Field) -> Field | None:
    """The field of the raw data of a large weight that has them once and is otherwise small, else None."""
    size = initializer.end - initializer.payload
    if size < SMALLEST_LEFT:
        return None
    found = [f for f in fields(data, initializer.payload, initializer.end) if f.number == TENSOR_RAW_DATA]
    if len(found) != 1 or found[0].wire_type != LENGTH_DELIMITED:
        return None
    return found[0] if 2 * (found[0].end - found[0].payload) > size else None
