"""Parameters, multiply-adds and bytes of a model.

What a parameter is, and how many multiply-adds an operator takes, says the table of operators. A node that cannot be
counted is named in the result: its operator may multiply matrices and has no formula, or its shapes are not known.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.graph.caches import is_link, is_link_matrix
from onnxprune.graph.layers import channel_axis
from onnxprune.graph.multiply_adds import no_products
from onnxprune.graph.operators import key, operator_named, operator_of
from onnxprune.graph.packed import Packed, layout_of
from onnxprune.graph.tensors import read, spread
from onnxprune.model_io.bodies import bodies, graphs_of

Shape = tuple[int, ...]
Shapes = Mapping[ir.Value, Shape]


@dataclasses.dataclass(frozen=True)
class Figures:
    """The size of a model.

    Attributes:
        parameters: Elements of all weights and biases; shapes, indices and quantisation settings do not count.
        nonzero_parameters: Those that are not zero.
        macs: Multiply-adds of one run, without the nodes in `uncounted`; None when no shape at all is known.
        file_bytes: Of the saved model, external data included.
        uncounted: Nodes whose multiply-adds are not known, each as "Operator name": its operator has no formula, or
            its shapes are not known.
    """

    parameters: int
    nonzero_parameters: int
    macs: int | None
    file_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of the parameters that are zero."""
        return 1 - self.nonzero_parameters / self.parameters if self.parameters else 0.0


def figures(model: ir.Model, shapes: Shapes | None = None) -> Figures:
    """Count parameters, multiply-adds and bytes.

    Args:
        model: The model.
        shapes: Concrete shapes of values, such as from `concrete_shapes`; where one is missing, or for all by default,
            the static shape written in the model is taken.
    """
    counted = list(parameters(model))
    macs, uncounted = graph_macs(model, shapes or {})
    return Figures(
        parameters=sum(parameter.size for parameter in counted),
        nonzero_parameters=sum(parameter.nonzero() for parameter in counted),
        macs=None if uncounted and not macs else macs,
        file_bytes=model_io.saved_size(model),
        uncounted=uncounted,
    )


def graph_macs(model: ir.Model, shapes: Shapes) -> tuple[int, tuple[str, ...]]:
    """Return the multiply-adds of one run of a model, and the nodes that could not be counted ("Operator name")."""
    uncounted: list[str] = []
    return _graph_macs(model.graph, shapes, uncounted), tuple(uncounted)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Numbers that were learnt.

    Attributes:
        tensor: What holds them.
        points: Zero points of quantised ones, and the axis along which there are several; None where 0 stands for zero.
        layout: How several of them share a byte.
    """

    tensor: ir.TensorProtocol
    points: tuple[ir.TensorProtocol, int] | None = None
    layout: Packed | None = None

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.tensor.size if self.layout is None else self.layout.outputs * self.layout.inputs

    def nonzero(self) -> int:
        """Return how many are not zero."""
        return int(np.count_nonzero(~self.zeros()))

    def zeros(self) -> npt.NDArray[np.bool_]:
        """Return which are zero, in the shape of the numbers; what fills up the last block of a row is zero as well."""
        array = read(self.tensor)
        if self.layout is not None:
            return np.asarray(self.layout.numbers(array) == 0)
        if array.dtype.kind == "V" or array.dtype.isbuiltin != 1:  # bfloat16 and kin compare faster and surer as floats
            array = array.astype(np.float32)
        if self.points is None:
            return np.asarray(array == np.zeros((), array.dtype))
        points, axis = self.points
        return np.asarray(array == spread(points.numpy().astype(array.dtype), array.shape, axis))


def parameters(model: ir.Model) -> Iterator[Parameter]:
    """The weights and biases among initializers and Constant nodes, each once, subgraphs included."""
    seen: set[int] = set()
    for graph in graphs_of(model):
        values = list(graph.initializers.values())
        values += [node.outputs[0] for node in graph if node.op_type == "Constant" and node.domain == ""]
        for value in values:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or id(tensor) in seen or not _is_parameter(value, tensor):
                continue
            seen.add(id(tensor))
            yield Parameter(tensor, _zero_points(value), _layout(value))


def holders_of_numbers(model: ir.Model) -> list[str]:
    """The operators that hold numbers which may have been learnt: in constants that they read, or in attributes."""
    held = (ir.AttributeType.FLOATS, ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
    holders: set[str] = set()
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if value.const_value is not None and _is_parameter(value, value.const_value):
                holders.update(key(node.domain, node.op_type) for node, _ in _final_uses(value))
        for node in graph:
            if not operator_of(node).movement and any(attribute.type in held for attribute in node.attributes.values()):
                holders.add(key(node.domain, node.op_type))
    return sorted(name for name in holders if operator_named(name).data != ())


def numbers_elsewhere(model: ir.Model, weights: Container[ir.Value]) -> dict[str, int]:
    """Count what was learnt but is no prunable weight, by the operator that holds it: trees, embeddings, biases.

    Args:
        model: The model.
        weights: The constants that are prunable weights.
    """
    counts: Counter[str] = Counter()
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if value not in weights and tensor is not None and _is_parameter(value, tensor):
                user = next((node for node, _ in value.uses()), None)
                counts[key(user.domain, user.op_type) if user is not None else "no operator"] += tensor.size
        for node in graph:
            if not operator_of(node).movement and node.op_type != "Constant":
                counts[key(node.domain, node.op_type)] += sum(map(_numbers_in, node.attributes.values()))
    return {name: count for name, count in counts.most_common() if count}


def _numbers_in(attribute: ir.Attr) -> int:
    """Float numbers that an attribute holds: the thresholds of trees, the coefficients of linear models."""
    if attribute.type == ir.AttributeType.FLOATS:
        return len(attribute.as_floats())
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return tensor.size if tensor.dtype.is_floating_point() and len(tensor.shape) else 0
    return 0


def counted_values(model: ir.Model) -> set[ir.Value]:
    """The values whose shapes the count of multiply-adds needs."""
    nodes = [node for graph in graphs_of(model) for node in graph if operator_of(node).counted]
    return {value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None}


def macs_of(node: ir.Node, shapes: Shapes) -> int | None:
    """Multiply-adds of one node without its subgraphs; None where its operator has no formula or a shape is missing."""
    multiply_adds = operator_of(node).multiply_adds
    if multiply_adds is no_products or is_link(node):
        return 0
    inputs = [_shape(value, shapes) if value is not None else None for value in node.inputs]
    outputs = [_shape(value, shapes) for value in node.outputs]
    try:
        return multiply_adds(node, inputs, outputs)
    except (TypeError, IndexError):  # a shape that the formula needs is None or left out
        return None


def nodes_with_times(graph: ir.Graph, shapes: Shapes, times: int = 1) -> Iterator[tuple[ir.Node, int]]:
    """All nodes of a graph and of the bodies in it, with how often each runs (of an If, both branches)."""
    for node in graph:
        yield node, times
        for body in bodies(node):
            yield from nodes_with_times(body, shapes, times * _iterations(node, shapes))


def is_parameter(value: ir.Value) -> bool:
    """Say whether a constant holds numbers that were learnt; settings, indices and scales are none."""
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and _is_parameter(value, tensor)


def _is_parameter(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    if len(tensor.shape) == 0 or tensor.dtype == ir.DataType.STRING or is_link_matrix(value):
        return False
    uses = [(operator_of(node), index) for node, index in _final_uses(value)]
    if tensor.dtype.is_floating_point():
        return not uses or any(
            index not in operator.settings and index not in operator.scales for operator, index in uses
        )
    return any(index in operator.quantised for operator, index in uses)


def _final_uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Uses of a constant, looked at through casts, views and lookups of it."""
    for node, index in value.uses():
        operator = operator_of(node)
        if (operator.view or operator.tables == (0,)) and index == 0:
            for output in node.outputs:
                yield from _final_uses(output)
        else:
            yield node, index


