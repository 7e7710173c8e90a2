"""Give layers in tiles back as they were before `TileLayers`: one node each, with zeros among its weights.

Nothing but a name tells a layer in tiles: that of its last node. From there the pass walks back to the value that the
layer reads and trusts no name on the way: every operator, index and shape is checked. Weights come back bit for bit;
weights that no tile reads are zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune import runtime
from onnxprune.errors import ModelError
from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import result_axis, slots_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Facts
from onnxprune.graph.tensors import Array
from onnxprune.graph.tiles import Indices
from onnxprune.passes.order import followers
from onnxprune.passes.tile_layers import INNER, NAMELESS, ORDER, PREFIX

_MOST = 2**31  # elements of a weight
_NAME = re.compile(re.escape(PREFIX) + r"(\d+(?:x\d+)*)/(\d(?:x\d)?)/\d+/(.*)", re.DOTALL)


def in_tiles(model: ir.Model) -> bool:
    """Whether a model has layers in tiles."""
    return any(_is_last(node) for node in model.graph)


def _is_last(node: ir.Node) -> bool:
    return (node.name or "").startswith(PREFIX)


class JoinTiles(ir.passes.InPlacePass):
    """Join the tiles of every layer.

    Raises:
        ModelError: A node has the name of a layer in tiles and is none.
    """

    preserves: Literal["exactly"] = "exactly"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        edit, layers = Editor(model), [node for node in model.graph if _is_last(node)]
        ordered: list[tuple[ir.Node, Indices]] = []
        for last in layers:
            try:
                ordered += _join(edit, last)
            except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(f"The layer in tiles {last.name!r} cannot be joined: {error}.") from None
        if layers:
            RemoveUnusedNodesPass()(model)
        if ordered:
            facts = runtime.known_facts(model)
            for node, order in ordered:
                _put_back(edit, node, order, facts)
        return ir.passes.PassResult(model, modified=bool(layers))


@dataclass(frozen=True, eq=False)
class _Part:
    """The node of one tile.

    Attributes:
        node: A Conv, Gemm or MatMul.
        place: Which of its inputs holds weights.
        source: What the layer reads.
        inputs: Which inputs of that the tile reads; None for all.
        activation: What is applied to its result; None for nothing.
    """

    node: ir.Node
    place: int
    source: ir.Value
    inputs: Indices | None
    activation: ir.Node | None = None


@dataclass(frozen=True)
class _Whole:
    """What the name of a constant of a tile tells of the whole: its shape, the axes that were cut, and its name."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    name: str

    @staticmethod
    def of(value: ir.Value) -> _Whole:
        match = _NAME.fullmatch(value.name or "")
        if match is None:
            _refuse(f"{value.name!r} is no constant of a tile")
        shape, axes = (tuple(map(int, match[group].split("x"))) for group in (1, 2))
        if math.prod(shape) > _MOST:
            _refuse(f"{value.name!r} would have the shape {shape}")
        return _Whole(shape, axes, match[3])


def _put_back(edit: Editor, node: ir.Node, order: Indices, facts: Facts) -> None:
    """Let what reads the outputs of a joined layer read them in their old order again.

    Raises:
        ModelError: Something cannot.
    """
    shape, kind = facts.shape(node.outputs[0]), operator_of(node).kind
    slot = next(slot for slot in slots_of(node) if _present(node.inputs[slot.input]).is_initializer())
    after = None
    if shape is not None:
        after = followers(node.outputs[0], 1 if kind == "conv" else result_axis(slot, node) + len(shape), facts)
    if after is None:
        raise ModelError(f"The layer in tiles {node.name!r} cannot be joined: what reads it keeps another order.")
    after.follow(edit, np.argsort(order))


def _join(edit: Editor, last: ir.Node) -> list[tuple[ir.Node, Indices]]:
    """Put one node in the place of a layer in tiles; return it with the order in which its outputs are read, if any."""
    node, turned, order = last, last.op_type == "Transpose", None
    if turned:
        node = _maker(node.inputs[0])
    if _picks(node):
        order = np.argsort(_indices(node.inputs[1]), kind="stable")
        node = _maker(node.inputs[0])
    joined = node.inputs if node.op_type == "Concat" else node.outputs
    parts = [_part(_present(value)) for value in joined]
    first, source = parts[0], parts[0].source
    if any((p.source, p.place, p.node.op_type) != (source, first.place, first.node.op_type) for p in parts):
        _refuse("its tiles do not read the same value")
    if turned:
        source = _present(_maker(source).inputs[0])
    kept_order = last.metadata_props.get(ORDER)
    if kept_order is not None:
        order = np.array([int(number) for number in kept_order.split()], np.int64)
    inputs = _whole_inputs(edit, parts, order, turned=turned)
    inputs[first.place if turned else 1 - first.place] = source
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in first.node.attributes.items()}
    if turned and first.node.op_type == "Gemm":
        attributes |= {} if attributes.pop("transA", 0) else {"transB": 1}
    whole = edit.before(last, first.node.op_type, inputs, attributes)
    new = _maker(whole)
    new.doc_string = last.doc_string
    new.metadata_props.update({key: text for key, text in last.metadata_props.items() if key != ORDER})
    if first.activation is not None:
        whole = _whole_activation(edit, last, whole, first.activation)
    edit.take_place(last.outputs[0], whole)
    assert isinstance(last.graph, ir.Graph)
    last.graph.remove(last, safe=True)
    name = (last.name or "")[len(PREFIX) :]
    new.name = None if name.startswith(NAMELESS) else edit.fresh(name)
    return [] if kept_order is None or order is None else [(new, order)]


