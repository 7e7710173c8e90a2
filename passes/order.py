"""The order of a layer's outputs, absorbed by what reads them: who looks at the outputs, and which constants follow.

Outputs in another order compute the same where every reader follows: operators that act on each output by itself pass
the order on, constants with a number for each output are put in the order, and the layers behind read their inputs in
it. One reader that cannot follow is enough, and the order has to be undone by a Gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import axes_at_node, data_axis, group_count, slots_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Facts
from onnxprune.graph.tiles import Indices

Place = tuple[ir.Node, int, int]
"""A constant that follows an order: the node that reads it, which input it is there, and its axis."""


class _CannotFollowError(Exception):
    """A reader cannot follow."""


@dataclass
class Followers:
    """What follows when the outputs of a layer change their order.

    Attributes:
        places: Constants that are put in the order.
        layers: Of these, the weights of layers behind, which read their inputs in the order.
    """

    places: list[Place] = field(default_factory=list)
    layers: list[Place] = field(default_factory=list)

    def follow(self, edit: Editor, order: Indices) -> None:
        """Put the constants in an order: what comes at place i is what stood at ``order[i]``."""
        readers: dict[ir.Value, list[Place]] = {}
        for place in (*self.places, *self.layers):
            value = place[0].inputs[place[1]]
            assert value is not None
            readers.setdefault(value, []).append(place)
        for value, places in readers.items():
            assert value.const_value is not None
            axes = {axis % len(value.const_value.shape) for _, _, axis in places}
            content = np.take(value.const_value.numpy(), order, axis=places[0][2])
            if len(axes) == 1 and len(places) == len(list(value.uses())) and not value.is_graph_output():
                value.const_value = ir.Tensor(content, name=value.name)
                continue
            for node, index, axis in places:
                ordered = np.take(value.const_value.numpy(), order, axis=axis)
                node.replace_input_with(index, edit.constant(ordered, str(value.name)))


def followers(start: ir.Value, axis: int, facts: Facts) -> Followers | None:
    """Return what follows when indices of an axis of a value change their order; None where something cannot.

    Args:
        start: The output of a layer.
        axis: Counted from 0.
        facts: Shapes of the values.
    """
    try:
        return _Walk(facts).walk(start, axis)
    except _CannotFollowError:
        return None


class _Walk:
    """From the outputs of a layer to all that reads them."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.width = 0
        self.axes: dict[ir.Value, int] = {}  # axes that carry the order, counted from the end
        self.beside: list[tuple[ir.Value, int]] = []  # operands that must carry it too, or have one number for all
        self.waiting: list[ir.Value] = []
        self.found = Followers()

    def walk(self, start: ir.Value, axis: int) -> Followers:
        shape = self._shape(start)
        self.width = shape[axis] or 0
        self._reach(start, axis - len(shape))
        while self.waiting:
            value = self.waiting.pop()
            if value.is_graph_output():
                raise _CannotFollowError
            for node, index in value.uses():
                if node.graph is not start.graph:
                    raise _CannotFollowError
                self._read(node, index, value)
        for value, place in self.beside:
            shape = self._shape(value)
            if self.axes.get(value) != place and not (len(shape) < -place or shape[place] == 1):
                raise _CannotFollowError
        return self.found

    def _shape(self, value: ir.Value) -> tuple[int | None, ...]:
        shape = self.facts.shape(value)
        if shape is None:
            raise _CannotFollowError
        return shape

    def _reach(self, value: ir.Value, place: int) -> None:
        if self.axes.setdefault(value, place) != place:
            raise _CannotFollowError
        if value not in self.waiting:
            self.waiting.append(value)

    def _pass_on(self, node: ir.Node, place: int) -> None:
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            raise _CannotFollowError
        if self.axes.get(node.outputs[0]) != place:
            self._reach(node.outputs[0], place)

    def _read(self, node: ir.Node, index: int, value: ir.Value) -> None:
        operator, place, rank = operator_of(node), self.axes[value], len(self._shape(value))
        axis = place + rank
        if operator.kind == "conv":
            self._convolution(node, index, axis, place)
        elif operator.weights:
            self._product(node, index, axis, rank)
        elif operator.pointwise and not operator.random and operator.reads(index):
            for other in [i for i in range(len(node.inputs)) if i != index]:
                self._operand(node, other, place)
            self._pass_on(node, place)
        elif operator.kind == "norm" and operator.passes_units and index == 0 and axis == 1:
            for other in range(1, len(node.inputs)):
                self._constant(node, other, 0)
            self._pass_on(node, place)
        elif operator.shrinks == "pool" and index == 0 and axis == 1:
            self._pass_on(node, place)
        elif operator.movement == "permute":
            order = [int(i) for i in node.attributes.get_ints("perm") or range(rank)[::-1]]
            self._pass_on(node, order.index(axis) - rank)
        else:
            raise _CannotFollowError

    def _convolution(self, node: ir.Node, index: int, axis: int, place: int) -> None:
        if index != 0 or axis != 1 or not operator_of(node).divisible:
            raise _CannotFollowError
        if group_count(node) == 1:
            self.found.layers.append(self._checked(node, 1, 1))
        elif group_count(node) == self.width:  # every channel by itself
            for other in range(1, len(node.inputs)):
                self._constant(node, other, 0)
            self._pass_on(node, place)
        else:
            raise _CannotFollowError

    def _product(self, node: ir.Node, index: int, axis: int, rank: int) -> None:
        for slot in slots_of(node):
            weight = node.inputs[slot.input]
            shape = None if weight is None or weight.const_value is None else weight.const_value.shape.numpy()
            if slot.data == index and slot.input != index and shape is not None and operator_of(node).divisible:
                _, reduction = axes_at_node(slot, node, len(shape))
                if data_axis(slot, node, rank) % rank == axis:
                    self.found.layers.append(self._checked(node, slot.input, reduction))
                    return
        raise _CannotFollowError

    def _operand(self, node: ir.Node, index: int, place: int) -> None:
        value = node.inputs[index]
        if value is None:
            return
        if value.const_value is None:
            self.beside.append((value, place))
            return
        shape = value.const_value.shape.numpy()
        if len(shape) >= -place and shape[place] != 1:
            self._constant(node, index, place)

    def _constant(self, node: ir.Node, index: int, axis: int) -> None:
        if node.inputs[index] is not None:
            place = self._checked(node, index, axis)
            if place not in self.found.places:
                self.found.places.append(place)

    def _checked(self, node: ir.Node, index: int, axis: int) -> Place:
        value = node.inputs[index]
        if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
            raise _CannotFollowError
        shape: Sequence[int] = value.const_value.shape.numpy()
        if shape[axis] != self.width:
            raise _CannotFollowError
        return node, index, axis
