"""Give the plain model back: run the decoders that `pack` wrote and keep their results as initializers.

A decoder is known by the name of its last node (`onnxprune.pack/<form>+<values>/...`). Unpacking does not trust the
name: it walks back to the initializers and executes the operators found there with numpy, so it works on whatever
decoders are in the file and refuses what is not one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxprune.errors import ModelError
from onnxprune.model_io.bodies import graphs_of
from onnxprune.packing.decoder import NODE_PREFIX, initializer

Array = NDArray[Any]
Attributes = Mapping[str, ir.Attr]
_MAX_ELEMENTS = 2**31 - 1


def is_packed(model: ir.Model) -> bool:
    """Whether any tensor of the model is packed."""
    return any(_is_last(node) for graph in graphs_of(model) for node in graph)


def unpack(model: ir.Model) -> ir.Model:
    """The same model with every packed tensor as an initializer of its original name.

    Bit-exact for exact values; for the others it holds the values that sessions compute. A model that is not packed
    comes back as a copy.

    Raises:
        ModelError: A decoder is damaged: an unknown operator, a missing or outside input, indices out of range, or a
            result that is not of the declared shape and type.
    """
    plain = model.clone()
    for graph in graphs_of(plain):
        for last in [node for node in graph if _is_last(node)]:
            _unpack_tensor(graph, last)
    return plain


def _is_last(node: ir.Node) -> bool:
    return (node.name or "").startswith(NODE_PREFIX)


def _unpack_tensor(graph: ir.Graph, last: ir.Node) -> None:
    old = last.outputs[0]
    order = _decoder_nodes(last)
    try:
        array = _execute(order)
    except (ValueError, IndexError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise ModelError(f"Packed tensor {old.name!r} is damaged and cannot be unpacked: {error}.") from error
    _check(old, array)
    new = initializer(old.name or "", array)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    leaves = {v for node in order for v in node.inputs if v is not None and v.is_initializer()}
    graph.remove(reversed(order), safe=True)
    for leaf in leaves:
        if not leaf.uses() and not leaf.is_graph_output() and leaf.graph is not None:
            del leaf.graph.initializers[leaf.name or ""]
    graph.register_initializer(new)


def _decoder_nodes(last: ir.Node) -> list[ir.Node]:
    """The decoder's nodes in the order in which they run."""
    order: dict[ir.Node, None] = {}
    stack: list[tuple[ir.Node, bool]] = [(last, False)]
    while stack:
        node, inputs_done = stack.pop()
        if inputs_done:
            order[node] = None
            continue
        if node in order:
            continue
        if node.domain != "" or node.op_type not in _OPERATORS:
            name = last.outputs[0].name
            raise ModelError(
                f"Packed tensor {name!r} has a decoder with operator {node.op_type!r}, which pack never uses."
            )
        stack.append((node, True))
        producers = (value.producer() for value in node.inputs if value is not None)
        stack.extend((producer, False) for producer in producers if producer is not None)
    return list(order)


def _execute(order: list[ir.Node]) -> Array:
    known: dict[ir.Value, Array] = {}
    result: Array = np.empty(0)
    for node in order:
        inputs = []
        for value in node.inputs:
            if value is None:
                raise ValueError(f"{node.op_type} lacks an input")
            inputs.append(known[value] if value in known else _constant(value))
        result = _OPERATORS[node.op_type](node.attributes, *inputs)
        known[node.outputs[0]] = result
    return result


def _constant(value: ir.Value) -> Array:
    if value.is_graph_input() or value.const_value is None:
        raise ValueError(f"it reads {value.name!r}, which is no constant")
    return value.const_value.numpy()


def _check(declared: ir.Value, array: Array) -> None:
    """Compare with the declared type and shape, where the file still says them."""
    shape = None if declared.shape is None else tuple(declared.shape)
    known = shape is not None and all(isinstance(d, int) for d in shape)
    if known and shape != array.shape:
        raise ModelError(f"Packed tensor {declared.name!r} decodes to shape {array.shape}, not {shape}.")
    if declared.dtype is not None and declared.dtype.numpy() != array.dtype:
        raise ModelError(f"Packed tensor {declared.name!r} decodes to {array.dtype}, not {declared.dtype.name}.")


def _constant_of_shape(attributes: Attributes, shape: Array) -> Array:
    dims = [int(d) for d in shape]
    if any(d < 0 for d in dims) or np.prod(dims, dtype=object) > _MAX_ELEMENTS:
        raise ValueError(f"it makes a tensor of shape {dims}")
    fill = attributes["value"].as_tensor().numpy()
    return np.full(dims, fill.reshape(-1)[0], fill.dtype)


def _cast(attributes: Attributes, x: Array) -> Array:
    return x.astype(ir.DataType(attributes["to"].as_int()).numpy())


def _gather_rows(attributes: Attributes, table: Array, indices: Array) -> Array:
    if attributes["axis"].as_int() != 0 or (indices.size and (indices.min() < 0 or indices.max() >= len(table))):
        raise ValueError("a byte is out of its table's range")
    return table[indices]


def _gather_elements(attributes: Attributes, data: Array, indices: Array) -> Array:
    _check_flat(attributes, data, indices)
    return data[indices]


def _scatter_elements(attributes: Attributes, data: Array, indices: Array, updates: Array) -> Array:
    _check_flat(attributes, data, indices)
    if indices.shape != updates.shape:
        raise ValueError(f"{indices.size} positions for {updates.size} values")
    out = data.copy()
    out[indices] = updates
    return out


def _check_flat(attributes: Attributes, data: Array, indices: Array) -> None:
    if data.ndim != 1 or indices.ndim != 1 or attributes["axis"].as_int() != 0:
        raise ValueError("its gather or scatter is not along one flat axis")
    if indices.size and (indices.min() < 0 or indices.max() >= data.size):
        raise ValueError("a position is out of range")


def _slice(attributes: Attributes, x: Array, starts: Array, ends: Array) -> Array:
    del attributes
    return x[int(starts[0]) : int(ends[0])]


_OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda _, x, y: x + y,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": lambda _, x, axis: np.cumsum(x, axis=int(axis), dtype=x.dtype),
    "Gather": _gather_rows,
    "GatherElements": _gather_elements,
    "Less": lambda _, x, y: x < y,
    "Mul": lambda _, x, y: x * y,
    "Reshape": lambda _, x, shape: x.reshape([int(d) for d in shape]),
    "ScatterElements": _scatter_elements,
    "Slice": _slice,
    "Sub": lambda _, x, y: x - y,
}
