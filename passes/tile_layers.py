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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import matrix_axes, result_axis, slot_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Facts
from onnxprune.graph.tensors import Array
from onnxprune.graph.tiles import Bools, Indices, Tile, indivisible, tiles_of
from onnxprune.passes.order import followers
from onnxprune.passes.tile_ways import Costs, Layer, Shapes, bias_of, bias_place, cost, dense_cost, ways_of
from onnxprune.structure.figures import figures_in_use

PREFIX = "onnxprune.tiles/"
"""What the names of the last node of a layer in tiles and of the constants of its tiles begin with."""

INNER = "onnxprune.tile."
"""What the names of activations of a tile, and of what they read, begin with."""

ORDER = "onnxprune.order"
"""The key of the metadata of that node that hold the order of the outputs, where all that reads them follows it."""

NAMELESS = "?"
"""What follows there where the node had no name."""


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
            costs: What things take; by default on this machine.
        """
        super().__init__()
        self.masks, self.shapes, self.facts, self.costs = masks, shapes, facts, costs or Costs.of(figures_in_use())
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
            self.tiled[str(layer.weight.name)] = list(layer.tiles)
        for layer in self._absorbed(writer.edit, sorted(layers, key=lambda layer: order[layer.node])):
            writer.write(layer)
        return ir.passes.PassResult(model, modified=bool(layers))

    def _absorbed(self, edit: Editor, layers: Sequence[Layer]) -> list[Layer]:
        """Let the layers behind read the outputs in the order of the tiles, where all that reads them can follow."""
        by_node = {layer.node: layer for layer in layers}
        for node in by_node:
            layer = by_node[node]
            axis = 1 if operator_of(node).kind == "conv" else result_axis(layer.slot, node) + layer.rank
            after = followers(node.outputs[0], axis, self.facts) if layer.reordered else None
            if after is None:
                continue
            after.follow(edit, layer.order)
            by_node[node] = replace(layer, absorbed=True)
            new_place = np.argsort(layer.order)
            for reader, _, _ in after.layers:
                if reader in by_node:
                    tiles = [Tile(t.outputs, np.sort(new_place[t.inputs])) for t in by_node[reader].tiles]
                    by_node[reader] = replace(by_node[reader], tiles=tiles)
        return list(by_node.values())

    def _layer(self, model: ir.Model, name: str, mask: Bools) -> Layer | str:
        """A layer with the quickest way to compute it in tiles, or why it stays as it is."""
        value = model.graph.initializers.get(name)
        uses = [] if value is None else list(value.uses())
        if value is None or len(uses) != 1 or uses[0].node.graph is not model.graph:
            return "its weights are not those of one node of the main graph"
        if value.is_graph_input() or value.is_graph_output():
            return "its weights are an input or output of the model as well"
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
        ways = ways_of(node, slot, value, tiles, self.shapes, self.facts)
        if isinstance(ways, str):
            return ways
        best = min(ways, key=lambda way: cost(way, self.shapes, self.costs))
        estimate = cost(best, self.shapes, self.costs) / dense_cost(best, self.shapes, self.costs)
        return best if estimate < 1 else "its tiles would take longer by what things cost in ONNX Runtime"


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

    def write(self, layer: Layer) -> None:
        """Let tiles take the place of a layer's node."""
        node, edit = layer.node, self.edit
        source = self._transposed(node, layer.data, layer) if layer.turned else layer.data
        parts = []
        for number, tile in enumerate(layer.tiles):
            read = source
            if len(tile.inputs) < layer.inputs:
                read = self._picked(node, source, tile.inputs, layer.axis, layer)
            parts.append(self._product(layer, number, read))
        old = node.outputs[0]
        activation = _activation(node) if len(parts) > 1 else None
        if activation is not None:
            parts = [self._activated(node, activation, part, number) for number, part in enumerate(parts)]
            old = activation.outputs[0]
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
        if layer.absorbed:
            last.metadata_props[ORDER] = " ".join(map(str, layer.order))
        constants = [v for v in node.inputs if v is not None and v.is_initializer()]
        edit.take_place(old, result)
        graph = node.graph
        graph.remove([node] if activation is None else [activation, node], safe=True)
        for value in constants:
            if not value.uses() and not value.is_graph_output():
                graph.initializers.pop(str(value.name), None)

    def _activated(self, node: ir.Node, activation: ir.Node, part: ir.Value, number: int) -> ir.Value:
        """The activation of one tile, which ONNX Runtime makes part of its convolution."""
        attributes = {name: attribute.value for name, attribute in activation.attributes.items()}
        result = self.edit.before(node, activation.op_type, [part, *activation.inputs[1:]], attributes)
        maker = result.producer()
        assert maker is not None
        maker.name = self.edit.fresh(f"{INNER}{number}/{activation.name or NAMELESS}")
        part.name = self.edit.fresh(f"{INNER}{number}/{node.outputs[0].name}")
        return result

    def _transposed(self, near: ir.Node, value: ir.Value, layer: Layer) -> ir.Value:
        key = ("transposed", value)
        if key not in self.known:
            self.known[key] = self.edit.before(near, "Transpose", [value], {"perm": _swapped(layer.rank)})
        return self.known[key]

    def _picked(self, near: ir.Node, value: ir.Value, indices: Indices, axis: int, layer: Layer) -> ir.Value:
        key = ("picked", value, indices.tobytes(), axis)
        if key not in self.known:
            index, op_type = indices.astype(np.int64), "Gather"
            if layer.single:
                index, op_type = index.reshape(*[1] * (layer.rank - 1), -1), "GatherElements"
            constant = self.edit.shared_constant(index, f"{PREFIX}indices")
            self.known[key] = self.edit.before(near, op_type, [value, constant], {"axis": axis})
        return self.known[key]

    def _product(self, layer: Layer, number: int, read: ir.Value) -> ir.Value:
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
        bias = bias_of(layer)
        if bias is not None:
            inputs[operator_of(node).biases[0]] = self._bias(layer, bias, number)
        return self.edit.before(node, node.op_type, inputs, attributes)

    def _bias(self, layer: Layer, bias: ir.Value, number: int) -> ir.Value:
        """The bias of one tile, or the whole one where it is the same for all outputs."""
        assert bias.const_value is not None
        array, place = bias.const_value.numpy(), bias_place(layer)
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


def _activation(node: ir.Node) -> ir.Node | None:
    """The activation that alone reads a convolution, where ONNX Runtime would make it part of that."""
    uses = list(node.outputs[0].uses())
    if operator_of(node).kind != "conv" or len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    reader, operator = uses[0].node, operator_of(uses[0].node)
    unary = operator.pointwise == "unary" and operator.joins_convolution and not operator.movement
    plain = reader.domain == "" and all(value is None or value.is_initializer() for value in reader.inputs[1:])
    return reader if unary and plain and uses[0].idx == 0 and reader.graph is node.graph else None


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]
