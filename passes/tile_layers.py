"""Write layers whose weights are zero in tiles so that the zeros cost no time: Gather, smaller products, Concat.

    y = x W     becomes     y = Gather(Concat(Gather(x, i_0) W_0, Gather(x, i_1) W_1, ...), order)

Cases:
1. A convolution picks channels. A product whose weights are on its left picks rows. Both copy whole rows of numbers.
2. A product of rows would have to pick single numbers, which takes long. It is computed the other way round,
   y^T = W^T x^T: the data are transposed, rows are picked, and the result is transposed back.
3. Of a single row GatherElements picks single numbers, which is quick there.
4. A tile that reads all inputs has no Gather. Where the tiles lie in the order of the outputs nothing is put back in
   order. Layers that read the same inputs of the same value share the Gather and the Transpose.
5. A layer stays as it is where its tiles would take longer by `Costs`, or where it cannot be divided, and the pass
   says why.

`JoinTiles` gives the layers back. It finds them by the name of their last node, and everything else in the names and
the content of the constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import data_axis, matrix_axes, result_axis, slot_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot
from onnxprune.graph.shapes import Facts
from onnxprune.graph.tensors import Array
from onnxprune.graph.tiles import Bools, Indices, Tile, indivisible, tiles_of

PREFIX = "onnxprune.tiles/"
"""What the names of the last node of a layer in tiles and of the constants of its tiles begin with."""

NAMELESS = "?"
"""What follows there where the node had no name."""

Shapes = Mapping[ir.Value, tuple[int, ...]]


@dataclass(frozen=True)
class Costs:
    """What things take in ONNX Runtime on a CPU, in the time of one multiply-add (benchmarks/tiles.py measures them).

    Attributes:
        moved: Copying one number as a part of a row, or transposing it.
        picked: Copying a single number by Gather.
        node: One more node.
        read: Reading one weight, which counts where each is used for few results.
        block: Channels that a convolution takes at once.
    """

    moved: float = 17.0
    picked: float = 400.0
    node: float = 50_000.0
    read: float = 3.0
    block: int = 16


class TileLayers(ir.passes.InPlacePass):
    """Write layers in tiles.

    Attributes:
        tiled: The tiles of each weight whose layer was rewritten, by its name.
        plain: Why the other layers stay as they are, by the names of their weights.
    """

    preserves: Literal["exactly"] = "exactly"

    def __init__(self, masks: Mapping[str, Bools], shapes: Shapes, facts: Facts, costs: Costs | None = None) -> None:
        """Take what is known of the model that will be passed in.

        Args:
            masks: For each weight, by its name, which numbers stay; the others are zero.
            shapes: Shapes of values at usual inputs, by which the time is estimated.
            facts: Which extents are the same for all inputs.
            costs: What things take.
        """
        super().__init__()
        self.masks, self.shapes, self.facts, self.costs = masks, shapes, facts, costs or Costs()
        self.tiled: dict[str, list[Tile]] = {}
        self.plain: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        writer = _Writer(Editor(model))
        order = {node: number for number, node in enumerate(model.graph)}
        layers = []
        for name, mask in self.masks.items():
            layer = self._layer(model, name, mask)
            if isinstance(layer, str):
                self.plain[name] = layer
            else:
                layers.append(layer)
        for layer in sorted(layers, key=lambda layer: order[layer.node]):
            writer.write(layer)
            self.tiled[str(layer.weight.name)] = list(layer.tiles)
        return ir.passes.PassResult(model, modified=bool(layers))

    def _layer(self, model: ir.Model, name: str, mask: Bools) -> _Layer | str:
        """A layer with the quickest way to compute it in tiles, or why it stays as it is."""
        value = model.graph.initializers.get(name)
        uses = [] if value is None else list(value.uses())
        if value is None or len(uses) != 1 or uses[0].node.graph is not model.graph:
            return "its weights are not those of one node of the main graph"
        node = uses[0].node
        slot, axes = slot_of(value, node), matrix_axes(value, node)
        if slot is None or axes is None or value.const_value is None:
            return f"its weights are read by {node.op_type}"
        if why := indivisible(value, node):
            return why
        if node.inputs[slot.input] is not value or not value.const_value.dtype.is_floating_point():
            return "its weights are computed or stored as integers"
        tiles = tiles_of(mask, axes)
        if not all(len(tile.inputs) for tile in tiles):
            return "a tile reads nothing"
        if all(len(tile.inputs) == mask.shape[axes.reduction] for tile in tiles):
            return "every output reads all inputs"
        ways = _ways(node, slot, value, tiles, self.shapes, self.facts)
        if isinstance(ways, str):
            return ways
        best = min(ways, key=lambda way: _cost(way, self.shapes, self.costs))
        estimate = _cost(best, self.shapes, self.costs) / _dense_cost(best, self.shapes, self.costs)
        return best if estimate < 1 else "its tiles would take longer by what things cost in ONNX Runtime"


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer, and a way to compute it in tiles.

    Attributes:
        node: The Conv, Gemm or MatMul.
        slot: Where its weights are.
        weight: The weights.
        tiles: Its tiles.
        rank: Of the data.
        axis: The axis of the data that inputs are picked from.
        result: The axis of the result that counts outputs.
        turned: Whether it is computed transposed; `axis` and `result` are those of the transposed values.
        single: Whether the data are one row, of which GatherElements picks.
    """

    node: ir.Node
    slot: Slot
    weight: ir.Value
    tiles: Sequence[Tile]
    rank: int
    axis: int
    result: int
    turned: bool = False
    single: bool = False

    @property
    def data(self) -> ir.Value:
        """What it reads."""
        value = self.node.inputs[self.slot.data]
        assert value is not None
        return value

    @property
    def order(self) -> Indices:
        """The outputs in the order of the tiles."""
        return np.concatenate([tile.outputs for tile in self.tiles])

    @property
    def inputs(self) -> int:
        """How many inputs the whole layer reads."""
        axes = matrix_axes(self.weight, self.node)
        assert axes is not None and self.weight.const_value is not None
        return int(self.weight.const_value.shape.numpy()[axes.reduction])

    @property
    def reordered(self) -> bool:
        """Whether the outputs have to be put back in order."""
        return bool((np.diff(self.order) < 0).any())


