"""Write the standard ONNX operators that turn a coded tensor back into the dense one.

In: `Coded` values, a `Stream` of positions, the tensor's shape and type. Out: a `Decoder`, nodes and initializers whose
last output is the tensor, under its own name. Every shape is a constant, so the whole of it folds when a session loads.

    gaps    Cast -> CumSum = positions; ScatterElements(ConstantOfShape, positions, values)
    escape  fields e; real = e < limit; rank = CumSum(real); positions = CumSum(e) + rank - 1;
            ScatterElements(ConstantOfShape, positions, GatherElements([fill, values...], rank * real))
    mask    bits; GatherElements([fill, values...], CumSum(bits) * bits)
    values  exact: as they are; fp16: Cast; codebook: GatherElements; int8: Cast, and Mul by the scale at the end

Operators are chosen for their cost in ONNX Runtime and their correctness elsewhere. On one dimension GatherElements is
8 times faster than Gather. Fields narrower than a byte are looked up in a table of 256 rows, shared by the graph:
ONNX Runtime is slow at broadcasting over short rows, and OpenVINO 2026.4 computes BitShift and uint8 Div wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.model_io.external import stored_bytes
from onnxprune.packing.positions import Stream, field_table, pack_fields
from onnxprune.packing.values import Coded

Array = NDArray[Any]
ConstantKey = tuple[str, tuple[int, ...], bytes]

NODE_PREFIX = "onnxprune.pack/"
MIN_OPSET = 11  # CumSum, ScatterElements, GatherElements
# ConstantOfShape writes bfloat16 only from opset 20; GatherElements and Reshape take it from 13.
MIN_OPSET_BFLOAT16 = {"constant": 20, "gaps": 20, "escape": 20, "mask": 13, "dense": 13}


@dataclass
class Decoder:
    """Nodes and initializers under construction for one tensor.

    Attributes:
        prefix: Unique in the model; what the helper values' names start with.
        shared: Small constants of the graph by content; new ones are in `new_shared` until the decoder is accepted.
        shared_prefix: What the names of the shared constants start with.
    """

    prefix: str
    shared: dict[ConstantKey, ir.Value]
    shared_prefix: str
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)
    new_shared: dict[ConstantKey, ir.Value] = field(default_factory=dict)

    def stored(self, label: str, array: Array) -> ir.Value:
        """An initializer of this tensor alone."""
        value = initializer(f"{self.prefix}.{label}", array)
        self.initializers.append(value)
        return value

    def constant(self, array: Array) -> ir.Value:
        """A small constant, shared by all decoders of the graph."""
        key = constant_key(array)
        if key in self.shared:
            return self.shared[key]
        if key not in self.new_shared:
            number = len(self.shared) + len(self.new_shared)
            self.new_shared[key] = initializer(f"{self.shared_prefix}.c{number}", array)
        return self.new_shared[key]

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Append a node; returns its output."""
        output = ir.Value(name=f"{self.prefix}.{len(self.nodes)}")
        self.nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=""))
        return output

    @property
    def cost(self) -> int:
        """Bytes that these nodes and initializers add to the file (an upper bound, tight to a few bytes each)."""
        values = [*self.initializers, *self.new_shared.values()]
        nodes = sum(ir.serde.serialize_node(node).ByteSize() + 4 for node in self.nodes)
        return nodes + sum(initializer_cost(value) for value in values)


def constant_key(array: Array) -> ConstantKey:
    """What makes two small constants the same."""
    return array.dtype.name, array.shape, array.tobytes()


def initializer(name: str, array: Array) -> ir.Value:
    """A constant value. Its type and shape are those of the tensor; said again they would cost bytes in the file."""
    tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
    return ir.Value(name=name, const_value=tensor)


def initializer_cost(value: ir.Value) -> int:
    """Bytes of a TensorProto: the data, the name, the dims and the field headers."""
    tensor = value.const_value
    assert tensor is not None
    return stored_bytes(tensor) + len(value.name or "") + 3 * len(tensor.shape) + 16


def build_decoder(decoder: Decoder, tensor: ir.Value, coded: Coded, stream: Stream) -> ir.Value:
    """Append the operators that decode one tensor.

    Args:
        decoder: Receives nodes and initializers.
        tensor: The value to replace: its name, shape and type are taken over.
        coded: Its values.
        stream: Its positions, for `coded.kept`.

    Returns:
        The decoded value; the caller puts it where `tensor` was.
    """
    constant = tensor.const_value
    assert constant is not None
    dtype, shape = constant.dtype, constant.shape.numpy()
    working = dtype if coded.scale is None else ir.tensor(coded.scale).dtype
    if stream.form.layout == "constant":
        filled = _expanded_fill(coded, dtype, working)
        dense = decoder.op("ConstantOfShape", decoder.constant(np.array(shape, np.int64)), value=_tensor(filled, dtype))
    else:
        values = _decode_values(decoder, coded, stream, working)
        flat = _LAYOUTS[stream.form.layout](decoder, stream, values, _Target(coded, working, int(np.prod(shape))))
        dense = decoder.op("Reshape", flat, decoder.constant(np.array(shape, np.int64)))
        if coded.scale is not None:
            dense = decoder.op("Mul", dense, decoder.stored("scale", coded.scale))
            dense = dense if working == dtype else decoder.op("Cast", dense, to=int(dtype))
    last = decoder.nodes[-1]
    last.name = f"{NODE_PREFIX}{stream.form.name}+{coded.kind}/{decoder.prefix}"
    dense.name, dense.type, dense.shape = tensor.name, ir.TensorType(dtype), ir.Shape(shape)
    return dense


