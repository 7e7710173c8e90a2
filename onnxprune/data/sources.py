"""Batches of labelled or unlabelled samples, as numpy arrays; nothing here knows a file format or torch.

A `Batch` holds one array per model input, and one per target (none where there are no labels). A `Source` gives
batches, epoch by epoch. `Arrays` is the source for data that stand in memory: .npz and CSV files, and the tests.
`readers.py` makes sources from what the user names, `fit.py` compares them with a model.

Arrays have the model's own layout. Samples lie along the first axis unless `axes` says otherwise: a state [2, N, 24]
has its samples along axis 1, and an array without such an axis (a sampling rate, say) holds for all samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array = npt.NDArray[Any]
Axes = tuple[int | None, ...]
"""For each array, the axis that counts samples; None where one array holds for all of them."""


def first_axes(arrays: Sequence[Array]) -> Axes:
    """The axes of arrays whose first axis counts samples."""
    return tuple(0 if np.ndim(array) else None for array in arrays)


def lengths(arrays: Sequence[Array], axes: Axes) -> set[int]:
    """How many samples the arrays hold: one number where they agree."""
    return {array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None}


def pick(array: Array, indices: Array, axis: int | None = 0) -> Array:
    """Those samples of an array; an array without axes, or without that of samples, holds for all."""
    if axis is None or not array.ndim:
        return array
    return array[indices] if axis == 0 else np.take(array, indices, axis)


@dataclass(frozen=True)
class Batch:
    """Some samples: `inputs` in the order of the model's inputs, `targets` in that of its outputs (or empty).

    Attributes:
        inputs, targets: Arrays in the model's layout.
        axes, target_axes: Which axis of each counts samples; None stands for the first axes.
    """

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...] = ()
    axes: Axes | None = None
    target_axes: Axes | None = None

    @property
    def sample_axes(self) -> Axes:
        """Which axis of each input counts samples."""
        return first_axes(self.inputs) if self.axes is None else self.axes

    @property
    def target_sample_axes(self) -> Axes:
        """Which axis of each target counts samples."""
        return first_axes(self.targets) if self.target_axes is None else self.target_axes

    def __len__(self) -> int:
        return next(iter(lengths(self.inputs, self.sample_axes)), 1)

    def rows(self, indices: Array) -> Batch:
        """Those samples of the batch."""
        inputs = tuple(pick(a, indices, axis) for a, axis in zip(self.inputs, self.sample_axes, strict=True))
        targets = tuple(pick(a, indices, axis) for a, axis in zip(self.targets, self.target_sample_axes, strict=True))
        return Batch(inputs, targets, self.axes, self.target_axes)


class Source(Protocol):
    """Where batches come from.

    `count` is the number of samples, or None where only the run itself tells. `rows` picks samples by index; a source
    that can only be read from front to back has no `rows` and gives `epoch` alone.
    """

    @property
    def count(self) -> int | None: ...

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        """One pass over the data; `order` are the sample numbers in the order wanted (None: as they stand)."""


class Indexed(Source, Protocol):
    """A source whose samples can be picked by number."""

    def rows(self, indices: Array) -> Batch: ...


@dataclass(frozen=True)
class Arrays:
    """Samples in memory; see `Batch` for the axes."""

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...] = ()
    axes: Axes | None = None
    target_axes: Axes | None = None

    def __post_init__(self) -> None:
        whole = self.whole
        counts = lengths(self.inputs, whole.sample_axes) | lengths(self.targets, whole.target_sample_axes)
        if len(counts) > 1:
            raise DataError(f"The arrays of the data hold different numbers of samples: {sorted(counts)}.")

    @property
    def whole(self) -> Batch:
        """All samples as one batch."""
        return Batch(self.inputs, self.targets, self.axes, self.target_axes)

    @property
    def count(self) -> int:
        return len(self.whole)

    def rows(self, indices: Array) -> Batch:
        return self.whole.rows(indices)

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return batches_of(self, batch_size, order)


@dataclass(frozen=True)
class Subset:
    """Some samples of an indexed source."""

    whole: Indexed
    chosen: Array

    @property
    def count(self) -> int:
        return len(self.chosen)

    def rows(self, indices: Array) -> Batch:
        return self.whole.rows(self.chosen[indices])

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return batches_of(self, batch_size, order)


def batches_of(source: Indexed, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
    """Batches of an indexed source; the last one holds what is left."""
    count = source.count or 0
    sequence = np.arange(count) if order is None else order
    for start in range(0, len(sequence), batch_size):
        yield source.rows(sequence[start : start + batch_size])


def is_indexed(source: Source) -> bool:
    """True where samples can be picked by number, so that the source can be shuffled and split."""
    return hasattr(source, "rows")


def split(source: Source, share: float, seed: int) -> tuple[Source, Source | None]:
    """Hold out `share` of the samples, chosen by `seed`: (training, validation).

    Validation is None where nothing is to be held out, or where the source can only be read from front to back.

    Raises:
        DataError: So few samples that one side would be empty.
    """
    if share == 0 or not is_indexed(source):
        return source, None
    count = source.count or 0
    held = round(count * share)
    if held == 0 or held == count:
        raise DataError(
            f"{count} samples are too few to hold out {share:.0%} for validation: give evaluation data, or set "
            "the validation share to 0."
        )
    order = np.random.default_rng(seed).permutation(count)
    return take(source, np.sort(order[held:])), take(source, np.sort(order[:held]))


def take(source: Source, chosen: Array) -> Source:
    """The samples `chosen` (numbers) of an indexed source."""
    if isinstance(source, Arrays):
        batch = source.rows(chosen)
        return Arrays(batch.inputs, batch.targets, batch.axes, batch.target_axes)
    assert is_indexed(source)
    return Subset(source, chosen)  # type: ignore[arg-type]


def first_batch(source: Source, size: int) -> Batch:
    """The first `size` samples, to look at; a source with batches of its own sizes gives its first one.

    Raises:
        DataError: There are none.
    """
    batch = next(iter(source.epoch(size)), None)
    if batch is None or not batch.inputs or len(batch) == 0:
        raise DataError("The data set is empty.")
    return batch


def first_samples(source: Source, limit: int) -> Batch:
    """The first samples of a source, up to `limit`, over as many of its batches as that takes.

    Raises:
        DataError: There are none.
    """
    batches: list[Batch] = []
    held = 0
    for batch in source.epoch(limit):
        batches.append(batch)
        held += len(batch)
        if held >= limit:
            break
    if not batches or not held:
        raise DataError("The data set is empty.")
    whole = batches[0] if len(batches) == 1 else join_batches(batches)
    return whole if held <= limit else whole.rows(np.arange(limit))


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of the samples of several."""
    first = batches[0]
    inputs = join([batch.inputs for batch in batches], first.sample_axes)
    targets = join([batch.targets for batch in batches], first.target_sample_axes)
    return Batch(inputs, targets, first.axes, first.target_axes)


def join(batches: Sequence[tuple[Array, ...]], axes: Axes | None = None) -> tuple[Array, ...]:
    """Concatenate the arrays of several batches along their axes of samples; by default the first.

    Raises:
        DataError: Batches differ in other extents.
    """
    axes = axes or first_axes(batches[0])
    try:
        return tuple(
            parts[0] if axis is None else np.concatenate(parts, axis)
            for parts, axis in zip(zip(*batches, strict=True), axes, strict=True)
        )
    except ValueError as error:
        raise DataError(f"The batches of the data cannot be put together: {error}.") from error
