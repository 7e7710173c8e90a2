"""Small Constant nodes become initializers before a graph is made of a message.

Exporters write each number of a shape as a node of its own, which makes up half of the nodes of many files. As a node
it is made, copied and lifted; as an initializer it is a tensor with a name.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

_MOST = 1 << 14  # bytes; a larger tensor would lie in memory twice, so `passes.LiftConstants` lifts it later

FIRST_WITH_FREE_CONSTANTS = 4
"""Before this IR version, every constant is an input of the outermost graph."""


def lift(proto: onnx.ModelProto) -> list[str]:
    """Turn small Constant nodes of the main graph into initializers, in place.

    One that is an output of the graph stays, and so does one whose name is taken: whoever reads the message refuses it.

    Returns:
        The names of what was lifted.
    """
    graph, lifted, stay = proto.graph, list[str](), list[onnx.NodeProto]()
    if proto.ir_version < FIRST_WITH_FREE_CONSTANTS:
        return lifted
    taken = {entry.name for entries in (graph.input, graph.output, graph.initializer) for entry in entries}
    for node in graph.node:
        tensor = _small(node) if node.op_type == "Constant" else None
        name = node.output[0] if tensor is not None else ""
        if tensor is None or not name or name in taken:
            stay.append(node)
            continue
        taken.add(name)
        lifted.append(name)
        initializer = graph.initializer.add()
        initializer.CopyFrom(tensor)
        initializer.name = name
    if lifted:
        del graph.node[:]
        graph.node.extend(stay)
    return lifted


def read(model: ir.Model, proto: onnx.ModelProto, lifted: Iterable[str]) -> None:
    """Make arrays of what was lifted, which are asked for many times.

    Args:
        model: What was made of the message.
        proto: The message. What it says of a constant beside its content does not count.
        lifted: What `lift` returned.
    """
    described = {entry.name for entry in proto.graph.value_info}
    for name in lifted:
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert isinstance(tensor, ir.TensorProtoTensor)
        shape, dtype = tensor.shape, tensor.dtype
        if dtype != ir.DataType.STRING:
            value.const_value = ir.Tensor(
                tensor.numpy(),
                dtype=dtype,
                shape=shape,
                name=name,
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
        if name in described:
            value.shape, value.type = shape, ir.TensorType(dtype)


def _small(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor that a Constant holds; None where there is none, or a large one."""
    if node.domain or len(node.output) != 1 or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name != "value" or attribute.type != onnx.AttributeProto.TENSOR or attribute.ref_attr_name:
        return None
    tensor = attribute.t
    small = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= _MOST
    return tensor if small else None
