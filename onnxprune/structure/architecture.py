"""What a network is, in one line: layers, heads and widths, read off operators and groups, never off names.

describe(structure, parameters).line       # "decoder, 6 layers, 8 heads in 4 KV groups, head size 16, MLP 160, ..."
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.caches import is_link
from onnxprune.graph.dims import graph_inputs
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Shape
from onnxprune.graph.text_inputs import text_inputs
from onnxprune.model_io.bodies import bodies
from onnxprune.recipe.granularity import KV_GROUPS, QUERY_HEADS, SHARING
from onnxprune.structure.axes import Dynamic, parts
from onnxprune.structure.causality import is_causal
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        node: The operator, or the product of queries and keys.
        heads: Heads of queries; 0 where they are not an axis of their own.
        groups: Heads of keys and values.
        size: Positions in a head of queries and keys; 0 where it is not known.
        shared: The units that are heads of keys and values, where several query heads share one.
    """

    node: ir.Node
    heads: int
    groups: int
    size: int
    shared: frozenset[int]


@dataclass(frozen=True)
class Architecture:
    """What a network is.

    Attributes:
        family: decoder, language model, encoder, vision transformer, transformer, CNN, recurrent network or MLP.
        layers: Attentions one behind the other; 0 where it has none.
        heads, kv_groups, head_size: Of each layer; 0 where layers differ or it is not known.
        mlp: Neurons of each MLP of a transformer, experts included; 0 where it is not known.
        experts: Experts of each layer, 0 without.
        convolutions, products, cells: Layers of these kinds: Conv; Gemm and MatMul; LSTM, GRU and RNN.
        parameters: All learnt numbers.
    """

    family: str
    parameters: int
    layers: int = 0
    heads: int = 0
    kv_groups: int = 0
    head_size: int = 0
    mlp: int = 0
    experts: int = 0
    convolutions: int = 0
    products: int = 0
    cells: int = 0

    @property
    def line(self) -> str:
        """It in words."""
        parts = [self.family]
        if self.layers:
            parts.append(_count(self.layers, "layer"))
            grouped = f" in {self.kv_groups:,} KV groups" if 0 < self.kv_groups < self.heads else ""
            parts += [f"{_count(self.heads, 'head')}{grouped}"] if self.heads else []
            parts += [f"head size {self.head_size:,}"] if self.head_size else []
            parts += [_count(self.experts, "expert")] if self.experts else []
            parts += [f"MLP {self.mlp:,}"] if self.mlp else []
        if self.convolutions:
            parts.append(_count(self.convolutions, "convolution"))
        if self.cells:
            parts.append(_count(self.cells, "recurrent layer"))
        if self.products and not self.layers:
            parts.append(_count(self.products, "fully connected layer"))
        return ", ".join([*parts, f"{_short(self.parameters)} parameters"])


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _short(n: int) -> str:
    """7,241,732,096 as 7.2 G."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= 0.95 * size:
            return f"{n / size:.1f} {letter}"
    return str(n)


def describe(structure: Structure, parameters: int, attending: tuple[Attention, ...] | None = None) -> Architecture:
    """Return what a network is.

    Args:
        structure: The analysed model.
        parameters: All its learnt numbers.
        attending: Its attentions, where they are known already.
    """
    attending = attentions(structure) if attending is None else attending
    nodes = set(structure.weights.values())
    kinds = Counter(operator_of(node).kind for node in nodes)
    neurons = [_width(structure, group) for group in structure.groups if group.kind == "neurons" and not group.inexact]
    experts = [len(group) for group in structure.groups if group.kind == "experts"]
    family = _family(structure, attending, kinds["conv"], kinds["rnn"])
    return Architecture(
        family,
        parameters,
        layers=len(attending),
        heads=_same(a.heads for a in attending),
        kv_groups=_same(a.groups for a in attending),
        head_size=_same(a.size for a in attending),
        mlp=_usual(neurons) if attending else 0,
        experts=_usual(experts),
        convolutions=kinds["conv"],
        products=kinds["fc"],
        cells=kinds["rnn"],
    )


def _family(structure: Structure, attending: Sequence[Attention], convolutions: int, cells: int) -> str:
    if attending:
        text = text_inputs(structure.model)
        if text is not None:
            if text.has_cache or all(is_causal(structure.facts, attention.node) for attention in attending):
                return "decoder"
            return "language model" if text.following else "encoder"
        pictures = any(len(value.shape or ()) == 4 for value in graph_inputs(structure.model))
        return "vision transformer" if pictures else "transformer"
    if convolutions:
        return "CNN"
    return "recurrent network" if cells else "MLP" if structure.weights else "network without weights"


def _same(numbers: Iterable[int]) -> int:
    """The number that all are; 0 where they differ."""
    values = set(numbers)
    return values.pop() if len(values) == 1 else 0


def _usual(numbers: list[int]) -> int:
    return Counter(numbers).most_common(1)[0][0] if numbers else 0


def _width(structure: Structure, group: Group) -> int:
    """Neurons of a group; of weights in a few bits, of which a unit is a whole block, the numbers in all blocks.

    The gate and the up projection of fused experts lie one behind the other: the least extent counts.
    """
    packed = structure.packed
    return min((packed[s.value].extent(s.axis) for s in group.sites if s.value in packed), default=len(group))


# -- attentions -----------------------------------------------------------------------------------------------------


def attentions(structure: Structure) -> tuple[Attention, ...]:
    """Return the attentions in the order of the model; of an If, whose branches hold the same, those of one branch."""
    return tuple(_attending(structure, structure.model.graph))


def _attending(structure: Structure, graph: ir.Graph) -> Iterator[Attention]:
    for node in graph:
        if operator_of(node).heads:
            yield _fused(structure, node)
        elif operator_of(node).has_body:
            yield from max((list(_attending(structure, body)) for body in bodies(node)), key=len, default=[])
        elif _is_product_of_activations(structure, node) and is_softmaxed(node.outputs[0]):
            yield _plain(structure, node)


def called(group: Group, attending: Iterable[Attention]) -> str:
    """Return what ``--kinds`` calls the units of a group, which is what users call them but for `IN_WORDS`.

    Of heads it says whether query heads share them, or they share one; the width that runs through all layers of a
    transformer is its hidden size, also where its norms are spelled out.
    """
    attending = list(attending)
    if group.kind == "neurons" and group.inexact and len(group.sites) > 2 * len(attending) > 0:
        return "hidden"
    sharing = [attention for attention in attending if 0 < attention.groups < attention.heads]
    if group.kind != "heads" or not sharing:
        return group.kind
    shared = frozenset().union(*(attention.shared for attention in sharing))
    return KV_GROUPS if shared.issuperset(group.atoms.tolist()) else QUERY_HEADS


def is_picked(group: Group, kinds: Sequence[str], attending: Iterable[Attention]) -> bool:
    """Say whether a group is of one of these kinds; ``heads`` are also those that share keys and values."""
    name = called(group, attending)
    return name in kinds or (name in SHARING and "heads" in kinds)


def _fused(structure: Structure, node: ir.Node) -> Attention:
    """An attention that is one operator."""
    shapes = [structure.facts.shape(value) if value is not None else None for value in node.inputs[:2]]
    heads = node.attributes.get_int(operator_of(node).heads, 0)
    groups = node.attributes.get_int("kv_num_heads", heads)
    query = shapes[0]
    if not heads and query is not None and len(query) == 4:
        heads = query[1] or 0
        groups = (shapes[1][1] or 0) if len(shapes) > 1 and shapes[1] is not None else heads
    present = node.outputs[1] if len(node.outputs) > 1 else None
    cache = None if present is None else structure.facts.shape(present)
    size = (cache[-1] or 0) if cache is not None and len(cache) >= 4 else 0
    width = _query_width(structure, node, query)
    if not size and heads and width is not None:
        size = width if query is not None and len(query) == 4 else width // heads
    source = present if cache is not None and len(cache) == 4 else node.inputs[1] if len(node.inputs) > 1 else None
    origin, repeats = (None, 1) if source is None else _origin(structure, source)
    groups = groups // repeats if repeats and groups % max(repeats, 1) == 0 else groups
    return Attention(node, heads, groups, size, _units(structure, origin, groups))


def _query_width(structure: Structure, node: ir.Node, query: Shape | None) -> int | None:
    """How wide all queries are together: the width of the operand, or a third of what a projection in it makes."""
    if operator_of(node).weights:
        sizes = node.attributes.get_ints("qkv_hidden_sizes", None)
        weight = structure.facts.shape(node.inputs[1]) if node.inputs[1] is not None else None
        return sizes[0] if sizes else (weight[-1] or 0) // 3 if weight else None
    return query[-1] if query and len(node.inputs) > 1 and node.inputs[1] is not None else None


def _plain(structure: Structure, node: ir.Node) -> Attention:
    """An attention that is spelled out: the product of queries and keys, behind which a Softmax stands."""
    query, key = node.inputs[0], node.inputs[1]
    assert query is not None and key is not None
    shape = structure.facts.shape(query) or ()
    heads = (shape[1] or 0) if len(shape) == 4 else _heads_beside_batch(structure, query)
    origin, repeats = _origin(structure, key)
    groups = heads // repeats if repeats and heads % repeats == 0 else heads
    return Attention(node, heads, groups, (shape[-1] or 0) if shape else 0, _units(structure, origin, groups))


def _heads_beside_batch(structure: Structure, query: ir.Value) -> int:
    """Heads of queries [batch x heads, tokens, size]: the part of the first axis whose extent does not change."""
    axes = structure.axes.get(query, [])
    static = [len(ids) for ids in parts(axes[0])] if len(axes) == 3 and isinstance(axes[0], Dynamic) else []
    return static[0] if len(static) == 1 else 0


def _is_product_of_activations(structure: Structure, node: ir.Node) -> bool:
    if not operator_of(node).contracts or len(node.inputs) < 2 or is_link(node):
        return False
    for value in node.inputs[:2]:
        if value is None or value.const_value is not None or value in structure.weights:
            return False
        if len(structure.facts.shape(value) or ()) < 3:
            return False
    return True


def is_softmaxed(scores: ir.Value) -> bool:
    """Whether scores reach a Softmax through pointwise operators, and it weighs another product."""
    waiting, seen = [scores], {scores}
    while waiting:
        for node, _ in waiting.pop().uses():
            operator = operator_of(node)
            if operator.head == "softmax":
                return True
            if operator.pointwise or operator.view:
                waiting += [out for out in node.outputs if out not in seen]
                seen.update(node.outputs)
    return False


def _origin(structure: Structure, key: ir.Value) -> tuple[ir.Value, int]:
    """Return what keys are before they are repeated for the query heads that share them, and how often they are."""
    value, repeats = key, 1
    for node in _movements(structure, value):
        source = node.inputs[0]
        assert source is not None
        before, after = _numbers(structure, source), _numbers(structure, node.outputs[0])
        if before and after and after > before and after % before == 0:
            repeats, value = repeats * (after // before), source
    return value, repeats


def _movements(structure: Structure, value: ir.Value) -> Iterator[ir.Node]:
    """The operators behind a value that move numbers, or scale and turn them in their places; the nearest first."""
    node = value.producer()
    while node is not None and node.inputs and (source := node.inputs[0]) is not None:
        operator = operator_of(node)
        in_place = operator.pointwise and _numbers(structure, source) == _numbers(structure, node.outputs[0])
        if not in_place and operator.movement not in ("same", "cast", "reshape", "permute", "repeat", "pick"):
            return
        yield node
        node = source.producer()


def _numbers(structure: Structure, value: ir.Value) -> int:
    total = 1
    for extent in structure.facts.shape(value) or (0,):
        total *= extent or 0
    return total


def _units(structure: Structure, keys: ir.Value | None, groups: int) -> frozenset[int]:
    """The units that lie on the axis of heads of keys [batch, heads, ...]."""
    shape = None if keys is None else structure.facts.shape(keys)
    if keys is None or shape is None or len(shape) < 4 or shape[1] != groups:
        return frozenset()
    ids = structure.ids(keys, 1)
    return frozenset() if ids is None else frozenset(structure.members(ids)[1].tolist())
