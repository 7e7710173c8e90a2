"""Routers: what gives each expert of a mixture a score for each token, of which the best few are taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Ids


@dataclass(frozen=True, eq=False)
class Router:
    """One router.

    Attributes:
        scores: What is ranked.
        axis: Its axis of experts.
        experts: The terms of that axis.
        taken: How many experts each token goes through.
        bounded: Whether the scores went through a Softmax or Sigmoid already.
    """

    scores: ir.Value
    axis: int
    experts: Ids
    taken: int
    bounded: bool


def routers(structure: Structure) -> Iterator[Router]:
    """Yield the routers, in the order in which their nodes were analysed."""
    taken = {structure.terms.find(ids).tobytes(): count for ids, count in structure.least}
    for node, places in structure.mixed.items():
        for operand, axis in places:
            scores = node.inputs[operand]
            ids = None if scores is None else structure.ids(scores, axis)
            count = 0 if ids is None else taken.get(structure.terms.find(ids).tobytes(), 0)
            if scores is not None and ids is not None and count and scores.const_value is None:
                yield Router(scores, axis, ids, count, _is_bounded(scores))


def _is_bounded(scores: ir.Value) -> bool:
    node = scores.producer()
    while node is not None and operator_of(node).view and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and operator_of(node).bounded
