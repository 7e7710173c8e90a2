"""Residual blocks: what can go by depth.

A block is an Add y = x + f(x) of which one side, f, is used for nothing else: without it the Add is an Identity. Both
orders of a ResNet (activation behind or before the Add), gated and scaled branches, and both halves of a transformer
layer are blocks of this kind. Where the other side is no identity but a projection g(x) (a strided shortcut), and both
sides read the same x and nothing else, the side with more weights is the block: y = g(x) + f(x) becomes y = g(x).

    residual_blocks(structure) -> [ResidualBlock(add, branch, nodes, weights), ...]     in the order of the graph

ONNX Runtime fuses the sum with the norm behind it (SkipLayerNormalization, SkipSimplifiedLayerNormalization): that node
is the Add then, and f may read the norm of the trunk that the block before put out. A bias fused into it is part of f.

Blocks may lie in each other: the nodes of an outer one contain those of the inner ones.

A merged decoder has all its layers twice, in the branches of an If that read the same weights: a block there is one in
each branch (`branches`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.graph.branches import branches_of
from onnxprune.graph.caches import is_way_out
from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import nodes_of
from onnxprune.structure.structure import Structure


@dataclass(frozen=True, eq=False)
class ResidualBlock:
    """One residual block.

    Attributes:
        add: The Add that joins it to the trunk, a Sum of two, or the norm of such a sum.
        branch: Which of its inputs is the block's last contribution: 0 or 1.
        nodes: The nodes that are there for the block alone.
        weights: The constants that hold weights (`Structure.weights`) and only these nodes read, with their sizes.
        name: The name of the value that the Add puts out: it outlives the block.
        others: The same block in the other branch of an If, where it lies in one.
    """

    add: ir.Node
    branch: int
    nodes: frozenset[ir.Node]
    weights: Mapping[ir.Value, int]
    name: str
    others: tuple[ResidualBlock, ...] = ()

    @property
    def everywhere(self) -> tuple[ResidualBlock, ...]:
        """The block in each branch that it lies in."""
        return (self, *self.others)

    @property
    def trunk(self) -> ir.Value:
        """What is left of the sum."""
        value = self.add.inputs[1 - self.branch]
        assert value is not None
        return value

    @property
    def contribution(self) -> ir.Value:
        """What the block adds."""
        value = self.add.inputs[self.branch]
        assert value is not None
        return value

    @property
    def bias(self) -> int | None:
        """The input with a bias that the block adds as well, fused into the sum; None where there is none."""
        operator = operator_of(self.add)
        place = operator.biases[-1] if operator.sum_output is not None else len(self.add.inputs)
        return place if place < len(self.add.inputs) and self.add.inputs[place] is not None else None

    @property
    def size(self) -> int:
        """How many weights go with it."""
        return sum(self.weights.values())


def joined(add: ir.Node) -> ir.Value:
    """Return the sum that a node puts out; the norm of it where it puts out nothing else."""
    place = operator_of(add).sum_output or 0
    is_there = place < len(add.outputs) and bool(add.outputs[place].name)
    return add.outputs[place if is_there else 0]


def residual_blocks(structure: Structure) -> list[ResidualBlock]:
    """Return the residual blocks that hold weights: of the main graph, and of branches that read the same weights."""
    order = list(structure.model.graph)
    blocks = []
    for number, node in enumerate(order):
        if _joins(node):
            block = _block(structure, node, order[:number])
            if block is not None:
                blocks.append(block)
        elif branches := branches_of(node):
            blocks += in_branches(structure, node, branches)
    return blocks


def layers_of(blocks: Sequence[ResidualBlock]) -> list[tuple[ResidualBlock, ...]]:
    """Return whole layers of a transformer: a block with attention and the blocks behind it, up to the next such."""
    layers: list[list[ResidualBlock]] = []
    for block in blocks:
        if any(block.add in other.nodes for other in blocks):
            continue  # a block that lies in another
        if any(operator_of(node).heads or _weighs_values(node, block.nodes) for node in block.nodes):
            layers.append([block])
        elif layers:
            layers[-1].append(block)
    return [tuple(layer) for layer in layers]


def _weighs_values(node: ir.Node, nodes: frozenset[ir.Node]) -> bool:
    """Say whether a Softmax gives the weights of a sum over other activations, as in attention and not in a router."""
    if operator_of(node).head != "softmax":
        return False
    waiting, seen = [node.outputs[0]], set[ir.Node]()
    while waiting:
        value = waiting.pop()
        for reader, index in value.uses():
            operator = operator_of(reader)
            if operator.contracts and index == 0 and reader in nodes and len(reader.inputs) > 1:
                other = reader.inputs[1]
                return other is not None and other.const_value is None
            if reader not in seen and reader in nodes and (operator.view or operator.pointwise):
                seen.add(reader)
                waiting.append(reader.outputs[0])
    return False


def as_one(layer: Sequence[ResidualBlock]) -> ResidualBlock:
    """Return all of a layer as if it were one block."""
    nodes = frozenset(node for block in layer for node in (*block.nodes, block.add))
    weights = {value: size for block in layer for value, size in block.weights.items()}
    return ResidualBlock(layer[-1].add, layer[-1].branch, nodes, weights, layer[-1].name)


def in_branches(structure: Structure, choice: ir.Node, branches: Sequence[ir.Graph]) -> list[ResidualBlock]:
    """Return the blocks that all branches of an If have, told by common weights.

    One branch may read more weights than the other: those of an encoder's keys and values, which the other has cached.
    """
    here, *elsewhere = [_of_branch(structure, choice, branch) for branch in branches]
    joint = []
    for first in here:
        same = [[b for b in blocks if b.weights.keys() & first.weights.keys()] for blocks in elsewhere]
        if any(len(blocks) != 1 for blocks in same):
            continue
        others = [block for (block,) in same]
        nodes = frozenset(node for block in (first, *others) for node in block.nodes)
        read = {v: n for block in (first, *others) for v, n in block.weights.items()}
        weights = {v: n for v, n in read.items() if all(user in nodes for user, _ in v.uses())}
        if weights:
            joint.append(replace(first, weights=weights, others=tuple(others)))
    return joint


def _of_branch(structure: Structure, choice: ir.Node, branch: ir.Graph) -> list[ResidualBlock]:
    """The blocks of one branch whose trunk passes by, with all weights that they read."""
    order, blocks = list(branch), []
    results = dict(zip(branch.outputs, choice.outputs, strict=True))
    for add in order:
        first, second = add.inputs[:2] if _joins(add) else (None, None)
        if first is None or second is None or first is second or first.const_value or second.const_value:
            continue
        for side, trunk in ((0, second), (1, first)):
            nodes = _exclusive_in_branch(add, side, [node for node in order if node is not add], results)
            shape = structure.facts.shape(trunk)
            same = shape is not None and shape == structure.facts.shape(add.outputs[0])
            if same and any(_carries(value, trunk) for value in _read_by(nodes)):
                handed = {user for node in nodes for out in node.outputs if out in results
                          for user, _ in results[out].uses()}  # fmt: skip
                read = [v for v in structure.weights if any(user in nodes for user, _ in v.uses())]
                weights = {v: math.prod(structure.weight_shape(v)) for v in read}
                blocks.append(ResidualBlock(add, side, nodes | handed, weights, str(joined(add).name)))
                break
    return blocks


def _joins(node: ir.Node) -> bool:
    """Say whether a node sums two values, and of its statistics, where it has some, nothing is read."""
    operator = operator_of(node)
    if operator.sum_output is not None:
        others = [out for i, out in enumerate(node.outputs) if i not in (0, operator.sum_output)]
        return not any(out.uses() or out.is_graph_output() for out in others)
    return operator.adds and len(node.inputs) == 2


def _block(structure: Structure, add: ir.Node, before: list[ir.Node]) -> ResidualBlock | None:
    first, second = add.inputs[:2]
    if first is None or second is None or first is second or first.const_value or second.const_value:
        return None
    sides = [_exclusive(add, i, before) for i in (0, 1)]
    for branch in (0, 1):
        trunk = add.inputs[1 - branch]
        if trunk is not None and any(_carries(value, trunk) for value in _read_by(sides[branch])):
            return _make(structure, add, branch, sides[branch])
    sources = [_read_by(side) for side in sides]
    if len(sources[0]) == 1 and sources[0] == sources[1]:
        made = [_make(structure, add, branch, side) for branch, side in enumerate(sides)]
        sizes = [0 if block is None else block.size for block in made]
        return made[0] if sizes[0] > sizes[1] else made[1]
    return None


def _carries(value: ir.Value, trunk: ir.Value) -> bool:
    """Say whether a value is the trunk, or the norm of it that the node which made the trunk put out as well."""
    node = value.producer()
    fused = node is not None and operator_of(node).sum_output is not None
    return value is trunk or (fused and node is trunk.producer() and value is node.outputs[0])  # type: ignore[union-attr]


def _exclusive(add: ir.Node, branch: int, before: list[ir.Node]) -> frozenset[ir.Node]:
    """Return the nodes that nothing but one input of the Add depends on."""
    inside: set[ir.Node] = set()
    for node in reversed(before):
        if is_way_out(node):  # an output of a cache that goes with its layer
            inside.add(node)
            continue
        uses = [use for out in node.outputs for use in out.uses()]
        leaves = any(out.is_graph_output() for out in node.outputs)
        if uses and not leaves and all(u in inside or (u is add and i == branch) for u, i in uses):
            inside.add(node)
    return frozenset(node for node in inside if not is_way_out(node) or _maker(node) in inside)


def _exclusive_in_branch(
    add: ir.Node, side: int, others: list[ir.Node], results: Mapping[ir.Value, ir.Value]
) -> frozenset[ir.Node]:
    """The same in a branch of an If.

    Args:
        add: The Add.
        side: Which of its inputs.
        others: The nodes of the branch but the Add, in order.
        results: What hands the outputs of the branch out; caches that go with their layers may leave there.
    """
    inside: set[ir.Node] = set()
    for node in reversed(others):
        uses = [use for out in node.outputs for use in out.uses()]
        leaves = [out for out in node.outputs if out.is_graph_output()]
        used = bool(uses or leaves) and all(_leaves_as_cache(results.get(out)) for out in leaves)
        if used and all(u in inside or (u is add and i == side) for u, i in uses):
            inside.add(node)
    kept, waiting = set[ir.Node](), [add.inputs[side]]  # what leads to the sum, and to the caches behind that
    while waiting:
        value = waiting.pop()
        maker = None if value is None else value.producer()
        if maker in inside and maker not in kept:
            kept.add(maker)
            waiting += maker.inputs
    for node in others:
        if node in inside and any(v is not None and v.producer() in kept for v in node.inputs):
            kept.add(node)
    return frozenset(kept)


def _leaves_as_cache(result: ir.Value | None) -> bool:
    """Whether nothing but the end of a cache reads a result of an If."""
    return result is not None and not result.is_graph_output() and all(is_way_out(user) for user, _ in result.uses())


def _maker(node: ir.Node) -> ir.Node | None:
    """The node that computes what another reads first."""
    value = node.inputs[0]
    return None if value is None else value.producer()


def _read_by(nodes: frozenset[ir.Node]) -> set[ir.Value]:
    """Return the activations that come into some nodes from outside."""
    made = {out for node in nodes for out in node.outputs}
    read = {v for node in nodes for v in _operands(node)}
    return {v for v in read - made if v.const_value is None}


def _operands(node: ir.Node) -> list[ir.Value]:
    """Return what a node reads, in its subgraphs too."""
    read = [v for v in node.inputs if v is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = list(nodes_of(attribute.as_graph()))
            inner_values = {out for n in inner for out in n.outputs} | set(attribute.as_graph().inputs)
            read += [v for n in inner for v in n.inputs if v is not None and v not in inner_values]
    return read


def _make(structure: Structure, add: ir.Node, branch: int, nodes: frozenset[ir.Node]) -> ResidualBlock | None:
    """The block, if it holds weights and the sum without it has the shape of the sum."""
    trunk = add.inputs[1 - branch]
    shape = None if trunk is None else structure.facts.shape(trunk)
    if shape is None or shape != structure.facts.shape(add.outputs[0]):
        return None
    exclusive = [v for v in structure.weights if all(user in nodes for user, _ in v.uses())]
    weights = {v: math.prod(structure.weight_shape(v)) for v in exclusive}
    return ResidualBlock(add, branch, nodes, weights, str(joined(add).name)) if weights else None
