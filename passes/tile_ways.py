"""In which ways a layer can be computed in tiles, and how long each takes in ONNX Runtime on a CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.graph.layers import data_axis, matrix_axes, result_axis
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot
from onnxprune.graph.shapes import Facts
from onnxprune.graph.tiles import Indices, Tile
from onnxprune.structure.figures import BUILT_IN, Figures

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

    @classmethod
    def of(cls, figures: Figures) -> Costs:
        """Those of this machine, where it was measured."""
        if figures is BUILT_IN:
            return cls()
        one, _, _, weight, _ = figures.kinds["product"]
        moved, picked, node = figures.kinds["move"][2], figures.kinds["pick"][2], figures.kinds["move"][4]
        return cls(moved / one, picked / one, node / one, weight / one, figures.block)


@dataclass(frozen=True, eq=False)
class Layer:
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
        absorbed: Whether all that reads the outputs reads them in the order of the tiles.
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
    absorbed: bool = False

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
        return not self.absorbed and bool((np.diff(self.order) < 0).any())


def ways_of(
    node: ir.Node, slot: Slot, weight: ir.Value, tiles: Sequence[Tile], shapes: Shapes, facts: Facts
) -> list[Layer] | str:
    """The ways in which a layer can be computed in tiles, or why there are none."""
    data, result = node.inputs[slot.data], node.outputs[0]
    if data is None or len(shapes.get(data, ())) < 2 or len(shapes.get(result, ())) < 2:
        return "the shape of what it reads is not known"
    rank = len(shapes[data])
    axis, out = data_axis(slot, node, rank) % rank, result_axis(slot, node)
    layer = Layer(node, slot, weight, tiles, rank, axis, out)
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


def _divides_bias(layer: Layer) -> bool:
    """Whether the bias of a layer can be divided among its tiles, or is the same for all outputs."""
    bias = bias_of(layer)
    if bias is None:
        return True
    if bias.const_value is None or bias.is_graph_input():
        return False
    shape, place = bias.const_value.shape.numpy(), bias_place(layer)
    extent = shape[place] if len(shape) >= -place and shape else 1
    return extent == len(layer.order) or (extent == 1 and not (layer.turned and bias.const_value.size > 1))


def bias_place(layer: Layer) -> int:
    """The axis of a bias that counts outputs."""
    return 0 if operator_of(layer.node).kind == "conv" else -1 if layer.turned else layer.result


def bias_of(layer: Layer) -> ir.Value | None:
    places = operator_of(layer.node).biases
    return layer.node.inputs[places[0]] if places and places[0] < len(layer.node.inputs) else None


# -- how long it takes ----------------------------------------------------------------------------------------------


def dense_cost(layer: Layer, shapes: Shapes, costs: Costs) -> float:
    """What the layer takes as it is."""
    return _product(layer, shapes, costs, len(layer.order), layer.inputs) + costs.node


def cost(layer: Layer, shapes: Shapes, costs: Costs) -> float:
    """What the layer takes in tiles."""
    x, y = math.prod(shapes[layer.data]), math.prod(shapes[layer.node.outputs[0]])
    picked = sum(len(t.inputs) for t in layer.tiles if len(t.inputs) < layer.inputs) * x / layer.inputs
    products = sum(_product(layer, shapes, costs, len(t.outputs), len(t.inputs)) for t in layer.tiles)
    by_number = layer.axis % layer.rank == layer.rank - 1 and operator_of(layer.node).kind != "conv"
    pick = costs.picked if by_number and not layer.single else costs.moved
    moved = (x + y) * layer.turned + y * (len(layer.tiles) > 1)
    return products + costs.moved * moved + pick * (picked + y * layer.reordered) + costs.node * 2 * len(layer.tiles)


def _product(layer: Layer, shapes: Shapes, costs: Costs, outputs: int, inputs: int) -> float:
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
