"""What each initializer is to the network: the weight of a convolution, the bias of a fully connected layer, ...

Decided by the node that consumes it, looked at through nodes that only move or cast numbers, never by its name or type.
Freezing, re-initialisation and dropout before fully connected layers rest on this.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import onnx_ir as ir

from onnxprune.errors import RecipeError

Kind = Literal["conv", "fc", "rnn", "norm", "embedding", "other"]
Role = Literal["weight", "bias", "scale", "mean", "variance", "other"]

MOVERS = {"Transpose", "Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "DequantizeLinear"}
SLOTS: dict[str, tuple[Kind, dict[int, Role]]] = {
    "Conv": ("conv", {1: "weight", 2: "bias"}),
    "ConvTranspose": ("conv", {1: "weight", 2: "bias"}),
    "Gemm": ("fc", {0: "weight", 1: "weight", 2: "bias"}),
    "MatMul": ("fc", {0: "weight", 1: "weight"}),
    "LSTM": ("rnn", {1: "weight", 2: "weight", 3: "bias", 7: "weight"}),
    "GRU": ("rnn", {1: "weight", 2: "weight", 3: "bias"}),
    "RNN": ("rnn", {1: "weight", 2: "weight", 3: "bias"}),
    "BatchNormalization": ("norm", {1: "scale", 2: "bias", 3: "mean", 4: "variance"}),
    "InstanceNormalization": ("norm", {1: "scale", 2: "bias"}),
    "LayerNormalization": ("norm", {1: "scale", 2: "bias"}),
    "GroupNormalization": ("norm", {1: "scale", 2: "bias"}),
    "RMSNormalization": ("norm", {1: "scale"}),
    "Gather": ("embedding", {0: "weight"}),
}


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
        found = [_use(value, *use) for use in _final_uses(value)]
        known = [layer for layer in found if layer.kind != "other"]
        if found and value.name:
            layers[value.name] = (known or found)[0]
    return layers


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    yield from (node.outputs[0] for node in graph if node.op_type == "Constant")


def _final_uses(value: ir.Value, swapped: bool = False) -> Iterator[tuple[ir.Node, int, bool]]:
    """(node, slot, last two axes swapped) of each use, looked at through nodes that only move numbers."""
    for node, slot in value.uses():
        if node.op_type in MOVERS and slot == 0 and node.outputs:
            yield from _final_uses(node.outputs[0], swapped ^ _swaps(node))
        else:
            yield node, slot, swapped


def _swaps(node: ir.Node) -> bool:
    if node.op_type != "Transpose":
        return False
    perm = node.attributes.get("perm")
    return perm is None or list(perm.as_ints())[-2:] == [len(perm.as_ints()) - 1, len(perm.as_ints()) - 2]


def _use(value: ir.Value, node: ir.Node, slot: int, swapped: bool) -> Layer:
    kind, roles = SLOTS.get(node.op_type, ("other", {}))
    role = roles.get(slot, "other")
    if node.op_type == "Add":
        kind = _kind_of_source(node.inputs[1 - slot])
        role = "other" if kind == "other" else "bias"
    shape = [d if isinstance(d, int) else 1 for d in value.shape] if value.shape is not None else []
    fan_in = _fan_in(node, slot, shape, swapped) if role == "weight" else 0
    kind = kind if role != "other" else "other"
    return Layer(value.name or "", kind, role, node.name or "", node.op_type, slot, fan_in)


def _kind_of_source(value: ir.Value | None) -> Kind:
    """The kind of layer that a value comes out of, for a bias that is added to it."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("Conv", "ConvTranspose"):
            return "conv"
        if node.op_type in ("Gemm", "MatMul"):
            return "fc"
        if node.op_type not in MOVERS:
            return "other"
        value = node.inputs[0]
    return "other"


def _fan_in(node: ir.Node, slot: int, shape: Sequence[int], swapped: bool) -> int:
    if node.op_type in ("Conv", "ConvTranspose"):
        return math.prod(shape[1:])
    if node.op_type in ("LSTM", "GRU", "RNN"):
        hidden = node.attributes.get("hidden_size")
        return hidden.as_int() if hidden is not None else shape[-1]
    if node.op_type in ("Gemm", "MatMul") and len(shape) >= 2:
        flag = node.attributes.get("transB" if slot == 1 else "transA")
        transposed = (flag is not None and bool(flag.as_int())) ^ swapped
        contracted_first = slot == 1  # A [M, K] @ B [K, N]: the right operand sums over its first matrix axis
        return shape[-2] if contracted_first ^ transposed else shape[-1]
    return 0


def matching(patterns: Sequence[str], layers: Mapping[str, Layer]) -> set[str]:
    """The initializers that the patterns name: `conv`, `fc`, or a shell pattern of initializer or node names.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern in ("conv", "fc"):
            found = {name for name, layer in layers.items() if layer.kind == pattern}
        else:
            found = {
                name
                for name, layer in layers.items()
                if fnmatchcase(name, pattern) or (layer.node and fnmatchcase(layer.node, pattern))
            }
        if not found:
            raise RecipeError(f"'{pattern}' matches no weight of the model; conv, fc or a pattern of names is wanted.")
        chosen |= found
    return chosen
