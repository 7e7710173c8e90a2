"""Gram matrices of all layers of a model from one pass over its blocks.

for moments in gather(model, layers, samples): ...      by weight name, block by block
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs, batches, samples_by_name
from onnxprune.graph.hints import Feeds
from onnxprune.graph.linear import Linear
from onnxprune.runtime.countdown import Countdown
from onnxprune.runtime.probe import inferred_shapes
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.cursor import Cursor
from onnxprune.runtime.stream.cuts import Block, cut_into_blocks
from onnxprune.runtime.stream.extents import value_shapes
from onnxprune.runtime.stream.padding import padding_mask, without_padding
from onnxprune.runtime.stream.rows import (
    Grid,
    Read,
    Tokens,
    grid_of,
    input_rows,
    names_read,
    output_rows,
    what_is_read,
    windows_of,
)
from onnxprune.runtime.stream.store import Store
from onnxprune.runtime.stream.sums import RowSums, rows_read

Array = npt.NDArray[Any]
BATCH = 32

_SUMS_IN_MEMORY = 256 << 20  # bytes of Gram matrices; more lie on disk

LARGEST = 160 << 20
"""Bytes of the largest value that a batch may have, as float32: of attention over long sequences, for example."""


def fitting_batches(model: ir.Model, inputs: Inputs, batch: int, *, least: int = 1) -> list[Feeds]:
    """Cut samples into batches, smaller ones where values inside the model would be very large.

    Args:
        model, inputs, least: See `data.batches.batches`.
        batch: Samples in a batch, at most.
    """
    feeds = batches(model, inputs, batch, least=least)
    shapes = inferred_shapes(model, feeds[0])
    largest = max((math.prod(shapes[out]) for node in model.graph for out in node.outputs if out in shapes), default=0)
    if 4 * largest <= LARGEST:
        return feeds
    size = max(1, min(batch, samples_by_name(model, inputs).count) * LARGEST // (4 * largest))
    return batches(model, inputs, size, least=least)


@dataclass(frozen=True, eq=False)
class Batches:
    """Calibration inputs as a stream reads them.

    Attributes:
        feeds: Batches.
        tokens: For each batch, which tokens count, shape [samples, tokens]; None where all do.
        count: How many samples there are.
    """

    feeds: Sequence[Feeds]
    tokens: Sequence[Tokens | None]
    count: int

    @staticmethod
    def of(model: ir.Model, inputs: Inputs, batch: int = BATCH, *, least: int = 1) -> Batches:
        """Cut inputs into batches; padded sequences are sorted by length and cut to that of their batch."""
        samples = samples_by_name(model, inputs)
        feeds = fitting_batches(model, samples, batch, least=least)
        first = all(axis in (0, None) for axis in samples.axes.values())
        mask = padding_mask(model, feeds) if first else None
        if mask is not None:
            feeds = without_padding(model, samples, mask, feeds, len(feeds[0][mask]))
        tokens = [None if mask is None else np.asarray(feed[mask]) != 0 for feed in feeds]
        return Batches(feeds, tokens, samples.count)

    def __add__(self, other: Batches) -> Batches:
        return Batches([*self.feeds, *other.feeds], [*self.tokens, *other.tokens], self.count + other.count)

    def sizes(self, model: ir.Model) -> dict[str, int]:
        """Elements of the values of a model for the first batch."""
        return {name: math.prod(shape) for name, shape in value_shapes(model, self.feeds[0]).items()}

    def blocks(self, model: ir.Model) -> list[Block]:
        """The blocks of a model."""
        return cut_into_blocks(model, self.sizes(model))

    def grid(self, layer: Linear, data: Read, number: int) -> Grid:
        """Which windows of a batch are looked at."""
        parts = self.count if layer.stack is None else len(self.feeds)
        return grid_of(layer, data, windows_of(layer, parts), number)

    def outputs(self, layer: Linear, output: Array, grid: Grid, number: int) -> Array:
        """The rows [g, rows, O] of a value of the shape of a layer's output, for batch `number`."""
        return output_rows(layer, output, grid, self.tokens[number])

    def inputs(self, layer: Linear, data: Read, grid: Grid, number: int) -> Read:
        """The rows [g, rows, K] that a layer's weights see of batch `number`; see `rows.input_rows`."""
        return input_rows(layer, data, grid, self.tokens[number])


def gather(model: ir.Model, layers: Sequence[Linear], samples: Batches) -> Iterator[dict[str, Moments]]:
    """Yield, block by block, sums over what its layers read, by weight name; there are no targets in them.

    Args:
        model: A normalised model.
        layers: Those that are looked at.
        samples: Calibration inputs.
    """
    yield from Gatherer(model, samples).parts(layers)


class Gatherer:
    """Sums over what layers read, for some layers after others: layers further on are reached from where it stands.

    Args:
        model: A normalised model, which stays as it is.
        samples: Calibration inputs.
        tell: Called with a line for each block.
    """

    def __init__(self, model: ir.Model, samples: Batches, tell: Callable[[str], None] | None = None) -> None:
        self._tell = tell
        self._model, self._samples = model, samples
        self._blocks = samples.blocks(model)
        self._cursor = Cursor(model, self._blocks, samples.feeds)

    def parts(self, layers: Sequence[Linear]) -> Iterator[dict[str, Moments]]:
        """Yield the sums of these layers, block by block, by weight name; layers that read one value share them."""
        inside = self.by_block(layers)
        wanted = [number for number, layers_of_block in enumerate(inside) if layers_of_block]
        if wanted and wanted[0] < self._cursor.position:
            self._cursor = Cursor(self._model, self._blocks, self._samples.feeds)
        numbers = range(self._cursor.position, wanted[-1] + 1 if wanted else 0)
        count, store = Countdown("calibrate: block", len(numbers), self._tell), Store(_SUMS_IN_MEMORY)
        for number in numbers:
            count()
            yield self._through(inside[number], store)

    def by_block(self, layers: Sequence[Linear]) -> list[list[Linear]]:
        """Return those of the layers that lie in each block."""
        of_node = {layer.node: layer for layer in layers}
        return [[of_node[node] for node in block.nodes if node in of_node] for block in self._blocks]

    def _through(self, layers: Sequence[Linear], store: Store) -> dict[str, Moments]:
        samples, sums = self._samples, RowSums(Store(0))
        keys = {layer.name: rows_read(layer) for layer in layers}
        first = {keys[layer.name]: layer for layer in reversed(layers)}
        names = list(dict.fromkeys(name for layer in layers for name in names_read(layer)))
        last = self._cursor.position + 1 == len(self._blocks)
        for number, values in enumerate(self._cursor.run(names) if last else self._cursor.advance(names)):
            for key, layer in first.items():
                data = what_is_read(layer, values)
                sums.add_inputs(key, samples.inputs(layer, data, samples.grid(layer, data, number), number))
        sums.to_store(store)
        return {name: sums.moments(key) for name, key in keys.items()}