def _ways(
    node: ir.Node, slot: Slot, weight: ir.Value, tiles: Sequence[Tile], shapes: Shapes, facts: Facts
) -> list[_Layer] | str:
    """The ways in which a layer can be computed in tiles, or why there are none."""
    data, result = node.inputs[slot.data], node.outputs[0]
    if data is None or len(shapes.get(data, ())) < 2 or len(shapes.get(result, ())) < 2:
        return "the shape of what it reads is not known"
    rank = len(shapes[data])
    axis, out = data_axis(slot, node, rank) % rank, result_axis(slot, node)
    layer = _Layer(node, slot, weight, tiles, rank, axis, out)
    by_number = axis == rank - 1 and operator_of(node).kind != "conv"
    ways = [layer]
    if by_number and out == -1:
        rows = math.prod(shapes[data][:-1]), math.prod(shapes[result][:-1])
        known = facts.shape(data) is not None and all(facts.static(data, i) for i in range(rank))
        ways = [replace(layer, single=known and rows == (1, 1)), replace(layer, axis=-2, result=-2, turned=True)]
    ways = [way for way in ways if _divides_bias(way)]
    if by_number != (out == -1) or not ways:
        return "its bias is computed, or no row of numbers" if not ways else "its data are transposed"
    return ways


def _divides_bias(layer: _Layer) -> bool:
    """Whether the bias of a layer can be divided among its tiles, or is the same for all outputs."""
    bias = _bias(layer)
    if bias is None:
        return True
    if bias.const_value is None or bias.is_graph_input():
        return False
    shape, place = bias.const_value.shape.numpy(), _bias_place(layer)
    extent = shape[place] if len(shape) >= -place and shape else 1
    return extent == len(layer.order) or (extent == 1 and not (layer.turned and bias.const_value.size > 1))


def _bias_place(layer: _Layer) -> int:
    """The axis of a bias that counts outputs."""
    return 0 if operator_of(layer.node).kind == "conv" else -1 if layer.turned else layer.result


def _bias(layer: _Layer) -> ir.Value | None:
    places = operator_of(layer.node).biases
    return layer.node.inputs[places[0]] if places and places[0] < len(layer.node.inputs) else None


# -- how long it takes ----------------------------------------------------------------------------------------------


def _dense_cost(layer: _Layer, shapes: Shapes, costs: Costs) -> float:
    """What the layer takes as it is."""
    return _product(layer, shapes, costs, len(layer.order), layer.inputs) + costs.node


def _cost(layer: _Layer, shapes: Shapes, costs: Costs) -> float:
    """What the layer takes in tiles."""
    x, y = math.prod(shapes[layer.data]), math.prod(shapes[layer.node.outputs[0]])
    picked = sum(len(t.inputs) for t in layer.tiles if len(t.inputs) < layer.inputs) * x / layer.inputs
    products = sum(_product(layer, shapes, costs, len(t.outputs), len(t.inputs)) for t in layer.tiles)
    by_number = layer.axis % layer.rank == layer.rank - 1 and operator_of(layer.node).kind != "conv"
    pick = costs.picked if by_number and not layer.single else costs.moved
    moved = (x + y) * layer.turned + y * (len(layer.tiles) > 1)
    return products + costs.moved * moved + pick * (picked + y * layer.reordered) + costs.node * 2 * len(layer.tiles)


def _product(layer: _Layer, shapes: Shapes, costs: Costs, outputs: int, inputs: int) -> float:
    """What a product of so many outputs and inputs takes."""
    weight = layer.weight.const_value
    assert weight is not None
    if operator_of(layer.node).kind == "conv":
        outputs, inputs = _up(outputs, costs.block), _up(inputs, costs.block)
    places = weight.size / (len(layer.order) * layer.inputs)  # of a kernel
    results = math.prod(shapes[layer.node.outputs[0]]) / len(layer.order)
    return outputs * inputs * places * (results + costs.read)