@dataclass(frozen=True)
class _Target:
    coded: Coded
    working: ir.DataType
    size: int


def _expanded_fill(coded: Coded, dtype: ir.DataType, working: ir.DataType) -> Array:
    if coded.table is not None:
        return coded.table[coded.fill]
    return coded.fill if working == dtype and coded.kind == "exact" else np.zeros(1, working.numpy())


def _tensor(fill: Array, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor(fill.astype(dtype.numpy()), dtype=dtype)


def _decode_values(decoder: Decoder, coded: Coded, stream: Stream, working: ir.DataType) -> ir.Value:
    """[stream.values] the values to place, in the working data type."""
    codes = np.full(stream.values, coded.fill[0], coded.codes.dtype)
    codes[stream.slots] = coded.codes[stream.kept]
    if coded.table is None:
        stored = decoder.stored("values", codes)
        return stored if coded.kind == "exact" else decoder.op("Cast", stored, to=int(working))
    packed = decoder.stored("codes", pack_fields(codes, coded.bits))
    indices = _unpack_fields(decoder, packed, coded.bits, codes.size)
    return decoder.op("GatherElements", decoder.stored("table", coded.table), indices, axis=0)


def _unpack_fields(decoder: Decoder, packed: ir.Value, bits: int, count: int) -> ir.Value:
    """[n] bytes -> [count] int32 fields."""
    indices = decoder.op("Cast", packed, to=int(ir.DataType.INT32))
    if bits >= 8:
        return indices
    fields = decoder.op("Gather", decoder.constant(field_table(bits)), indices, axis=0)
    fields = decoder.op("Reshape", fields, decoder.constant(np.array([-1], np.int64)))
    fields = decoder.op("Cast", fields, to=int(ir.DataType.INT32))
    if count % (8 // bits):
        ends = (decoder.constant(np.array([0], np.int64)), decoder.constant(np.array([count], np.int64)))
        fields = decoder.op("Slice", fields, *ends)
    return fields


def _place_dense(decoder: Decoder, stream: Stream, values: ir.Value, target: _Target) -> ir.Value:
    del decoder, stream, target
    return values


def _place_mask(decoder: Decoder, stream: Stream, values: ir.Value, target: _Target) -> ir.Value:
    bits = _unpack_fields(decoder, decoder.stored("mask", stream.packed), 1, target.size)
    rank = decoder.op("CumSum", bits, decoder.constant(np.array(0, np.int32)))
    return decoder.op("GatherElements", values, decoder.op("Mul", rank, bits), axis=0)


def _place_gaps(decoder: Decoder, stream: Stream, values: ir.Value, target: _Target) -> ir.Value:
    gaps = _unpack_fields(decoder, decoder.stored("gaps", stream.packed), stream.form.bits, stream.count)
    positions = decoder.op("CumSum", gaps, decoder.constant(np.array(0, np.int32)))
    return _scatter(decoder, positions, values, target)


def _place_escape(decoder: Decoder, stream: Stream, values: ir.Value, target: _Target) -> ir.Value:
    bits = stream.form.bits
    axis, one = decoder.constant(np.array(0, np.int32)), decoder.constant(np.array(1, np.int32))
    gaps = _unpack_fields(decoder, decoder.stored("gaps", stream.packed), bits, stream.count)
    real = decoder.op("Less", gaps, decoder.constant(np.array((1 << bits) - 1, np.int32)))
    real = decoder.op("Cast", real, to=int(ir.DataType.INT32))
    rank = decoder.op("CumSum", real, axis)
    ends = decoder.op("Add", decoder.op("CumSum", gaps, axis), rank)
    spread = decoder.op("GatherElements", values, decoder.op("Mul", rank, real), axis=0)
    return _scatter(decoder, decoder.op("Sub", ends, one), spread, target)


def _scatter(decoder: Decoder, positions: ir.Value, values: ir.Value, target: _Target) -> ir.Value:
    fill = _tensor(_expanded_fill(target.coded, target.working, target.working), target.working)
    empty = decoder.op("ConstantOfShape", decoder.constant(np.array([target.size], np.int64)), value=fill)
    return decoder.op("ScatterElements", empty, positions, values, axis=0)


_LAYOUTS: dict[str, Callable[[Decoder, Stream, ir.Value, _Target], ir.Value]] = {
    "dense": _place_dense,
    "mask": _place_mask,
    "gaps": _place_gaps,
    "escape": _place_escape,
}