def _whole_activation(edit: Editor, last: ir.Node, whole: ir.Value, part: ir.Node) -> ir.Value:
    """The activation behind the whole node, from that of one tile."""
    attributes = {name: attribute.value for name, attribute in part.attributes.items()}
    names = [str(name)[len(INNER) :].partition("/")[2] for name in (part.name, _present(part.inputs[0]).name)]
    result = edit.before(last, part.op_type, [whole, *part.inputs[1:]], attributes)
    _maker(result).name = None if names[0].startswith(NAMELESS) else edit.fresh(names[0])
    whole.name = edit.fresh(names[1])
    return result


def _part(result: ir.Value) -> _Part:
    """The node of one tile, from its result."""
    node, activation = _maker(result), None
    if operator_of(node).pointwise == "unary":
        activation, node = node, _maker(node.inputs[0])
    places = [i for i, value in enumerate(node.inputs[:2]) if value is not None and value.is_initializer()]
    if not operator_of(node).divisible or len(places) != 1:
        _refuse(f"{node.op_type} {node.name!r} is no product with weights")
    source = _present(node.inputs[1 - places[0]])
    picks = source.producer()
    if picks is None or not _picks(picks) or not str(_present(picks.inputs[1]).name).startswith(PREFIX):
        return _Part(node, places[0], source, None, activation)
    return _Part(node, places[0], _present(picks.inputs[0]), _indices(picks.inputs[1]), activation)


def _whole_inputs(
    edit: Editor, parts: Sequence[_Part], order: Indices | None, *, turned: bool
) -> list[ir.Value | None]:
    """The inputs of the whole node but for what it reads: weights and bias, each made from those of the tiles."""
    first = parts[0]
    flipped = turned and first.node.op_type == "MatMul"
    weights = [_numbers(part.node.inputs[first.place]) for part in parts]
    weights = [array.T if flipped else array for array in weights]
    whole = _Whole.of(_present(first.node.inputs[first.place]))
    outputs = list(_outputs([array.shape[whole.axes[0]] for array in weights], order))
    if sum(map(len, outputs)) != whole.shape[whole.axes[0]]:
        _refuse("its tiles have not all outputs")
    numbers = np.zeros(whole.shape, weights[0].dtype)
    for part, array, rows in zip(parts, weights, outputs, strict=True):
        place: list[Any] = [np.arange(extent) for extent in whole.shape]
        place[whole.axes[0]] = rows
        if part.inputs is not None:
            place[whole.axes[1]] = part.inputs
        numbers[np.ix_(*place)] = array
    inputs = list(first.node.inputs)
    inputs[1 - first.place if turned else first.place] = _constant(edit, numbers, whole.name)
    for index, value in enumerate(first.node.inputs[2:], 2):
        if value is not None and (value.name or "").startswith(PREFIX):
            inputs[index] = _whole_bias(edit, parts, index, outputs, turned=turned)
    return inputs


def _whole_bias(
    edit: Editor, parts: Sequence[_Part], index: int, outputs: Sequence[Indices], *, turned: bool
) -> ir.Value:
    whole = _Whole.of(_present(parts[0].node.inputs[index]))
    numbers = None
    for part, rows in zip(parts, outputs, strict=True):
        array = _numbers(part.node.inputs[index])
        numbers = np.empty(whole.shape, array.dtype) if numbers is None else numbers
        place: list[Any] = [slice(None)] * len(whole.shape)
        place[whole.axes[0]] = rows
        numbers[tuple(place)] = (array.T if turned else array).reshape(numbers[tuple(place)].shape)
    assert numbers is not None
    return _constant(edit, numbers, whole.name)


def _outputs(counts: Sequence[int], order: Indices | None) -> Iterator[Indices]:
    """The outputs of each tile, from how many they are."""
    order = np.arange(sum(counts)) if order is None else order
    ends = np.cumsum([0, *counts])
    if len(order) != ends[-1]:
        _refuse("its tiles have not as many outputs as are put in order")
    for start, end in zip(ends[:-1], ends[1:], strict=True):
        yield order[start:end]


def _constant(edit: Editor, numbers: Array, name: str) -> ir.Value:
    """A constant of this name; one that is there and holds the same numbers is taken."""
    present = edit.model.graph.initializers.get(name)
    if present is not None and present.const_value is not None:
        content = present.const_value.numpy()
        if content.dtype == numbers.dtype and content.shape == numbers.shape and content.tobytes() == numbers.tobytes():
            return present
    return edit.constant(numbers, name)


def _picks(node: ir.Node) -> bool:
    """Whether a node picks numbers by indices along an axis."""
    return 1 in operator_of(node).indices and len(node.inputs) == 2


def _maker(value: ir.Value | None) -> ir.Node:
    node = None if value is None else value.producer()
    if node is None:
        _refuse(f"no node computes {value.name!r}" if value is not None else "an input is missing")
    return node


def _present(value: ir.Value | None) -> ir.Value:
    if value is None:
        _refuse("an input is missing")
    return value


def _numbers(value: ir.Value | None) -> Array:
    if value is None or value.const_value is None or value.is_graph_input():
        _refuse("weights of a tile are no constant")
    return value.const_value.numpy()


def _indices(value: ir.Value | None) -> Indices:
    indices = _numbers(value).reshape(-1).astype(np.int64)
    if len(np.unique(indices)) != len(indices) or (indices < 0).any():
        _refuse("an index occurs twice or is negative")
    return indices


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)
