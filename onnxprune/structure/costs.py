"""What a node costs at given shapes: parameters, multiply-adds, both, or an estimate of ONNX Runtime's time.

A `Ledger` asks for the costs of the nodes that a removal touches, so that units can go in the order of importance per
cost. An estimate need only tell nodes of one model apart: what a target asks for is measured on the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Literal

import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Operator
from onnxprune.graph.size import Shapes, macs_of, nodes_with_times
from onnxprune.structure.figures import BUILT_IN, Figures, Kind, Work, figures_in_use
from onnxprune.structure.structure import Structure

Cost = Callable[[ir.Node, Shapes], float]
CostName = Literal["parameters", "macs", "latency", "balanced"]


def parameters(node: ir.Node, shapes: Shapes) -> float:
    """Elements of the constants that the node reads."""
    return sum(math.prod(shapes[v]) for v in node.inputs if v is not None and v.is_initializer() and v in shapes)


def macs(node: ir.Node, shapes: Shapes) -> float:
    """Multiply-adds of one run of the node."""
    return macs_of(node, shapes) or 0


def latency(node: ir.Node, shapes: Shapes, *, figures: Figures = BUILT_IN) -> float:
    """The nanoseconds of the node on one thread. benchmarks/cost_model.py compares it with what is measured."""
    work = work_of(node, shapes, figures.block)
    return 0.0 if work is None else figures.nanoseconds(*work)


def work_of(node: ir.Node, shapes: Shapes, block: int) -> tuple[Kind, Work] | None:
    """Return what a node has to do, by its kind; None where it takes no time.

    Args:
        node: The node.
        shapes: Of its values, as far as they are known.
        block: Channels that a convolution takes at once.
    """
    operator = operator_of(node)
    if operator.free or _fused(node):
        return None
    if operator.kind == "conv":
        shapes = _padded(node, shapes, block)
    data = [v for v in node.inputs if v is not None and v in shapes and not v.is_initializer()]
    read = 0 if _moves(operator) else sum(math.prod(shapes[v]) for v in data)
    written = sum(math.prod(shapes[v]) for v in node.outputs if v in shapes)
    kind = _kind(node, operator, shapes, block)
    return kind, (macs(node, shapes), read, written, parameters(node, shapes), 1.0)


def _kind(node: ir.Node, operator: Operator, shapes: Shapes, block: int) -> Kind:
    if operator.kind == "conv":
        data, weight = (shapes.get(v, ()) if v is not None else () for v in node.inputs[:2])
        if len(data) < 3 or len(weight) != len(data):
            return "kernel"
        if weight[1] == 1 and data[1] > 1:
            return "depthwise"
        if weight[1] < block:
            return "few"
        return "pointwise" if math.prod(weight[2:]) == 1 else "kernel"
    if operator.contracts:
        return "product"
    if operator.shrinks:
        return "pool"
    if operator.kind == "norm" or operator.head:
        return "norm"
    if _moves(operator):
        return "pick" if _picks_numbers(node, shapes) else "move"
    return "elementwise"


def _moves(operator: Operator) -> bool:
    """Whether a node copies some of the numbers that it is given, and reads no others."""
    return bool(operator.movement or operator.tables)


def _picks_numbers(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a Gather picks along the last axis: single numbers, not rows."""
    data = shapes.get(node.inputs[0], ()) if node.inputs and node.inputs[0] is not None else ()
    axis = node.attributes.get_int("axis", 0)
    return node.op_type == "Gather" and len(data) > 1 and axis in (-1, len(data) - 1)


def find_cost(name: CostName, structure: Structure) -> Cost:
    """Return a cost by its name.

    ``balanced`` is the share of all parameters plus the share of all multiply-adds that a node has: parameters alone
    would leave the early layers of a network whole, which have few of them and most of the work, and multiply-adds
    alone the late ones. ``latency`` goes by the figures of this machine, where it has some.
    """
    if name == "latency":
        return partial(latency, figures=figures_in_use())
    if name != "balanced":
        return _COSTS[name]
    size, work = (max(total_cost(cost, structure), 1.0) for cost in (parameters, macs))
    return lambda node, shapes: parameters(node, shapes) / size + macs(node, shapes) / work


def total_cost(cost: Cost, structure: Structure) -> float:
    """Return what a whole model costs."""
    shapes = structure.known_shapes
    return sum(times * cost(node, shapes) for node, times in counted_nodes(structure))


_COSTS: Mapping[str, Cost] = {"parameters": parameters, "macs": macs}


def counted_nodes(structure: Structure) -> Iterator[tuple[ir.Node, int]]:
    """Return all nodes, those of bodies too, each with how often it runs."""
    return nodes_with_times(structure.model.graph, structure.known_shapes)


def _fused(node: ir.Node) -> bool:
    """Say whether ONNX Runtime makes a node part of the convolution before it: an activation, or a shortcut's sum."""
    operator = operator_of(node)
    if not (operator.joins_convolution or operator.adds):
        return False
    before = [maker for v in node.inputs if v is not None and (maker := v.producer()) is not None]
    return any(operator_of(maker).kind == "conv" or _fused(maker) for maker in before)


def _padded(node: ir.Node, shapes: Shapes, block: int) -> Shapes:
    """Round the channels of a convolution up to whole blocks; fewer input channels than a block are not padded."""

    def up(channels: int, *, small: bool = False) -> int:
        return -(-channels // block) * block if small or channels >= block else channels

    weight = next((v for v in node.inputs[1:] if v is not None and len(shapes.get(v, ())) > 2), None)
    out = dict(shapes)
    for value in (*node.inputs[:1], *node.outputs):
        shape = shapes.get(value) if value is not None else None
        if value is not None and shape is not None and len(shape) > 2:
            out[value] = (shape[0], up(shape[1], small=value in node.outputs), *shape[2:])
    if weight is not None:
        first, second, *kernel = shapes[weight]
        out[weight] = (up(first, small=True), up(second), *kernel)
    return out
