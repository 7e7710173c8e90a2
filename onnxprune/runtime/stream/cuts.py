"""Where a network can be cut in two: at a value, or a few, that alone carry what lies before to what comes after.

    blocks = cut_into_blocks(model, shapes)            residual blocks, halves of transformer layers, else single layers
    blocks = common_blocks(dense, pruned, shapes)      at cuts that both models have, by the names of their values

A value counts as *carried* where it depends on weights; what follows from inputs or shapes alone (attention masks,
extents) goes along for nothing. Of the cuts within a few layers the one with the fewest elements is taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import subgraphs_of

_NEAR = 4  # layers: of the cuts this near the smallest is taken
_LONGEST = 12  # layers: a block that has more and no cut of one value is cut where the fewest elements cross

Sizes = Mapping[str, int]
"""Elements of values, by name."""


@dataclass(frozen=True, eq=False)
class Block:
    """Nodes that are run together.

    Attributes:
        nodes: In the order of the graph.
        live: Names of the values that are needed after the block: made by it, or before it.
    """

    nodes: tuple[ir.Node, ...]
    live: frozenset[str]


@dataclass(frozen=True)
class _Cut:
    """The place behind a node: which values cross it, and which of them are carried."""

    position: int
    live: frozenset[str]
    carried: frozenset[str]
    layers: int  # with weights, before it
    size: float


def operands(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, in its subgraphs too."""
    read = [v for v in node.inputs if v is not None]
    for attribute in node.attributes.values():
        graphs: list[ir.Graph] = []
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph(), *subgraphs_of(attribute.as_graph())]
        made = {v for g in graphs for v in (*g.inputs, *g.initializers.values())}
        made |= {out for g in graphs for n in g for out in n.outputs}
        inner = [v for g in graphs for v in (*(v for n in g for v in n.inputs), *g.outputs)]
        read += [v for v in inner if v is not None and v not in made]
    return read


def cut_into_blocks(model: ir.Model, sizes: Sizes) -> list[Block]:
    """Cut the main graph of a model into blocks.

    Args:
        model: The model.
        sizes: Elements of its values for one batch; a cut crosses only values that are named here.
    """
    return _blocks(model, _chosen(_cuts(model, sizes)))


def common_blocks(dense: ir.Model, pruned: ir.Model, sizes: Sizes) -> tuple[list[Block], list[Block]]:
    """Cut two models at the same values; the sizes are those of the dense model. Returns blocks in equal numbers."""
    places = {cut.carried: cut for cut in _cuts(dense, sizes)}
    both, last = [], -1
    for cut in _cuts(pruned, sizes):
        twin = places.get(cut.carried)
        if twin is not None and twin.position >= last:
            both.append((cut, twin))
            last = twin.position
    chosen = {cut.position for cut in _chosen([cut for cut, _ in both])}
    pairs = [(cut, twin) for cut, twin in both if cut.position in chosen]
    return _blocks(dense, [twin for _, twin in pairs]), _blocks(pruned, [cut for cut, _ in pairs])


def _cuts(model: ir.Model, sizes: Sizes) -> list[_Cut]:
    """The places behind all nodes but the last at which only tensors of known size cross.

    A result of the model that nothing reads further on, as the caches of a decoder, may be of any size.
    """
    nodes = list(model.graph)
    last_use: dict[ir.Value, int] = {}
    for position, node in enumerate(nodes):
        for value in operands(node):
            last_use[value] = position
    outputs = set(model.graph.outputs)
    carried = carried_values(model)
    live: set[ir.Value] = {v for v in model.graph.inputs if v in last_use and not v.is_initializer()}
    cuts, layers = [], 0
    for position, node in enumerate(nodes[:-1]):
        weighted = _has_weights(node)
        layers += weighted
        live.update(out for out in node.outputs if out.name and (out in last_use or out in outputs))
        live = {v for v in live if v in outputs or last_use.get(v, -1) > position}
        crossing = {v for v in live if last_use.get(v, -1) > position}
        if all(str(v.name) in sizes or (v not in crossing and isinstance(v.type, ir.TensorType)) for v in live):
            heavy = frozenset(str(v.name) for v in crossing if v in carried)
            size = float(sum(sizes[name] for name in heavy))
            cuts.append(_Cut(position, frozenset(str(v.name) for v in live), heavy, layers, size))
    return cuts


def carried_values(model: ir.Model) -> set[ir.Value]:
    """Return the values of the main graph that depend on weights, and not on extents alone."""
    carried: set[ir.Value] = set()
    for node in model.graph:
        if not operator_of(node).shape_only and (_has_weights(node) or any(v in carried for v in operands(node))):
            carried.update(node.outputs)
    return carried


def _has_weights(node: ir.Node) -> bool:
    """Say whether a node has a constant of two axes or more."""
    constants = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    return any(len(c.shape) > 1 and c.dtype.is_floating_point() and c.size > 1 for c in constants)


def _chosen(cuts: Sequence[_Cut]) -> list[_Cut]:
    """Pick cuts, one after the other: the smallest of one value among those near, else the smallest within reach."""
    taken: list[_Cut] = []
    start, layers = 0, 0
    while True:
        ahead = [c for c in cuts[start:] if c.layers > layers]
        if not ahead:
            return taken
        single = [c for c in ahead if len(c.carried) == 1]
        limit = max(layers + _NEAR, single[0].layers if single else math.inf)
        if limit > layers + _LONGEST:
            near = [c for c in ahead if c.layers <= layers + _LONGEST]
            best = min(near, key=lambda c: (len(c.carried), c.size, c.position)) if near else ahead[0]
        else:
            near = [c for c in single if c.layers <= limit]
            best = min(near, key=lambda c: (c.size, c.layers, -c.position))
        taken.append(best)
        layers = best.layers
        start = cuts.index(best) + 1


def _blocks(model: ir.Model, cuts: Sequence[_Cut]) -> list[Block]:
    nodes = list(model.graph)
    outputs = frozenset(str(v.name) for v in model.graph.outputs)
    ends = [*((c.position + 1, c.live) for c in cuts), (len(nodes), outputs)]
    starts = [0, *(end for end, _ in ends)]
    return [Block(tuple(nodes[a:b]), live) for a, (b, live) in zip(starts, ends, strict=False)]
