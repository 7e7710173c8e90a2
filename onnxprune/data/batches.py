"""Samples in batches of the size that a model takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import DataError
from onnxprune.runtime.inputs import Feeds

Inputs = Mapping[str, npt.NDArray[np.generic]]


def batches(model: ir.Model, inputs: Inputs, batch: int = 64, *, least: int = 1) -> list[Feeds]:
    """Cut samples into batches; a model of fixed batch size gets batches of that size, and the rest is left out.

    Args:
        model: The model that will be fed.
        inputs: By input name; the first axis counts samples, but for numbers (rank 0), which hold for all.
        batch: Samples in a batch.
        least: So many batches at least, where there are samples enough.

    Raises:
        DataError: An input is missing, lengths differ, or there are fewer samples than one batch takes.
    """
    wanted = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    missing = [str(v.name) for v in wanted if v.name not in inputs]
    if missing:
        raise DataError(f"the calibration data have no array for the model's input '{missing[0]}'.")
    numbers = {str(v.name): np.asarray(inputs[str(v.name)]) for v in wanted if np.ndim(inputs[str(v.name)]) == 0}
    wanted = [v for v in wanted if v.name not in numbers]
    counts = {len(inputs[str(v.name)]) for v in wanted}
    if len(counts) != 1:
        raise DataError("the calibration arrays hold different numbers of samples.")
    samples = counts.pop()
    fixed = {int(v.shape[0]) for v in wanted if v.shape is not None and len(v.shape) and isinstance(v.shape[0], int)}
    size = max(fixed) if fixed else max(1, min(batch, samples // least or 1))
    starts = range(0, samples - size + 1, size) if fixed else range(0, samples, size)
    if not len(starts):
        raise DataError(f"{samples} calibration samples are fewer than the model's batch of {size}.")
    return [{str(v.name): np.asarray(inputs[str(v.name)][s : s + size]) for v in wanted} | numbers for s in starts]
