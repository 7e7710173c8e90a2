"""From activations to the rows that a layer's matrix sees; `sums` makes Gram matrices of them.

A layer is Z = A W^T + b (`graph.linear`): one row of A for each token of a MatMul, one for each window of a Conv. Of
a large feature map a regular grid of windows is taken, which moves from batch to batch. Rows that a stack of matrices
reads belong to one expert each (`Routed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear, tensor_of
from onnxprune.graph.stacks import Numbers

Array = npt.NDArray[Any]
Grid = tuple[npt.NDArray[np.int64], ...]
Tokens = npt.NDArray[np.bool_]

ROWS, ROWS_OF_GROUPED, ROWS_PER_INPUT = 16384, 4096, 16
"""So many rows are enough for a layer's statistics, or so many for each of its inputs where that is more.

A grouped Conv has a small matrix for each group. Its rows are cheap to fit and, being windows, dear to gather.
"""


@dataclass(frozen=True, eq=False)
class Routed:
    """Rows of which each belongs to one expert, whose matrix alone sees it.

    Attributes:
        rows: Shape [rows, K]; no copy of what is read, and of other shape, until some are taken.
        expert: The number of each row's expert, shape [rows]; -1 for a row that none sees.
        experts: How many there are.
    """

    rows: Array
    expert: Numbers
    experts: int

    @staticmethod
    def of(layer: Linear, data: Array, picked: Array | None) -> Routed:
        """What a product reads: the rows of its data, as often as matrices meet them, with the experts of these."""
        assert layer.stack is not None
        numbers = layer.stack.numbers(picked)
        rows = np.moveaxis(data, layer.data_axis, -1)
        lead = np.broadcast_shapes(rows.shape[:-2], numbers.shape)
        rows = np.broadcast_to(rows, (*lead, *rows.shape[-2:]))
        expert = np.broadcast_to(numbers[..., None], rows.shape[:-1])
        return Routed(rows, np.ascontiguousarray(expert).reshape(-1), layer.stack.experts)

    def taken(self, chosen: Numbers) -> Routed:
        """Some of the rows, as a matrix; those of nothing but zeros belong to none."""
        rows = self.rows[np.unravel_index(chosen, self.rows.shape[:-1])].astype(np.float32, copy=False)
        return Routed(rows, np.where(rows.any(axis=1), self.expert[chosen], -1), self.experts)

    def where(self, expert: Numbers) -> Routed:
        """The same where each row belongs to another expert in a second network: then to none."""
        return replace(self, expert=np.where(self.expert == expert, self.expert, -1))

    def by_expert(self) -> Iterator[tuple[int, Numbers]]:
        """Yield each expert that has rows, with the numbers of these."""
        order = np.argsort(self.expert, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(self.expert[order])) + 1):
            if len(places) and self.expert[places[0]] >= 0:
                yield int(self.expert[places[0]]), places


Read = Array | Routed
"""What a layer reads of a batch."""


def names_read(layer: Linear) -> list[str]:
    """Return the names of the values that say what a layer reads."""
    picks = None if layer.stack is None else layer.stack.picks
    return [str(value.name) for value in (layer.data, picks) if value is not None]


def what_is_read(layer: Linear, values: Mapping[str, Array]) -> Read:
    """Return what a layer reads, of values of a batch that hold those of `names_read`."""
    data, *picked = (values[name] for name in names_read(layer))
    return data if layer.stack is None else Routed.of(layer, data, picked[0] if picked else None)


def grid_of(layer: Linear, data: Read, windows: int, number: int = 0) -> Grid:
    """Return the places of a layer's output that are looked at: of a Conv for each spatial axis, else of its rows.

    Args:
        layer: The layer.
        data: What it reads, [N, C, *spatial] or [N, ..., K].
        windows: How many of one sample, about; of rows that are routed, for each expert and all of the batch.
        number: Of the batch: the grid moves with it.
    """
    if isinstance(data, Routed):
        count = len(data.expert)
        step = max(1, count // max(1, windows * layer.groups)) // 2 * 2 + 1  # odd: of each token's experts not the same
        return (np.arange(min(number % step, max(count - 1, 0)), count, step, dtype=np.int64),)
    if not layer.is_conv:
        rows = data.size // max(1, data.shape[layer.data_axis])
        step = max(1, rows // max(1, windows * data.shape[0]))
        return (np.arange(min(number % step, max(rows - 1, 0)), rows, step, dtype=np.int64),)
    spatial = [axis.outputs for axis in _axes(layer, data.shape[2:])]
    step = max(1, math.ceil((math.prod(spatial) / max(1, windows)) ** (1 / len(spatial))))
    return tuple(np.arange(min(number % step, n - 1), n, step, dtype=np.int64) for n in spatial)


def windows_of(layer: Linear, samples: int) -> int:
    """Return how many windows of each of so many samples a layer's statistics need."""
    inputs = layer.to_matrix(tensor_of(layer.weight).numpy()).shape[2]
    least = ROWS if layer.groups == 1 else ROWS_OF_GROUPED
    return -(-max(least, ROWS_PER_INPUT * inputs) // max(1, samples))


def input_rows(layer: Linear, data: Read, grid: Grid, tokens: Tokens | None = None) -> Read:
    """Return A of a batch, shape [g, rows, K], float32; of a stack of matrices the rows with the expert of each.

    Args:
        layer: The layer.
        data: What it reads.
        grid: From `grid_of`.
        tokens: Which tokens count, shape [samples, tokens]; None for all.
    """
    if isinstance(data, Routed):
        return data.taken(grid[0])
    data = data.astype(np.float32, copy=False)
    if not layer.is_conv:
        return _token_rows(np.moveaxis(data, layer.data_axis, -1), grid, tokens)[None]
    kernel = tensor_of(layer.weight).shape.numpy()[2:]
    places = [axis.inputs(index) for axis, index in zip(_axes(layer, data.shape[2:]), grid, strict=True)]
    for axis, (index, inside) in enumerate(places):
        data = np.take(data, index.reshape(-1), axis=2 + axis)
        if not inside.all():
            data *= inside.reshape(-1).astype(np.float32).reshape(-1, *[1] * (len(kernel) - 1 - axis))
    spatial = [n for index, _ in places for n in index.shape]
    samples, channels = data.shape[:2]
    data = data.reshape(samples, layer.groups, channels // layer.groups, *spatial)
    outer = [3 + 2 * i for i in range(len(kernel))]
    inner = [4 + 2 * i for i in range(len(kernel))]
    data = data.transpose(1, 0, *outer, 2, *inner)
    return np.ascontiguousarray(data).reshape(layer.groups, -1, channels // layer.groups * math.prod(kernel))


def output_rows(layer: Linear, output: Array, grid: Grid, tokens: Tokens | None = None) -> Array:
    """Return Z of a batch, shape [g, rows, O], float32; see `input_rows`. Of a stack it is [1, rows, O]."""
    output = output.astype(np.float32, copy=False)
    if layer.stack is not None:
        tokens = None  # its rows are no tokens
    if not layer.is_conv:
        return _token_rows(np.moveaxis(output, layer.result_axis, -1), grid, tokens)[None]
    for axis, index in enumerate(grid):
        output = np.take(output, index, axis=2 + axis)
    samples, channels = output.shape[:2]
    output = output.reshape(samples, layer.groups, channels // layer.groups, -1).transpose(1, 0, 3, 2)
    return np.ascontiguousarray(output).reshape(layer.groups, -1, channels // layer.groups)


def _token_rows(data: Array, grid: Grid, tokens: Tokens | None) -> Array:
    chosen = grid[0]
    if tokens is not None and data.ndim > 2 and data.shape[:2] == tokens.shape:
        counted = np.repeat(tokens.reshape(-1), math.prod(data.shape[2:-1]))
        chosen = np.flatnonzero(counted)[chosen[chosen < np.count_nonzero(counted)]]
    return data.reshape(-1, data.shape[-1])[chosen]


@dataclass(frozen=True)
class _Axis:
    """How a Conv walks along one spatial axis."""

    extent: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int

    @property
    def outputs(self) -> int:
        """How many windows there are."""
        return (self.extent + self.begin + self.end - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def inputs(self, windows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the input index of each (window, kernel element), and whether it lies inside."""
        index = windows[:, None] * self.stride - self.begin + np.arange(self.kernel) * self.dilation
        return np.clip(index, 0, self.extent - 1), (index >= 0) & (index < self.extent)


def _axes(layer: Linear, extents: Sequence[int]) -> list[_Axis]:
    attributes, kernel = layer.node.attributes, tensor_of(layer.weight).shape.numpy()[2:]
    count = len(kernel)
    strides = attributes.get_ints("strides") or [1] * count
    dilations = attributes.get_ints("dilations") or [1] * count
    pads = attributes.get_ints("pads") or [0] * 2 * count
    auto = attributes.get_string("auto_pad", "NOTSET")
    axes = []
    for i, (n, k, s, d) in enumerate(zip(extents, kernel, strides, dilations, strict=True)):
        begin, end = pads[i], pads[i + count]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
            end = total - begin
        elif auto == "VALID":
            begin = end = 0
        axes.append(_Axis(n, int(k), s, d, begin, end))
    return axes
