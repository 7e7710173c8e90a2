"""What onnx said of the nodes of a model so far.

Layers of a network are alike, and two settings of the free dimensions ask of the same nodes: each node is written once,
and each question is put once, also what a node computes from numbers that are known. An `Asked` is of a model as it is;
it is thrown away when the model changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune.graph.evaluate import bare_node, evaluate_node

Array = npt.NDArray[np.generic]
Told = tuple[int, tuple[int | None, ...] | None, Array | None]
"""What inference looks at of an input: its element type, its shape, and its content where that is short."""

Constant = tuple[ir.Value, int, tuple[int, ...], Array | None]
"""A constant, its element type, its shape, and its content where that is short."""

Answer = tuple[tuple[int, tuple[int | None, ...] | None] | None, ...]
"""The element type and the shape of each output; None where it is no tensor or nothing was said."""

_FAILURES = (
    onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, AttributeError,
)  # fmt: skip
_PLAIN = {
    ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.FLOATS,
    ir.AttributeType.STRING, ir.AttributeType.STRINGS,
}  # fmt: skip
_DATA_LIMIT = 1 << 16  # elements of an integer tensor whose data are followed
_FLOAT_LIMIT = 1 << 10


class Asked:
    """The nodes of a model as onnx reads them, and the answers so far."""

    def __init__(self, model: ir.Model) -> None:
        self._versions = dict(model.opset_imports)
        self._imports = [onnx.helper.make_opsetid(d, v) for d, v in self._versions.items()]
        self._ir_version = min(model.ir_version, 10)
        self._schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        self._written: dict[ir.Node, tuple[onnx.NodeProto, object]] = {}
        self._protos: dict[object, onnx.NodeProto] = {}
        self._types: dict[tuple[int, tuple[int | None, ...] | None], onnx.TypeProto] = {}
        self._answers: dict[tuple[object, ...], Answer | None] = {}
        self._computed: dict[tuple[object, ...], Array | None] = {}
        self._contents: dict[ir.TensorProtocol, Array | None] = {}
        self._constants: dict[ir.Graph, list[Constant]] = {}

    def constants(self, graph: ir.Graph) -> list[Constant]:
        """Return the constants of a graph, each with its type, its shape and what `content` returns."""
        known = self._constants.get(graph)
        if known is None:
            known = self._constants[graph] = []
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None:
                    dtype, shape = tensor.dtype, tuple(tensor.shape.numpy())
                    known.append((value, int(dtype), shape, self._content(tensor, dtype, math.prod(shape))))
        return known

    def content(self, tensor: ir.TensorProtocol) -> Array | None:
        """Return the content of a constant that is small enough to be followed, the same array each time."""
        return self._content(tensor, tensor.dtype, tensor.size)

    def _content(self, tensor: ir.TensorProtocol, dtype: ir.DataType, size: int) -> Array | None:
        if tensor not in self._contents:
            limit = _FLOAT_LIMIT if size <= _FLOAT_LIMIT or not is_integral(dtype) else _DATA_LIMIT
            self._contents[tensor] = tensor.numpy() if size <= limit and dtype != ir.DataType.STRING else None
        return self._contents[tensor]

    def computed(self, node: ir.Node, arrays: list[Array | None], cost: Callable[[ir.Node], int]) -> Array | None:
        """Return the output of a node at these inputs; `cost` bounds the elements of it, see `evaluate_node`."""
        proto, written = self._proto(node)
        question = (written, *(None if array is None else content_key(array) for array in arrays))
        if question not in self._computed:
            self._computed[question] = evaluate_node(node, arrays, self._versions.get("", 1), cost(node), proto)
        return self._computed[question]

    def inferred(self, node: ir.Node, told: Sequence[Told | None]) -> Answer | None:
        """Return what onnx infers of the outputs of a node; None where that contradicts its inputs.

        Args:
            node: A node of an operator that has a schema.
            told: What is known of each input, None where one is left out.
        """
        proto, written = self._proto(node)
        question = (written, *map(_told_key, told))
        if question not in self._answers:
            self._answers[question] = self._answer(node, proto, told)
        return self._answers[question]

    def has_schema(self, node: ir.Node) -> bool:
        """Say whether onnx knows the operator of a node."""
        return self._schema(node) is not None

    def _proto(self, node: ir.Node) -> tuple[onnx.NodeProto, object]:
        """The node as onnx reads it, the same for all that are written alike, and what tells it from others."""
        known = self._written.get(node)
        if known is None:
            spelling = _spelling(node)
            proto = None if spelling is None else self._protos.get(spelling)
            if proto is None:
                proto = bare_node(node)
                spelling = spelling or (proto.SerializeToString(deterministic=True),)
                self._protos[spelling] = proto
            known = self._written[node] = proto, spelling
        return known

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        name = node.op_type, node.domain
        if name not in self._schemas:
            try:
                self._schemas[name] = onnx.defs.get_schema(
                    node.op_type, self._versions.get(node.domain, 1), node.domain
                )
            except onnx.defs.SchemaError:
                self._schemas[name] = None
        return self._schemas[name]

    def _type(self, dtype: int, shape: tuple[int | None, ...] | None) -> onnx.TypeProto:
        known = self._types.get((dtype, shape))
        if known is None:
            known = self._types[dtype, shape] = onnx.helper.make_tensor_type_proto(dtype, shape)
        return known

    def _answer(self, node: ir.Node, proto: onnx.NodeProto, told: Sequence[Told | None]) -> Answer | None:
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, onnx.TensorProto] = {}
        for i, known in enumerate(told):
            if known is not None:
                dtype, shape, content = known
                types[f"i{i}"] = self._type(dtype, shape)
                if content is not None:
                    data[f"i{i}"] = onnx.numpy_helper.from_array(np.ascontiguousarray(content), f"i{i}")
        schema = self._schema(node)
        assert schema is not None
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self._imports, ir_version=self._ir_version
            )
        except _FAILURES:
            return None
        return tuple(_read(inferred.get(f"o{i}")) for i in range(len(node.outputs)))


def _spelling(node: ir.Node) -> tuple[object, ...] | None:
    """All that `bare_node` writes of a node, without writing it; None where an attribute holds more than numbers.

    Numbers are spelt out: 0.0 and -0.0 are equal, and so are 1 and 1.0.
    """
    attributes: list[object] = []
    for name, attribute in node.attributes.data.items():
        if attribute.type not in _PLAIN or attribute.is_ref():
            return None
        attributes += [name, repr(attribute.value)]
    return node.op_type, node.domain, tuple(v is None for v in node.inputs), len(node.outputs), *attributes


def is_integral(dtype: ir.DataType) -> bool:
    """Say whether an element type is one of integers, or of truth values."""
    return dtype.is_integer() or dtype == ir.DataType.BOOL


def _told_key(told: Told | None) -> tuple[object, ...] | None:
    if told is None:
        return None
    dtype, shape, content = told
    return dtype, shape, None if content is None else content_key(content)


def content_key(array: Array) -> tuple[object, ...]:
    """Return what two arrays of the same content have in common: type, shape and bytes, of texts the texts."""
    texts = array.dtype.kind == "O"  # of which the bytes are addresses
    return array.dtype, array.shape, tuple(array.reshape(-1).tolist()) if texts else array.tobytes()


def _read(inferred: onnx.TypeProto | None) -> tuple[int, tuple[int | None, ...] | None] | None:
    if inferred is None or not inferred.HasField("tensor_type"):
        return None
    tensor = inferred.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    return tensor.elem_type, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
