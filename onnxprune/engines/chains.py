"""Parts of a graph that XNNPACK runs in NCHW, where its sparse kernels are.

A part begins with a stem (a 3x3 convolution of stride 2 over three channels), ends with a mean over all pixels of a
channel or DepthToSpace, and holds nothing but 1x1 convolutions, depthwise 3x3 and 5x5 ones, sums, products and
functions of single numbers. One other node that reads or makes one of its values, and XNNPACK leaves it as it is.
Source: XNNPACK's src/subgraph.c, and "Sparse inference" in the README of TensorFlow Lite's XNNPACK delegate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.layers import group_count
from onnxprune.graph.operators import operator_of


@dataclass(frozen=True, eq=False)
class Chain:
    """A part of a graph.

    Attributes:
        nodes: Its nodes.
        obstacle: Why XNNPACK leaves it as it is; empty where it does not.
    """

    nodes: frozenset[ir.Node]
    obstacle: str


def chains(graph: ir.Graph) -> list[Chain]:
    """Return the parts of a graph that are made of what XNNPACK can run in NCHW, usable or not."""
    fits = {node for node in graph if _is_inside(node) or _is_exit(node)}
    stems = {node for node in graph if _is_stem(node)}
    parent = {node: node for node in (*fits, *stems)}

    def leader(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in fits:
        for value in _data(node):
            producer = value.producer()
            if producer in parent and _keeps_axes(producer):
                parent[leader(node)] = leader(producer)
    parts: dict[ir.Node, list[ir.Node]] = {}
    for node in graph:
        if node in parent:
            parts.setdefault(leader(node), []).append(node)
    return [Chain(frozenset(nodes), _obstacle(nodes, fits, stems)) for nodes in parts.values()]


def _obstacle(nodes: list[ir.Node], fits: set[ir.Node], stems: set[ir.Node]) -> str:
    """Why XNNPACK does not run a part in NCHW."""
    members = set(nodes)
    for node in nodes:
        for value in _data(node) if node in fits else ():
            producer = value.producer()
            if producer not in members:
                made = "is an input of the model" if producer is None else f"comes from {_called(producer)}"
                return f"'{value.name}', which {_called(node)} reads, {made}"
    for node in nodes:
        for value in node.outputs:
            readers = [reader for reader, _ in value.uses()]
            strangers = [reader for reader in readers if reader not in members]
            inside = len(strangers) < len(readers)
            if strangers and (inside or not _is_exit(node)):
                return f"{_called(strangers[0])} reads '{value.name}'"
            if value.is_graph_output() and (inside or not _is_exit(node)):
                return f"'{value.name}' is an output of the model"
    return "" if stems & members else "it does not begin with a 3x3 convolution of stride 2 over three channels"


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node computes on; constants are not among them."""
    count = None if operator_of(node).pointwise == "broadcast" else 1
    for value in list(node.inputs)[:count]:
        if value is not None and value.const_value is None and not _is_constant(value):
            yield value


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return (
        producer is not None
        and not operator_of(producer).random
        and all(operand is None or operand.const_value is not None for operand in producer.inputs)
    )


def _is_stem(node: ir.Node) -> bool:
    kernel = _kernel(node)
    return (
        kernel is not None
        and kernel[1:] == (3, 3, 3)
        and group_count(node) == 1
        and _ints(node, "strides", 1) == {2}
        and _ints(node, "dilations", 1) == {1}
        and _ints(node, "pads", 0) == {1}
    )


def _is_inside(node: ir.Node) -> bool:
    """Whether a node may stand within a part: XNNPACK computes it in NCHW."""
    kernel, operator = _kernel(node), operator_of(node)
    if kernel is not None:
        dense = group_count(node) == 1 and kernel[2:] == (1, 1)
        each = kernel[:2] == (group_count(node), 1) and kernel[2:] in ((3, 3), (5, 5))
        strides = {1} if dense else {1, 2}
        plain = _ints(node, "dilations", 1) == {1} and len(_ints(node, "strides", 1)) == 1
        padded = _ints(node, "pads", 0) == {kernel[2] // 2}
        return (dense or each) and plain and padded and _ints(node, "strides", 1) <= strides
    if node.domain or operator.movement not in ("", "same"):
        return False
    if operator.joins_convolution and operator.kind == "norm":
        return True  # converters make it part of the convolution before it
    if operator.pointwise == "broadcast":
        return (operator.adds or node.op_type == "Mul") and all(map(_fits_beside, node.inputs))
    return operator.pointwise == "unary"


def _is_exit(node: ir.Node) -> bool:
    """Whether a node may end a part: a mean over all pixels of a channel, or DepthToSpace."""
    if node.domain:
        return False
    if operator_of(node).shrinks == "reduce" and operator_of(node).keeps_mean:
        return _reduced(node) in ({2, 3}, {-2, -1})
    return node.op_type == "GlobalAveragePool" or node.op_type == "DepthToSpace"


def _keeps_axes(node: ir.Node) -> bool:
    """Whether the result of a node has the axes of pictures."""
    return not _is_exit(node) or node.attributes.get_int("keepdims", 1) == 1


def _reduced(node: ir.Node) -> set[int]:
    axes = node.attributes.get_ints("axes", ())
    if not axes and len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = ir.convenience.get_const_tensor(node.inputs[1])
        axes = () if tensor is None else tensor.numpy().reshape(-1).tolist()
    return {int(axis) for axis in axes}


def _fits_beside(value: ir.Value | None) -> bool:
    """Whether a sum or a product may read a value: it is computed, or a constant along one axis at most."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return value is not None and (tensor is None or sum(extent != 1 for extent in tensor.shape.numpy()) <= 1)


def _kernel(node: ir.Node) -> tuple[int, ...] | None:
    """The shape of the weights of a convolution over pictures; None of anything else."""
    weight = node.inputs[1] if node.op_type == "Conv" and not node.domain and len(node.inputs) > 1 else None
    tensor = None if weight is None else ir.convenience.get_const_tensor(weight)
    return tuple(tensor.shape.numpy()) if tensor is not None and len(tensor.shape) == 4 else None


def _ints(node: ir.Node, name: str, usual: int) -> set[int]:
    """The different numbers of an attribute; that of padding by ``auto_pad`` is not known."""
    if name == "pads" and node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return {-1}
    return set(node.attributes.get_ints(name, ())) or {usual}


def _called(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"
