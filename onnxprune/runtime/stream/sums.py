"""Sums over the rows that layers see, brought up to date batch by batch; layers that read the same rows share them.

    sums = RowSums()
    sums.add_inputs("x", a); sums.add_targets("x", "layer", a, z)       for each batch
    sums.moments("x", "layer")

Gram matrices of wide layers are the largest arrays of a recovery: for 11,008 inputs 1 GB each. So there is one for all
layers that read the same rows, and nothing is added up in a second one. Products with the targets of very wide layers,
as the head of a language model, are added up in a file, some outputs at a time.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.rows import Read, Routed
from onnxprune.runtime.stream.store import Store

Array = npt.NDArray[Any]
Matrix = npt.NDArray[np.float64]


def rows_read(layer: Linear) -> Hashable:
    """What the rows that a layer's weights see depend on; of a Conv on its window, too, so that none shares them.

    Nor does a stack of matrices: its rows are those that go to the same expert in two networks, as each pair has it.
    """
    alone = layer.is_conv or layer.stack is not None
    return (layer.data, layer.name if alone else layer.data_axis, layer.groups)


@dataclass(eq=False)
class _Inputs:
    rows: float
    a: Matrix
    aa: Matrix


@dataclass(eq=False)
class _Targets:
    z: Matrix
    az: Matrix
    zz: Matrix


_AT_ONCE = 1 << 23
"""Products of inputs and outputs that are added at once: those of all layers but very wide ones."""


class RowSums:
    """Sums of some layers: see `Moments` for what they are.

    Args:
        store: Where those of very wide layers are added up.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._inputs: dict[Hashable, _Inputs] = {}
        self._targets: dict[Hashable, _Targets] = {}

    def __contains__(self, rows: Hashable) -> bool:
        return rows in self._inputs

    def add_inputs(self, rows: Hashable, a: Read) -> None:
        """Add a batch of what layers read.

        Args:
            rows: Which rows they are.
            a: Shape [g, rows, K]; or rows of which each belongs to one group, and counts for the others as zeros.
        """
        if isinstance(a, Routed):
            self._add_routed(rows, a)
            return
        groups, count, width = a.shape
        if rows not in self._inputs:
            self._inputs[rows] = _Inputs(0.0, np.zeros((groups, width)), np.zeros((groups, width, width)))
        sums = self._inputs[rows]
        sums.rows += count
        sums.a += np.matmul(np.ones(count, np.float32), a)
        sums.aa += np.matmul(a.swapaxes(1, 2), a)  # of one array, so that half of the products are enough

    def _add_routed(self, rows: Hashable, a: Routed) -> None:
        """The same of a stack of matrices, expert by expert."""
        count, width = a.rows.shape
        if rows not in self._inputs:
            self._inputs[rows] = _Inputs(0.0, np.zeros((a.experts, width)), self._zeros((a.experts, width, width)))
        sums = self._inputs[rows]
        sums.rows += count
        for expert, places in a.by_expert():
            part = a.rows[places]
            sums.a[expert] += part.sum(axis=0, dtype=np.float64)
            sums.aa[expert] += part.T @ part

    def _zeros(self, shape: tuple[int, ...]) -> Matrix:
        """Zeros to add to: in a file where there are many, and a store for them."""
        if self._store is None or math.prod(shape) <= _AT_ONCE:
            return np.zeros(shape)
        return self._store.zeros(shape)

    def add_targets(self, layer: Hashable, a: Read, z: Array) -> None:
        """Add what a layer should give for rows that were added.

        Args:
            layer: Which layer.
            a, z: Shapes [g, rows, K] and [g, rows, O]; where each row belongs to one group, z is [1, rows, O].
        """
        if isinstance(a, Routed):
            self._add_routed_targets(layer, a, z[0])
            return
        groups, count, width = z.shape
        if layer not in self._targets:
            flat = (groups, width)
            self._targets[layer] = _Targets(np.zeros(flat), self._zeros((groups, a.shape[2], width)), np.zeros(flat))
        sums, step = self._targets[layer], max(1, _AT_ONCE // (groups * a.shape[2]))
        for start in range(0, width, step):
            some = slice(start, start + step)
            part = z[:, :, some]
            sums.z[:, some] += np.matmul(np.ones(count, np.float32), part)
            sums.az[:, :, some] += np.matmul(a.swapaxes(1, 2), part)
            sums.zz[:, some] += np.square(part).sum(axis=1)

    def _add_routed_targets(self, layer: Hashable, a: Routed, z: Array) -> None:
        width, flat = a.rows.shape[1], (a.experts, z.shape[1])
        if layer not in self._targets:
            az = self._zeros((a.experts, width, z.shape[1]))
            self._targets[layer] = _Targets(np.zeros(flat), az, np.zeros(flat))
        sums = self._targets[layer]
        for expert, places in a.by_expert():
            part = z[places]
            sums.z[expert] += part.sum(axis=0, dtype=np.float64)
            sums.az[expert] += a.rows[places].T @ part
            sums.zz[expert] += np.square(part).sum(axis=0)

    def moments(self, rows: Hashable, layer: Hashable = None) -> Moments:
        """Return the sums of a layer that reads some rows; without a layer there are no targets in them."""
        inputs, targets = self._inputs[rows], self._targets.get(layer)
        if targets is None:
            none = np.zeros((*inputs.a.shape, 0))
            return Moments(inputs.rows, inputs.a, none[:, 0], inputs.aa, none, none[:, 0])
        return Moments(inputs.rows, inputs.a, targets.z, inputs.aa, targets.az, targets.zz)

    def to_store(self, store: Store) -> None:
        """Keep the large sums in a store; nothing is added afterwards."""
        for rows, inputs in self._inputs.items():
            self._inputs[rows] = replace(inputs, aa=store.held(inputs.aa))
        for layer, targets in self._targets.items():
            if not isinstance(targets.az, np.memmap):
                self._targets[layer] = replace(targets, az=store.held(targets.az))
