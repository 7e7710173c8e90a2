"""What a node costs at given shapes: parameters, multiply-adds, both, or an estimate of ONNX Runtime's time.

A `Ledger` asks for the costs of the nodes that a removal touches, so that units can go in the order of importance per
cost. An estimate need only tell nodes of one model apart: what a target asks for is measured on the whole model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.graph.size import Shapes, macs_of, nodes_with_times
from onnxprune.structure.structure import Structure

Cost = Callable[[ir.Node, Shapes], float]
CostName = Literal["parameters", "macs", "latency", "balanced"]

BLOCK = 16
"""Channels that a convolution of ONNX Runtime takes at once."""

TRAFFIC = 30.0
"""Multiply-adds that take as long as reading or writing one element of an activation."""


def parameters(node: ir.Node, shapes: Shapes) -> float:
    """Elements of the constants that the node reads."""
    return sum(math.prod(shapes[v]) for v in node.inputs if v is not None and v.is_initializer() and v in shapes)


def macs(node: ir.Node, shapes: Shapes) -> float:
    """Multiply-adds of one run of the node."""
    return macs_of(node, shapes) or 0


def latency(node: ir.Node, shapes: Shapes, *, traffic: float = TRAFFIC) -> float:
    """The time of the node, in the time of one multiply-add: work, channels padded to the block, plus traffic.

    benchmarks/target_latency.py compares it with what is measured.
    """
    data = [v for v in node.inputs if v is not None and v in shapes and not v.is_initializer()]
    if operator_of(node).free or _fused(node):
        return 0.0
    if operator_of(node).kind == "conv":
        shapes = _padded(node, shapes)
    moved = sum(math.prod(shapes[v]) for v in (*data, *node.outputs) if v in shapes)
    return macs(node, shapes) + traffic * moved


def find_cost(name: CostName, structure: Structure) -> Cost:
    """Return a cost by its name.

    ``balanced`` is the share of all parameters plus the share of all multiply-adds that a node has: parameters alone
    would leave the early layers of a network whole, which have few of them and most of the work, and multiply-adds
    alone the late ones.
    """
    if name != "balanced":
        return _COSTS[name]
    shapes, nodes = structure.facts.known_shapes(), list(counted_nodes(structure))
    totals = [sum(times * cost(node, shapes) for node, times in nodes) for cost in (parameters, macs)]
    size, work = (max(total, 1.0) for total in totals)
    return lambda node, shapes: parameters(node, shapes) / size + macs(node, shapes) / work


_COSTS: Mapping[str, Cost] = {"parameters": parameters, "macs": macs, "latency": latency}


def counted_nodes(structure: Structure) -> Iterator[tuple[ir.Node, int]]:
    """Return all nodes, those of bodies too, each with how often it runs."""
    return nodes_with_times(structure.model.graph, structure.facts.known_shapes())


def _fused(node: ir.Node) -> bool:
    """Say whether ONNX Runtime makes a node part of the convolution before it."""
    makers = [v.producer() for v in node.inputs if v is not None]
    before = makers[0] if makers else None
    return operator_of(node).joins_convolution and before is not None and operator_of(before).kind == "conv"


def _padded(node: ir.Node, shapes: Shapes) -> Shapes:
    """Round the channels of a convolution up to whole blocks; fewer input channels than a block are not padded."""
    weight = next((v for v in node.inputs[1:] if v is not None and len(shapes.get(v, ())) > 2), None)
    out = dict(shapes)
    for value in (*node.inputs[:1], *node.outputs):
        shape = shapes.get(value) if value is not None else None
        if value is not None and shape is not None and len(shape) > 2:
            out[value] = (shape[0], _up(shape[1], small=value in node.outputs), *shape[2:])
    if weight is not None:
        first, second, *kernel = shapes[weight]
        out[weight] = (_up(first, small=True), _up(second), *kernel)
    return out


def _up(channels: int, *, small: bool = False) -> int:
    return -(-channels // BLOCK) * BLOCK if small or channels >= BLOCK else channels
