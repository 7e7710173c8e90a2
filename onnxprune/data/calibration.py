"""Calibration data: the inputs, and labels where there are some, that criteria, allocation and recovery look at.

calibration = read_calibration("some.npz", model, limit=1024)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs, Samples, batches, numbers_held_back, samples_by_name
from onnxprune.data.fit import input_specs
from onnxprune.data.readers import LABEL, AnyData, Data, open_data
from onnxprune.data.sets import of_training
from onnxprune.data.sources import Indexed, first_samples, is_indexed
from onnxprune.errors import DataError
from onnxprune.recipe.training import DataSettings


@dataclass(frozen=True, eq=False)
class Calibration:
    """Samples of what a model is run on.

    Attributes:
        inputs: By input name, with the axis that counts samples (see `Samples`).
        labels: Class numbers or targets, one for each sample; None where there are none.
        made_up: How they were made up, in words; empty for a user's own.
    """

    inputs: Inputs = field(default_factory=dict)
    labels: npt.NDArray[Any] | None = None
    made_up: str = ""

    @property
    def digest(self) -> str:
        """What tells these samples from others."""
        digest = hashlib.sha256()
        for name, array in sorted({**self.inputs, **({} if self.labels is None else {LABEL: self.labels})}.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array).encode())
        return digest.hexdigest()

    def held_back(self, model: ir.Model, every: int, most: int | None = None) -> tuple[Calibration, Calibration]:
        """Divide the samples, labels included, into those that are used and those that are held back.

        Arguments and errors as those of `numbers_held_back`.
        """
        samples = samples_by_name(model, self.inputs)
        used, held = (self._part(samples, chosen) for chosen in numbers_held_back(model, samples, every, most))
        return used, held

    def _part(self, samples: Samples, chosen: npt.NDArray[np.int64]) -> Calibration:
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, inputs=Samples(samples.take(chosen), samples.axes), labels=labels)


def read_calibration(
    data: AnyData, model: ir.Model, limit: int, seed: int = 0, reading: DataSettings | None = None
) -> Calibration:
    """Read calibration data and check that they fit the model's inputs.

    Args:
        data: An .npz or .csv file, a folder of images, ``module:function``, or arrays by name; ``label`` (or the name
            of the first output) holds labels.
        model: The model.
        limit: So many samples at most, drawn by the seed.
        seed: Of the draw.
        reading: How images and tables are read.

    Raises:
        DataError: They cannot be read, or do not fit.
    """
    samples = samples_of(model, open_data(model, data, of_training(reading or DataSettings())), limit, seed)
    batches(model, samples.inputs)
    return samples


def samples_of(model: ir.Model, data: Data, limit: int, seed: int) -> Calibration:
    """Draw up to `limit` samples, as calibration data; of a source that is read from front to back, the first."""
    source, count = data.source, data.source.count
    if is_indexed(source) and count is not None and count > limit:
        chosen = np.sort(np.random.default_rng(seed).permutation(count)[:limit])
        indexed: Indexed = source  # type: ignore[assignment]
        batch = indexed.rows(chosen)
    else:
        batch = first_samples(source, limit)
    names = [spec.name for spec in input_specs(model)]
    inputs = Samples(dict(zip(names, batch.inputs, strict=True)), dict(zip(names, batch.sample_axes, strict=True)))
    labels = batch.targets[0] if batch.targets and data.outputs and data.outputs[0] == 0 else None
    if labels is not None and len(labels) != inputs.count:
        raise DataError(f"there are {len(labels)} labels, but {inputs.count} samples.")
    return Calibration(inputs, labels)