def _layout(value: ir.Value) -> Packed | None:
    """How the numbers of a packed weight lie in its bytes; None for all others."""
    for node, index in value.uses():
        if operator_of(node).packs(index):
            layout = layout_of(node, index)
            return layout if isinstance(layout, Packed) else None
    return None


def _zero_points(value: ir.Value) -> tuple[ir.TensorProtocol, int] | None:
    """The zero points of a quantised weight, and the axis along which there are several.

    Several are not followed behind views, where they lie along another axis.
    """
    direct = set(value.uses())
    for node, index in _final_uses(value):
        _, place = operator_of(node).quantised.get(index, (None, None))
        point = node.inputs[place] if place is not None and place < len(node.inputs) else None
        tensor = None if point is None else ir.convenience.get_const_tensor(point)
        if tensor is None or (tensor.size > 1 and (node, index) not in direct):
            continue
        axis = node.attributes.get_int("axis", 1) if operator_of(node).dequantises else channel_axis(value) or 0
        return tensor, axis
    return None


def _graph_macs(graph: ir.Graph, shapes: Shapes, uncounted: list[str]) -> int:
    total = 0
    for node in graph:
        macs = macs_of(node, shapes)
        if macs is None:
            uncounted.append(f"{key(node.domain, node.op_type)} {node.name or node.outputs[0].name}")
        total += (macs or 0) + _subgraph_macs(node, shapes, uncounted)
    return total


def _subgraph_macs(node: ir.Node, shapes: Shapes, uncounted: list[str]) -> int:
    """If: the costlier branch. Loop and Scan: the body times the number of iterations, once where that is not known."""
    inner = list(bodies(node))
    if not inner:
        return 0
    return max(_graph_macs(body, shapes, uncounted) for body in inner) * _iterations(node, shapes)


def _iterations(node: ir.Node, shapes: Shapes) -> int:
    if node.op_type == "Loop" and node.inputs and node.inputs[0] is not None:
        tensor = ir.convenience.get_const_tensor(node.inputs[0])
        count = int(np.asarray(tensor.numpy()).reshape(-1)[0]) if tensor is not None and tensor.size == 1 else 1
        return count if 0 <= count < 1 << 31 else 1
    if node.op_type == "Scan":
        scanned = node.attributes.get_int("num_scan_inputs", 0)
        value = node.inputs[-scanned] if scanned else None
        shape = _shape(value, shapes) if value is not None else None
        axes = node.attributes.get_ints("scan_input_axes", [0])
        return shape[axes[0]] if shape else 1
    return 1


def _shape(value: ir.Value, shapes: Shapes) -> Shape | None:
    if value in shapes:
        return tuple(shapes[value])
    tensor = ir.convenience.get_const_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return tuple(int(dim) for dim in shape)  # type: ignore[arg-type]
