"""What each initializer is to the network: the weight of a convolution, the bias of a fully connected layer, ...

Decided by the node that consumes it, looked at through nodes that only move or cast numbers, never by its name or type.
Freezing, re-initialisation and dropout before fully connected layers rest on this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxprune.errors import RecipeError
from onnxprune.graph.layers import fan_in
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Kind, Role


@dataclass(frozen=True)
class Layer:
    """The use of one initializer.

    Attributes:
        name: The initializer (or the output of the Constant node).
        kind, role: See above; a bias added by an Add node counts to the layer whose output it is added to.
        node: Name of the consuming node.
        operator: Its operator.
        slot: Which of its inputs the initializer (or what is made of it) is.
        fan_in: Inputs that one output sums over; 0 where that means nothing.
    """

    name: str
    kind: Kind
    role: Role
    node: str
    operator: str
    slot: int
    fan_in: int


def find_layers(model: ir.Model) -> dict[str, Layer]:
    """Every initializer and every Constant of the main graph that some node consumes, by name."""
    layers = {}
    for value in _constants(model.graph):
        uses = [_use(value, *use) for use in _final_uses(value)]
        known = [layer for layer in uses if layer.kind != "other"]
        if uses and value.name:
            layers[value.name] = (known or uses)[0]
    return layers


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    yield from (node.outputs[0] for node in graph if node.op_type == "Constant")


def _final_uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """(node, slot) of each use, looked at through nodes that only move numbers."""
    for node, slot in value.uses():
        if passes_weights(node) and slot == 0 and node.outputs:
            yield from _final_uses(node.outputs[0])
        else:
            yield node, slot


def passes_weights(node: ir.Node) -> bool:
    """Whether a node only moves, casts or dequantises numbers: what lies behind it is still the same weight."""
    return operator_of(node).view or operator_of(node).dequantises


def _use(value: ir.Value, node: ir.Node, slot: int) -> Layer:
    operator = operator_of(node)
    kind, role = operator.kind, operator.role(slot)
    if operator.adds:
        kind = _kind_of_source(node, slot)
        role = "other" if kind == "other" else "bias"
    summed = _fan_in(value, node) if role == "weight" else 0
    kind = kind if role != "other" else "other"
    return Layer(value.name or "", kind, role, node.name or "", node.op_type, slot, summed)


def _kind_of_source(node: ir.Node, slot: int) -> Kind:
    """The kind of layer that the other operand of a sum comes out of, for a bias that is added to it."""
    value = next((v for i, v in enumerate(node.inputs) if i != slot), None)
    while value is not None and (maker := value.producer()) is not None:
        if (kind := operator_of(maker).kind) in ("conv", "fc"):
            return kind
        if not passes_weights(maker):
            return "other"
        value = maker.inputs[0]
    return "other"


def _fan_in(value: ir.Value, node: ir.Node) -> int:
    """For a recurrent cell its hidden size, as PyTorch draws its weights by that."""
    if operator_of(node).kind != "rnn":
        return fan_in(value, node)
    shape = [d if isinstance(d, int) else 1 for d in value.shape] if value.shape is not None else [0]
    return node.attributes.get_int("hidden_size", shape[-1])


def matching(patterns: Sequence[str], layers: Mapping[str, Layer]) -> set[str]:
    """The initializers that the patterns name: `conv`, `fc`, or a shell pattern of initializer or node names.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in ("conv", "fc"):
            matched = {name for name, layer in layers.items() if layer.kind == pattern}
        else:
            matched = {
                name
                for name, layer in layers.items()
                if fnmatchcase(name, pattern) or (layer.node and fnmatchcase(layer.node, pattern))
            }
        if not matched:
            raise RecipeError(f"--freeze '{pattern}' matches no weight: give conv, fc or a pattern of names.")
        chosen |= matched
    return chosen
