"""Batches of labelled or unlabelled samples, as numpy arrays; nothing here knows a file format or torch.

A `Batch` holds one array per model input, and one per target (none where there are no labels). A `Source` gives
batches, epoch by epoch. `Arrays` is the source for data that stand in memory: .npz and CSV files, and the tests.
`readers.py` makes sources from what the user names, `checks.py` compares them with a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Some samples: `inputs` in the order of the model's inputs, `targets` in that of its outputs (or empty).

    The first axis counts the samples; an array without axes (a sampling rate, say) holds for all of them.
    """

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...] = ()

    def __len__(self) -> int:
        return next((len(array) for array in self.inputs if array.ndim), 1)


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
    """Samples in memory: every array's first axis counts the samples; one without axes holds for all."""

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...] = ()

    def __post_init__(self) -> None:
        lengths = {len(array) for array in (*self.inputs, *self.targets) if array.ndim}
        if len(lengths) > 1:
            raise DataError(f"The arrays of the data hold different numbers of samples: {sorted(lengths)}.")

    @property
    def count(self) -> int:
        return len(Batch(self.inputs))

    def rows(self, indices: Array) -> Batch:
        return Batch(tuple(pick(a, indices) for a in self.inputs), tuple(pick(a, indices) for a in self.targets))

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


def pick(array: Array, indices: Array) -> Array:
    """Those samples of an array; an array without axes holds for all."""
    return array[indices] if array.ndim else array


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
        return Arrays(batch.inputs, batch.targets)
    assert is_indexed(source)
    return Subset(source, chosen)  # type: ignore[arg-type]


def without_targets(source: Source) -> Source:
    """The same inputs with no labels, for distillation."""
    if isinstance(source, Arrays):
        return Arrays(source.inputs)
    return Unlabelled(source) if not is_indexed(source) else UnlabelledRows(source)


@dataclass(frozen=True)
class Unlabelled:
    """A source whose targets are left out."""

    whole: Source

    @property
    def count(self) -> int | None:
        return self.whole.count

    def epoch(self, batch_size: int, order: Array | None = None) -> Iterator[Batch]:
        return (Batch(batch.inputs) for batch in self.whole.epoch(batch_size, order))


class UnlabelledRows(Unlabelled):
    """An indexed source whose targets are left out."""

    def rows(self, indices: Array) -> Batch:
        return Batch(self.whole.rows(indices).inputs)  # type: ignore[attr-defined]


def first_batch(source: Source, size: int) -> Batch:
    """The first `size` samples, to look at.

    Raises:
        DataError: There are none.
    """
    batch = next(iter(source.epoch(size)), None)
    if batch is None or not batch.inputs or len(batch) == 0:
        raise DataError("The data set is empty.")
    return batch


def join(batches: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    """Concatenate the arrays of several batches along the sample axis."""
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
