"""Calibration data: the inputs, and labels where there are some, that criteria, allocation and recovery look at.

calibration = read_calibration("some.npz", model, limit=1024)
evidence = calibration.evidence(structure)          # of the model as it is now: made anew for every step
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs, batches
from onnxprune.data.npz import read_npz
from onnxprune.errors import DataError
from onnxprune.runtime.inputs import InputSpec, input_specs
from onnxprune.scoring.evidence import Evidence
from onnxprune.structure.structure import Structure

LABEL = "label"
AnyArrays = str | Path | Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Samples of what a model is run on.

    Attributes:
        inputs: By input name; the first axis counts samples (an array without axes holds for all).
        labels: Class numbers or targets, one for each sample; None where there are none.
    """

    inputs: Inputs
    labels: npt.NDArray[Any] | None = None

    @property
    def digest(self) -> str:
        """What tells these samples from others."""
        digest = hashlib.sha256()
        for name, array in sorted({**self.inputs, **({} if self.labels is None else {LABEL: self.labels})}.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array).encode())
        return digest.hexdigest()

    def evidence(self, structure: Structure, seed: int = 0) -> Evidence:
        """Return what criteria may know of a model: statistics of these samples, found when they are asked for."""
        return Evidence(structure, self.inputs, self.labels, seed)


def has_labels(given: AnyArrays) -> bool:
    """Say whether there is an array of labels.

    Raises:
        DataError: It is no .npz file.
    """
    return LABEL in (given if isinstance(given, Mapping) else read_npz(Path(given)))


def read_calibration(given: AnyArrays, model: ir.Model, limit: int, seed: int = 0) -> Calibration:
    """Read calibration data and check that they fit the model's inputs.

    Args:
        given: An .npz file, or arrays: one by the name of each input (any name where there is one), and ``label``.
        model: The model.
        limit: So many samples at most, drawn by the seed.
        seed: Of the draw.

    Raises:
        DataError: They cannot be read, or do not fit.
    """
    where = "the calibration" if isinstance(given, Mapping) else f"'{given}'"
    arrays = {n: np.asarray(a) for n, a in (given if isinstance(given, Mapping) else read_npz(Path(given))).items()}
    specs = input_specs(model)
    names = [spec.name for spec in specs]
    labels = None if LABEL in names else arrays.pop(LABEL, None)
    if len(names) == len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    missing = next((name for name in names if name not in arrays), None)
    if missing is not None:
        raise DataError(f"{where} has no array for the model's input '{missing}'.")
    inputs = {spec.name: _fitted(arrays[spec.name], spec, where) for spec in specs}
    counts = {len(a) for a in (*inputs.values(), *([] if labels is None else [labels])) if a.ndim}
    if len(counts) > 1:
        raise DataError(f"{where}: the arrays hold different numbers of samples: {sorted(counts)}.")
    count = counts.pop() if counts else 0
    if not count:
        raise DataError(f"{where} has no samples to calibrate on.")
    if count > limit:
        chosen = np.sort(np.random.default_rng(seed).permutation(count)[:limit])
        inputs = {name: a[chosen] if a.ndim else a for name, a in inputs.items()}
        labels = None if labels is None else labels[chosen]
    batches(model, inputs)
    return Calibration(inputs, labels)


def _fitted(array: npt.NDArray[Any], spec: InputSpec, where: str) -> npt.NDArray[Any]:
    """The array in the input's own element type, where it is of the same kind of number."""
    fixed = [n for n in spec.dims[1:] if isinstance(n, int)]
    if array.ndim and (array.ndim != len(spec.dims) or fixed != [
        n for n, dim in zip(array.shape[1:], spec.dims[1:], strict=True) if isinstance(dim, int)
    ]):  # fmt: skip
        raise DataError(
            f"{where}: the array '{spec.name}' has shape {list(array.shape)}, the model's input {list(spec.dims)}."
        )
    if spec.dtype == ir.DataType.STRING:
        return array
    wanted = np.dtype(spec.dtype.numpy())
    if array.dtype.kind != wanted.kind and not (array.dtype.kind in "iu" and wanted.kind in "iu"):
        raise DataError(f"{where}: the array '{spec.name}' holds {array.dtype}, the model's input {wanted}.")
    return array.astype(wanted, copy=False)
