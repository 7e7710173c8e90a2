"""From a `Source` to tensors on the device: shuffled by the seed, and shared out among processes.

Every process draws the same order and the same batches, and takes every `world`-th sample of each batch. So a run on
two processes sees exactly the batches of a run on one. Data that stand in memory are put on the device once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxprune.data.fit import is_labels
from onnxprune.data.sources import Array, Arrays, Axes, Batch, Source, is_indexed

RESIDENT_LIMIT = 2 << 30  # bytes of data that may be put on the device as a whole


@dataclass(frozen=True)
class Shard:
    """This process's part of a batch.

    Attributes:
        inputs, targets: Its samples.
        weight: Factor on the mean loss of these samples such that the mean over processes is the mean over the batch.
        count: Samples of the whole batch.
    """

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    weight: float
    count: int


class Feed:
    """Shards of a source's batches."""

    def __init__(self, source: Source, batch_size: int, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.source = source
        self.batch_size = batch_size
        self.device = device
        self.rank = rank
        self.world = world
        self._resident: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None = None
        if isinstance(source, Arrays) and sum(a.nbytes for a in (*source.inputs, *source.targets)) <= RESIDENT_LIMIT:
            self._resident = tensors(source.inputs, device), tensors(map(_plain, source.targets), device)

    def steps(self) -> int:
        """Batches in an epoch; a source of unknown length is read through once to count them."""
        if self.source.count is not None:
            return -(-self.source.count // self.batch_size)
        return sum(1 for _ in self.source.epoch(self.batch_size))

    def epoch(self, seed: int | None = None, number: int = 0) -> Iterator[Shard]:
        """The batches of epoch `number`: in an order drawn from the seed, or as they stand where `seed` is None."""
        order = None
        if seed is not None and is_indexed(self.source):
            order = np.random.default_rng((seed, number)).permutation(self.source.count or 0)
        if self._resident is not None:
            yield from self._from_memory(order)
            return
        for batch in self.source.epoch(self.batch_size, order):
            mine = batch.rows(self._part(len(batch))) if self.world > 1 else batch
            yield self._shard(*batch_tensors(mine, self.device), len(batch))

    def _from_memory(self, order: Array | None) -> Iterator[Shard]:
        assert self._resident is not None and isinstance(self.source, Arrays)
        inputs, targets = self._resident
        count = self.source.count or 0
        sequence = torch.from_numpy(np.arange(count) if order is None else order).to(self.device)
        for start in range(0, count, self.batch_size):
            batch = sequence[start : start + self.batch_size]
            mine = batch[torch.from_numpy(self._part(len(batch))).to(self.device)] if self.world > 1 else batch
            axes = self.source.whole.sample_axes, self.source.whole.target_sample_axes
            chosen = [_rows(arrays, along, mine) for arrays, along in zip((inputs, targets), axes, strict=True)]
            yield self._shard(chosen[0], chosen[1], len(batch))

    def _part(self, count: int) -> Array:
        """The sample numbers of this process; at least one, since every process has to take part in every step."""
        mine = np.arange(count)[self.rank :: self.world]
        return mine if len(mine) else np.zeros(1, dtype=np.int64)

    def _shard(self, inputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], count: int) -> Shard:
        mine = len(range(self.rank, count, self.world))
        return Shard(inputs, targets, mine * self.world / count, count)


def _rows(tensors: tuple[Tensor, ...], axes: Axes, indices: Tensor) -> tuple[Tensor, ...]:
    """Those samples of each tensor along its axis; one without such an axis holds for all."""
    pairs = zip(tensors, axes, strict=True)
    return tuple(t if axis is None else t[indices] if axis == 0 else t.index_select(axis, indices) for t, axis in pairs)


def _plain(target: Array) -> Array:
    """Class numbers as int64 and values as float32, which is what the losses take."""
    return target.astype(np.int64) if is_labels(target) else target.astype(np.float32)


def tensors(arrays: Sequence[Array] | Iterator[Array] | map[Array], device: torch.device) -> tuple[Tensor, ...]:
    """Tensors of the arrays' own types on the device."""
    return tuple(_tensor(array).to(device) for array in arrays)


def _tensor(array: Array) -> Tensor:
    array = np.array(array) if not (array.flags.writeable and array.flags.c_contiguous) else array
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def batch_tensors(batch: Batch, device: torch.device) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(inputs, targets) of one batch on the device."""
    return tensors(batch.inputs, device), tensors(map(_plain, batch.targets), device)