def _up(count: int, block: int) -> int:
    return -(-count // block) * block if count >= block else count


# -- writing --------------------------------------------------------------------------------------------------------


@dataclass
class _Writer:
    """Writes layers in tiles into one model.

    Attributes:
        edit: Edits the model.
        known: Values that were picked or transposed already, by what of and where.
    """

    edit: Editor
    known: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def write(self, layer: _Layer) -> None:
        """Let tiles take the place of a layer's node."""
        node, edit = layer.node, self.edit
        source = self._transposed(node, layer.data, layer) if layer.turned else layer.data
        parts = []
        for number, tile in enumerate(layer.tiles):
            read = source
            if len(tile.inputs) < layer.inputs:
                read = self._picked(node, source, tile.inputs, layer.axis, layer)
            parts.append(self._product(layer, number, read))
        result = parts[0] if len(parts) == 1 else edit.before(node, "Concat", parts, {"axis": layer.result})
        if layer.reordered:
            result = self._picked(node, result, np.argsort(layer.order), layer.result, layer)
        if layer.turned:
            result = edit.before(node, "Transpose", [result], {"perm": _swapped(layer.rank)})
        last = result.producer()
        assert last is not None and isinstance(node.graph, ir.Graph)
        last.name = edit.fresh(f"{PREFIX}{node.name or NAMELESS + str(node.outputs[0].name)}")
        last.doc_string = node.doc_string
        last.metadata_props.update(node.metadata_props)
        constants = [v for v in node.inputs if v is not None and v.is_initializer()]
        edit.take_place(node.outputs[0], result)
        graph = node.graph
        graph.remove(node, safe=True)
        for value in constants:
            if not value.uses() and not value.is_graph_output():
                graph.initializers.pop(str(value.name), None)

    def _transposed(self, near: ir.Node, value: ir.Value, layer: _Layer) -> ir.Value:
        key = ("transposed", value)
        if key not in self.known:
            self.known[key] = self.edit.before(near, "Transpose", [value], {"perm": _swapped(layer.rank)})
        return self.known[key]

    def _picked(self, near: ir.Node, value: ir.Value, indices: Indices, axis: int, layer: _Layer) -> ir.Value:
        key = ("picked", value, indices.tobytes(), axis)
        if key not in self.known:
            index, op_type = indices.astype(np.int64), "Gather"
            if layer.single:
                index, op_type = index.reshape(*[1] * (layer.rank - 1), -1), "GatherElements"
            constant = self.edit.shared_constant(index, f"{PREFIX}indices")
            self.known[key] = self.edit.before(near, op_type, [value, constant], {"axis": axis})
        return self.known[key]

    def _product(self, layer: _Layer, number: int, read: ir.Value) -> ir.Value:
        """The node of one tile."""
        node, tile = layer.node, layer.tiles[number]
        axes = matrix_axes(layer.weight, node)
        assert axes is not None and layer.weight.const_value is not None
        numbers: Array = np.take(layer.weight.const_value.numpy(), tile.outputs, axis=axes.output)
        numbers = np.take(numbers, tile.inputs, axis=axes.reduction)
        attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        inputs = list(node.inputs)
        inputs[layer.slot.data] = read
        if layer.turned:
            inputs[layer.slot.data], inputs[layer.slot.input] = inputs[layer.slot.input], inputs[layer.slot.data]
        if layer.turned and node.op_type == "Gemm":
            attributes["transA"] = 1 - int(attributes.pop("transB", 0))
        elif layer.turned:
            numbers = numbers.T
        place_of_weight = layer.slot.data if layer.turned else layer.slot.input
        inputs[place_of_weight] = self._constant(numbers, layer.weight, (axes.output, axes.reduction), number)
        bias = _bias(layer)
        if bias is not None:
            inputs[operator_of(node).biases[0]] = self._bias(layer, bias, number)
        return self.edit.before(node, node.op_type, inputs, attributes)

    def _bias(self, layer: _Layer, bias: ir.Value, number: int) -> ir.Value:
        """The bias of one tile, or the whole one where it is the same for all outputs."""
        assert bias.const_value is not None
        array, place = bias.const_value.numpy(), _bias_place(layer)
        if not array.ndim or array.ndim < -place or array.shape[place] != len(layer.order):
            return bias
        cut: Array = np.take(array, layer.tiles[number].outputs, axis=place)
        if layer.turned:
            cut = np.atleast_2d(cut).T
        return self._constant(cut, bias, (place % array.ndim,), number)

    def _constant(self, numbers: Array, whole: ir.Value, axes: Sequence[int], number: int) -> ir.Value:
        """A constant of one tile; its name tells the shape and the name of the whole, and which axes were cut."""
        assert whole.const_value is not None
        shape, cut = ("x".join(map(str, some)) for some in (whole.const_value.shape.numpy(), axes))
        return self.edit.constant(np.ascontiguousarray(numbers), f"{PREFIX}{shape}/{cut}/{number}/{whole.name}")


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
