"""Models that compute the same numbers at every run, and no others where sums are added in another order."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.model_io.bodies import nodes_of

_IN_BYTES, _IN_FLOATS = 4, 1
"""Values of ``accuracy_level``, an attribute of ONNX Runtime's products with packed weights: how it may round the other
operand. Rounded to 8 bits, a number jumps by a whole step where sums differ in the last bit."""


def seeded(model: ir.Model) -> ir.Model:
    """Return a model whose random operators draw the same numbers at every run: itself, or a copy with seeds."""

    def seed(node: ir.Node) -> None:  # by name: two forms of a model have not the same number of nodes
        number = zlib.crc32(str(node.outputs[0].name).encode()) % (1 << 20)
        node.attributes["seed"] = ir.AttrFloat32("seed", float(number))

    return _changed(model, _draws, seed)


def comparable(model: ir.Model) -> ir.Model:
    """Return a model for a comparison of removed and masked: seeded, and with activations that no kernel rounds."""

    def compute_in_floats(node: ir.Node) -> None:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", _IN_FLOATS)

    return _changed(seeded(model), _rounds, compute_in_floats)


def draws(model: ir.Model) -> bool:
    """Say whether the model draws random numbers: with seeds, each session draws the same ones, run after run."""
    return any(map(_draws, nodes_of(model.graph)))


def _draws(node: ir.Node) -> bool:
    return operator_of(node).random and node.op_type != "Dropout"


def _rounds(node: ir.Node) -> bool:
    return "accuracy_level" in node.attributes and node.attributes.get_int("accuracy_level") == _IN_BYTES


def _changed(model: ir.Model, which: Callable[[ir.Node], bool], change: Callable[[ir.Node], None]) -> ir.Model:
    """The model itself, or a copy with a change of some nodes, where there are any."""
    if not any(which(node) for node in nodes_of(model.graph)):
        return model
    copy = model.clone()
    for node in nodes_of(copy.graph):
        if which(node):
            change(node)
    return copy
