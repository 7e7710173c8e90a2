"""Write zeros as ONNX `sparse_initializer`, for the few tools that read it.

Off by default everywhere: positions take 8 bytes each (0.30 of dense at 90 % zeros, nothing gained below 67 %),
`onnx.checker` with full_check rejects such models, OpenVINO and the version converter fail on them, and onnx-ir drops
the tensors in silence. `pack` is smaller and works everywhere.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.packing.decoder import initializer_cost
from onnxprune.packing.unpacker import unpack
from onnxprune.packing.values import as_bits

_DTYPES = (
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT32,
    ir.DataType.INT64,
)


def to_sparse_initializers(model: ir.Model) -> onnx.ModelProto:
    """The model as a proto whose sparse tensors are `sparse_initializer`s; packed tensors are unpacked first.

    Only initializers of the main graph that are no inputs or outputs, and only where this is smaller than dense.
    Bit-exact. A proto, because `onnx_ir.Model` cannot hold sparse initializers.
    """
    plain = unpack(model)
    sparse = []
    for value in list(plain.graph.initializers.values()):
        proto = _sparse_proto(value)
        if proto is not None and proto.ByteSize() < initializer_cost(value):
            sparse.append((value.name, proto))
    proto_model = _without_data(plain, {name for name, _ in sparse})
    proto_model.graph.sparse_initializer.extend(proto for _, proto in sparse)
    return proto_model


def _sparse_proto(value: ir.Value) -> onnx.SparseTensorProto | None:
    tensor = value.const_value
    if tensor is None or tensor.dtype not in _DTYPES or not tensor.shape or tensor.size == 0:
        return None
    if value.is_graph_input() or value.is_graph_output():
        return None
    flat = np.ascontiguousarray(tensor.numpy()).reshape(-1)
    kept = np.flatnonzero(as_bits(flat))
    if kept.size * (8 + flat.itemsize) >= flat.nbytes:
        return None
    proto = onnx.SparseTensorProto(dims=tensor.shape.numpy())
    proto.values.CopyFrom(ir.serde.serialize_tensor(ir.tensor(flat[kept], name=value.name)))
    proto.indices.CopyFrom(ir.serde.serialize_tensor(ir.tensor(kept.astype(np.int64))))
    return proto


def _without_data(model: ir.Model, names: set[str | None]) -> onnx.ModelProto:
    """Serialise the model without the named initializers."""
    proto = ir.to_proto(model)
    remaining = [t for t in proto.graph.initializer if t.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(remaining)
    return proto
