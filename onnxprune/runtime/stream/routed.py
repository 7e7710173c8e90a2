"""Sums of what the matrices of a stack read, by expert and channel: each expert's of the tokens that go to it alone.

moments = routed_moments(model, layers, samples)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.linear import Linear
from onnxprune.runtime.countdown import Countdown
from onnxprune.runtime.statistics import ChannelMoments
from onnxprune.runtime.stream.cursor import Cursor
from onnxprune.runtime.stream.gather import Batches
from onnxprune.runtime.stream.rows import Routed, names_read, what_is_read


def routed_moments(
    model: ir.Model, layers: Sequence[Linear], samples: Batches, tell: Callable[[str], None] | None = None
) -> dict[str, ChannelMoments]:
    """Sums over all rows, by weight name; arrays have the shape [experts, K].

    A row counts for an expert that it does not go to as one of zeros: the mean square of an input is that of the tokens
    that the expert gets, times their share.

    Args:
        model: The model that the layers are of; it stays as it is.
        layers: Products with stacks of matrices.
        samples: Calibration inputs.
        tell: Called with a line for each block.
    """
    blocks, of_node = samples.blocks(model), {layer.node: layer for layer in layers}
    cursor, sums = Cursor(model, blocks, samples.feeds), {layer.name: _Sums() for layer in layers}
    count, left = Countdown("calibrate: block", len(blocks), tell), len(of_node)
    for block in blocks:
        count()
        inside = [of_node[node] for node in block.nodes if node in of_node]
        names = list(dict.fromkeys(name for layer in inside for name in names_read(layer)))
        left -= len(inside)
        for values in cursor.advance(names) if left else cursor.run(names):
            for layer in inside:
                rows = what_is_read(layer, values)
                assert isinstance(rows, Routed)
                sums[layer.name].add(rows.taken(np.arange(len(rows.expert))))
        if not left:
            break
    return {name: part.moments() for name, part in sums.items()}


class _Sums:
    """Sums of one stack."""

    def __init__(self) -> None:
        self._count, self._parts = 0, np.zeros(())

    def add(self, rows: Routed) -> None:
        """Add the rows of a batch."""
        width = rows.rows.shape[1]
        if not self._count:
            self._parts = np.zeros((4, rows.experts, width))
        self._count += len(rows.rows)
        above = np.zeros((rows.experts, width))
        for expert, places in rows.by_expert():
            x = rows.rows[places].astype(np.float64)
            self._parts[:3, expert] += [x.sum(axis=0), np.square(x).sum(axis=0), np.abs(x).sum(axis=0)]
            above[expert] = np.count_nonzero(x > 0, axis=0)
        self._parts[3] += len(rows.rows) - above

    def moments(self) -> ChannelMoments:
        """Return the sums so far."""
        total, squares, magnitudes, zeros = self._parts
        return ChannelMoments(float(self._count), total, squares, magnitudes, zeros)
