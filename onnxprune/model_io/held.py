"""A copy of a ModelProto whose large weights are read once, and stay arrays from then on.

A protobuf copies a tensor's bytes whenever it is asked for them, and copying the message copies them too. Here each is
asked for once: the copied message only names it, and the model that is made of the message gets the array.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.model_io.bodies import graphs_of
from onnxprune.model_io.wellformed import check_bytes

_LEAST = 1 << 14  # bytes; what is smaller stays in the message, where tools that lift or inline may read it
_PLACE = "onnxprune: held in memory, number "
_T = onnx.TensorProto
_PLAIN = {
    _T.FLOAT, _T.FLOAT16, _T.DOUBLE, _T.INT8, _T.INT16, _T.INT32, _T.INT64,
    _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64, _T.BOOL,
}  # fmt: skip


def copied(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[int, bytes]]:
    """Return a copy of a model without the bytes of its large initializers, and these by the place of the initializer.

    Args:
        model: The model, which stays as it is.
    """
    copy, held = onnx.ModelProto(), dict[int, bytes]()
    _fill(copy, model, "graph")
    copy.graph.SetInParent()
    _fill(copy.graph, model.graph, "initializer")
    for place, tensor in enumerate(model.graph.initializer):
        new = copy.graph.initializer.add()
        raw = _fill(new, tensor, "raw_data")
        if raw is None:
            continue
        if len(raw) < _LEAST or new.data_type not in _PLAIN or new.data_location == onnx.TensorProto.EXTERNAL:
            new.raw_data = raw
        else:
            held[place] = raw
    return copy, held


def refer(proto: onnx.ModelProto, name: str, held: Mapping[int, bytes]) -> None:
    """Let initializers that were left without bytes name theirs, as external data do.

    Raises:
        ModelError: One has more or fewer bytes than its shape needs; names it and the model.
    """
    for place, raw in held.items():
        tensor = proto.graph.initializer[place]
        check_bytes(tensor, len(raw), name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{_PLACE}{place}")


def put_in(model: ir.Model, held: Mapping[int, bytes]) -> None:
    """Give initializers the arrays of the bytes that they name, in the model that was made of the message."""
    for graph in graphs_of(model) if held else ():
        for value in graph.initializers.values():
            tensor = value.const_value
            place = _number(str(tensor.location)) if isinstance(tensor, ir.ExternalTensor) else None
            if tensor is None or place is None:
                continue
            shape = tensor.shape.numpy()
            value.const_value = ir.Tensor(
                np.frombuffer(held[place], tensor.dtype.numpy().newbyteorder("<")).reshape(shape),
                dtype=tensor.dtype,
                name=tensor.name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )


def _number(location: str) -> int | None:
    return int(location.removeprefix(_PLACE)) if location.startswith(_PLACE) else None


def _fill(target: Any, source: Any, without: str) -> Any:
    """Set the fields of a message as they are in another, but for one; returns that, None where it is not set."""
    left = None
    for field, value in source.ListFields():
        if field.name == without:
            left = value
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
    return left
