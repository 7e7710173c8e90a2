"""Refuse a message that parsed but says what no ONNX model may say, before anything reads it.

Readers of protobuf take names that are no text, attributes without a type and tensors whose numbers do not fit their
shape; each of them fails later, far from its cause.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.model_io import protobuf
from onnxprune.model_io.external import byte_size

_A = onnx.AttributeProto
_FIELDS = {  # where the value of an attribute of each type lies
    _A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", _A.TENSOR: "t", _A.GRAPH: "g", _A.SPARSE_TENSOR: "sparse_tensor",
    _A.TYPE_PROTO: "tp", _A.FLOATS: "floats", _A.INTS: "ints", _A.STRINGS: "strings", _A.TENSORS: "tensors",
    _A.GRAPHS: "graphs", _A.SPARSE_TENSORS: "sparse_tensors", _A.TYPE_PROTOS: "type_protos",
}  # fmt: skip
_HAVE_PRESENCE = {"t", "g", "sparse_tensor", "tp"}  # a number or text that is 0 or empty may be left out of the file
_CONSTANT = {
    "value", "sparse_value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings",
}  # fmt: skip


def check_text_and_attributes(proto: onnx.ModelProto, parts: protobuf.Parts, name: str) -> None:
    """Refuse names that are no text, attributes that hold no value of a type, and nodes that lack a required one.

    Raises:
        ModelError: Names the model, and the node where there is one.
    """
    nodes = _with_attributes(parts.nodes)
    texts = _texts(proto, parts, nodes)
    if set(map(type, texts)) != {str}:
        damaged = next(text for text in texts if not isinstance(text, str))
        shown = damaged[:40].decode(errors="backslashreplace")
        raise ModelError(f"'{name}' is damaged: the name '{shown}' is not UTF-8 text.")
    for node, attributes in nodes:
        seen = _checked_attributes(node, attributes, name) if attributes else set()
        if node.op_type == "Constant" and node.domain == "" and not (len(seen) == 1 and seen <= _CONSTANT):
            listed = sorted(seen) or "none"
            raise ModelError(f"{_where(node, name)} has to hold one value, but its attributes are {listed}.")
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    # A local function has versions of its own.
    for node, attributes in _with_attributes(protobuf.nodes_below(proto.graph.node)) if proto.functions else nodes:
        operator, outputs = node.op_type, len(node.output)
        if not operator:
            raise ModelError(f"{_where(node, name)} names no operator.")
        if not outputs:
            raise ModelError(f"{_where(node, name)} has no output, so nothing can come of it: remove it.")
        needs = _needs(operator, node.domain, versions.get(node.domain, 0))
        missing = sorted(needs.attributes - {a.name for a in attributes}) if needs.attributes else []
        if missing:
            raise ModelError(f"{_where(node, name)} lacks the attribute '{missing[0]}'.")
        if len(node.input) < needs.inputs or outputs < needs.outputs:
            what = "inputs" if len(node.input) < needs.inputs else "outputs"
            raise ModelError(f"{_where(node, name)} has too few {what}.")


_Nodes = list[tuple[onnx.NodeProto, list[onnx.AttributeProto]]]


def _with_attributes(nodes: Iterable[onnx.NodeProto]) -> _Nodes:
    """Nodes with their attributes: to ask a protobuf twice takes long."""
    return [(node, list(node.attribute)) for node in nodes]


def _checked_attributes(node: onnx.NodeProto, attributes: Iterable[onnx.AttributeProto], name: str) -> set[str]:
    """Return the names of a node's attributes.

    Raises:
        ModelError: There is one twice, without a name, or without a value of a type.
    """
    seen: set[str] = set()
    for attribute in attributes:
        called = attribute.name
        if not called or called in seen:
            raise ModelError(f"{_where(node, name)} has the attribute '{called}' twice, or one without a name.")
        seen.add(called)
        if attribute.ref_attr_name:
            continue
        field = _FIELDS.get(attribute.type)
        if field is None or (field in _HAVE_PRESENCE and not attribute.HasField(field)):
            raise ModelError(f"{_where(node, name)} has the attribute '{called}' without a type or a value.")
    return seen


def _where(node: onnx.NodeProto, name: str) -> str:
    return f"'{name}' is not a valid ONNX graph: node '{node.name or ', '.join(node.output)}' ({node.op_type})"


class _Needs(NamedTuple):
    """The attributes that a node of an operator must have, and the least number of its inputs and outputs."""

    attributes: frozenset[str] = frozenset()
    inputs: int = 0
    outputs: int = 0


@functools.cache
def _needs(operator: str, domain: str, version: int) -> _Needs:
    """What a node of an operator must have; nothing where ONNX does not know the operator."""
    try:
        schema = onnx.defs.get_schema(operator, version, domain)
    except onnx.defs.SchemaError:
        return _Needs()
    required = frozenset(name for name, attribute in schema.attributes.items() if attribute.required)
    return _Needs(required, schema.min_input, schema.min_output)


def check_tensors(parts: protobuf.Parts, name: str) -> None:
    """Refuse initializers without a name, and tensors whose data do not fit their shape.

    Raises:
        ModelError: Names the model and the tensor.
    """
    if not all(tensor.name for tensor in parts.initializers):
        raise ModelError(f"'{name}' has an initializer without a name.")
    for tensor in parts.dense:
        _check_size(tensor, name)


def check_bytes(tensor: onnx.TensorProto, stored: int, name: str) -> None:
    """Refuse a tensor that has more or fewer bytes than its shape needs.

    Raises:
        ModelError: Names the model and the tensor.
    """
    need = byte_size(tensor)
    if stored != need:
        raise ModelError(f"'{name}' is damaged: tensor '{tensor.name}' needs {need:,} bytes but has {stored:,}.")


def _check_size(tensor: onnx.TensorProto, name: str) -> None:
    if tensor.HasField("raw_data"):
        check_bytes(tensor, len(tensor.raw_data), name)
        return
    byte_size(tensor)
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        numbers, stored = _counts(tensor)
        if numbers != stored:
            raise ModelError(
                f"'{name}' is damaged: tensor '{tensor.name}' needs {numbers:,} numbers but has {stored:,}."
            )


def _counts(tensor: onnx.TensorProto) -> tuple[int, int]:
    """How many entries the tensor's own field for its type must hold, and how many it holds."""
    elements = math.prod(tensor.dims)
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
        elements *= 2
    elif tensor.data_type != onnx.TensorProto.STRING and (bits := ir.DataType(tensor.data_type).bitwidth) < 8:
        elements = -(-elements * bits // 8)  # several to a number
    return elements, len(getattr(tensor, field))


def _texts(proto: onnx.ModelProto, parts: protobuf.Parts, nodes: _Nodes) -> list[str | bytes]:
    """Every text that readers take for a name, and every description; bytes where one is no text."""
    texts: list[str | bytes] = [proto.producer_name, proto.producer_version, proto.domain, proto.doc_string]
    texts += _entries(proto.metadata_props)
    texts += (entry.domain for entry in proto.opset_import)
    for function in proto.functions:
        texts += (function.name, function.domain, function.doc_string, *function.input, *function.output)
        texts += (*function.attribute, *(entry.domain for entry in function.opset_import))
    for graph in parts.graphs:
        texts += (graph.name, graph.doc_string, *_entries(graph.metadata_props))
        for value in (*graph.input, *graph.output, *graph.value_info):
            texts += (value.name, value.doc_string, *_entries(value.metadata_props))
            if value.type.tensor_type.HasField("shape"):
                texts += (dim.dim_param for dim in value.type.tensor_type.shape.dim)
    for tensor in parts.dense:
        texts += (tensor.name, tensor.doc_string, *_entries(tensor.metadata_props), *_entries(tensor.external_data))
    for node, attributes in nodes:
        texts += (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output)
        if node.metadata_props:
            texts += _entries(node.metadata_props)
        for attribute in attributes:
            texts += (attribute.name, attribute.ref_attr_name, attribute.doc_string)
    return texts


def _entries(pairs: Iterable[onnx.StringStringEntryProto]) -> list[str]:
    return [text for pair in pairs for text in (pair.key, pair.value)]
