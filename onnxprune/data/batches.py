"""Samples by input name, cut into batches of the size that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.fit import find_axes, fixed_batch, input_specs
from onnxprune.data.sources import Array, Axes, lengths, pick
from onnxprune.errors import DataError
from onnxprune.graph.hints import Feeds, hints_of

Inputs = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, eq=False)
class Samples(Mapping[str, Array]):
    """Inputs by name, with the axis of each that counts samples (None: one array holds for all samples)."""

    arrays: Mapping[str, Array]
    axes: Mapping[str, int | None]

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    @property
    def count(self) -> int:
        """How many samples there are."""
        return next((self.arrays[n].shape[axis] for n, axis in self.axes.items() if axis is not None), 1)

    def part(self, start: int, stop: int) -> Samples:
        """Those from one number to another."""
        chosen = np.arange(start, min(stop, self.count))
        return Samples({name: pick(array, chosen, self.axes[name]) for name, array in self.arrays.items()}, self.axes)

    def take(self, indices: Array) -> Feeds:
        """Those samples."""
        return {name: pick(array, indices, self.axes[name]) for name, array in self.arrays.items()}


def batches(model: ir.Model, inputs: Inputs, batch: int = 64, *, least: int = 1) -> list[Feeds]:
    """Cut samples into batches; a model of fixed batch size gets batches of that size, and the rest is left out.

    Args:
        model: The model that will be fed.
        inputs: By input name: `Samples`, or arrays whose axis of samples is found (the first one where nothing tells).
        batch: Samples in a batch.
        least: So many batches at least, where there are samples enough.

    Raises:
        DataError: An input is missing, lengths differ, or there are fewer samples than one batch takes.
    """
    names = [spec.name for spec in input_specs(model)]
    missing = [name for name in names if name not in inputs]
    if missing:
        raise DataError(f"the calibration data have no array for the model's input '{missing[0]}'.")
    samples = samples_by_name(model, inputs)
    axes: Axes = tuple(samples.axes[name] for name in names)
    if len(lengths([samples[name] for name in names], axes)) != 1:
        raise DataError("the calibration arrays hold different numbers of samples.")
    count, fixed = samples.count, fixed_batch(model, axes)
    size = fixed or max(1, min(batch, count // least or 1))
    starts = range(0, count - size + 1, size) if fixed else range(0, count, size)
    if not len(starts):
        raise DataError(f"{count} calibration samples are fewer than the model's batch of {size}.")
    return [samples.take(np.arange(s, min(s + size, count))) for s in starts]


def held_back(model: ir.Model, inputs: Inputs, every: int) -> tuple[Samples, Samples]:
    """Divide samples into those that are used and those that are held back; see `numbers_held_back`."""
    samples = samples_by_name(model, inputs)
    used, held = numbers_held_back(model, samples, every)
    return Samples(samples.take(used), samples.axes), Samples(samples.take(held), samples.axes)


def numbers_held_back(model: ir.Model, samples: Samples, every: int, most: int | None = None) -> tuple[Array, Array]:
    """Return the numbers of the samples that are used and of those that are held back: one of so many, spread evenly.

    A model of fixed batch size gets whole batches of both.

    Args:
        model: The model that will be fed.
        samples: The samples.
        every: One of so many is held back.
        most: So many are held back at most.

    Raises:
        DataError: There are fewer than three batches: two to use, one to hold back.
    """
    size = fixed_batch(model, tuple(samples.axes.values())) or 1
    whole = samples.count // size
    if whole < 3:
        raise DataError(f"{samples.count} calibration samples are too few to hold some back: give at least {3 * size}.")
    share = whole // every if most is None else min(whole // every, most // size)
    count = max(1, share) * size
    held = (2 * np.arange(count) + 1) * whole * size // (2 * count)
    used = np.setdiff1d(np.arange(whole * size), held)
    return used, held


def samples_by_name(model: ir.Model, inputs: Inputs) -> Samples:
    """The inputs of the model with the axis of each that counts samples, found where it is not known."""
    specs = [spec for spec in input_specs(model) if spec.name in inputs]
    if isinstance(inputs, Samples):
        return Samples({s.name: inputs[s.name] for s in specs}, {s.name: inputs.axes[s.name] for s in specs})
    arrays = {spec.name: np.asarray(inputs[spec.name]) for spec in specs}
    axes = find_axes(list(arrays.values()), specs, hints_of(model).sample_axes)
    return Samples(arrays, dict(zip(arrays, axes, strict=True)))
