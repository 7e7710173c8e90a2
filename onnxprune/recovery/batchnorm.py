"""BatchNorm re-estimation: running mean and variance become those of what the pruned network feeds it.

    mean = E[x],    variance = E[x^2] - E[x]^2        over samples and places, by channel

After pruning a BatchNormalization normalises by the statistics of a network that is no more (Ioffe and Szegedy 2015,
algorithm 2, run anew; Li et al. 2020, EagleEye, section 3.3). Where it was folded into a layer before it, the method
`moments` does the same to that layer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from onnxprune.graph.hints import Feeds
from onnxprune.graph.linear import Matrix
from onnxprune.runtime.statistics import channel_moments


def normalisations(model: ir.Model, changed: Collection[ir.Value]) -> list[ir.Node]:
    """The BatchNormalizations of the main graph that read a changed value and have statistics of their own."""
    return [
        node
        for node in model.graph
        if node.op_type == "BatchNormalization"
        and node.domain == ""
        and not node.attributes.get_int("training_mode", 0)
        and node.inputs[0] in changed
        and all(_owned(v) for v in node.inputs[3:5])
    ]


def statistics(model: ir.Model, node: ir.Node, feeds: Sequence[Feeds]) -> tuple[Matrix, Matrix] | None:
    """Return mean and variance of what a BatchNormalization reads, by channel; None where it cannot be measured."""
    place = (str(node.inputs[0].name if node.inputs[0] is not None else ""), 1)
    moments = channel_moments(model, [place], feeds).get(place)
    return None if moments is None else (moments.total / moments.count, moments.variance)


def _owned(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(list(value.uses())) == 1
