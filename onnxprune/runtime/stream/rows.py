"""From activations to the rows that a layer's matrix sees; `sums` makes Gram matrices of them.

A layer is Z = A W^T + b (`runtime.linear`): one row of A for each token of a MatMul, one for each window of a Conv. Of
a large feature map a regular grid of windows is taken, which moves from batch to batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear, tensor_of

Array = npt.NDArray[Any]
Grid = tuple[npt.NDArray[np.int64], ...]
Tokens = npt.NDArray[np.bool_]

ROWS, ROWS_OF_GROUPED, ROWS_PER_INPUT = 16384, 4096, 16
"""So many rows are enough for a layer's statistics, or so many for each of its inputs where that is more.

A grouped Conv has a small matrix for each group. Its rows are cheap to fit and, being windows, dear to gather.
"""


def grid_of(layer: Linear, data: Array, windows: int, number: int = 0) -> Grid:
    """Return the places of a layer's output that are looked at: of a Conv for each spatial axis, else of its rows.

    Args:
        layer: The layer.
        data: What it reads, [N, C, *spatial] or [N, ..., K].
        windows: How many of one sample, about.
        number: Of the batch: the grid moves with it.
    """
    if not layer.is_conv:
        rows = data.size // max(1, data.shape[layer.data_axis])
        step = max(1, rows // max(1, windows * data.shape[0]))
        return (np.arange(min(number % step, max(rows - 1, 0)), rows, step, dtype=np.int64),)
    spatial = [axis.outputs for axis in _axes(layer, data.shape[2:])]
    step = max(1, math.ceil((math.prod(spatial) / max(1, windows)) ** (1 / len(spatial))))
    return tuple(np.arange(min(number % step, n - 1), n, step, dtype=np.int64) for n in spatial)


def windows_of(layer: Linear, samples: int) -> int:
    """Return how many windows of each of so many samples a layer's statistics need."""
    inputs = layer.matrix().shape[2]
    least = ROWS if layer.groups == 1 else ROWS_OF_GROUPED
    return -(-max(least, ROWS_PER_INPUT * inputs) // max(1, samples))


def input_rows(layer: Linear, data: Array, grid: Grid, tokens: Tokens | None = None) -> Array:
    """Return A of a batch, shape [g, rows, K], float32.

    Args:
        layer: The layer.
        data: What it reads.
        grid: From `grid_of`.
        tokens: Which tokens count, shape [samples, tokens]; None for all.
    """
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
    """Return Z of a batch, shape [g, rows, O], float32; see `input_rows`."""
    output = output.astype(np.float32, copy=False)
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
