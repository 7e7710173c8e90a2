"""How good a model is on labelled inputs."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxprune.errors import DataError
from onnxprune.metrics import hits, squared_differences

from .session import run

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class LabelledData:
    """Inputs and what the model should say to them.

    Attributes:
        inputs: By input name; the first axis of each counts samples.
        label: Class numbers (integers, shape [samples]) or targets (floats, of the output's shape).
    """

    inputs: Mapping[str, Array]
    label: Array

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.label)

    @classmethod
    def load(cls, path: str | os.PathLike[str], session: ort.InferenceSession) -> LabelledData:
        """Read an .npz file with one array per input of the model, under its name, and `label`.

        A model with one input also takes the one other array, whatever its name.

        Raises:
            DataError: No such file, no .npz, no `label`, an input without array, or lengths that differ.
        """
        arrays = read_npz(Path(path))
        label = arrays.pop("label", None)
        if label is None:
            raise DataError(f"'{path}' has no array 'label'.")
        if label.ndim == 0 or len(label) == 0:
            raise DataError(f"'{path}' has no samples: its array 'label' has the shape {list(label.shape)}.")
        if label.dtype.kind in "fc" and not np.isfinite(label).all():
            raise DataError(f"'{path}' has labels that are not finite numbers.")
        names = [value.name for value in session.get_inputs()]
        if len(names) == len(arrays) == 1:
            arrays = {names[0]: next(iter(arrays.values()))}
        for name in names:
            if name not in arrays:
                raise DataError(f"'{path}' has no array for the model's input '{name}'.")
            if np.ndim(arrays[name]) == 0 or len(arrays[name]) != len(label):
                shape = list(arrays[name].shape)
                raise DataError(f"'{path}' has {len(label)} labels, but '{name}' has the shape {shape}.")
        return cls({name: arrays[name] for name in names}, label)


def predict(
    session: ort.InferenceSession,
    inputs: Mapping[str, Array],
    *,
    output: str | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """One output over all samples, the first output by default; returns [samples, ...].

    A model of fixed batch size is fed batches of that size, the last one filled up by repetition.

    Raises:
        DataError: The inputs do not fit the model, or there is no such output.
    """
    names = [value.name for value in session.get_outputs()]
    output = output or names[0]
    if output not in names:
        raise DataError(f"the model has no output '{output}' (it has: {', '.join(names)}).")
    samples = len(next(iter(inputs.values())))
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) and fixed > 0 else batch
    parts = []
    for start in range(0, samples, batch):
        chosen = np.arange(start, start + batch)
        if not isinstance(fixed, int):
            chosen = chosen[chosen < samples]
        feeds = {name: np.take(array, chosen, axis=0, mode="wrap") for name, array in inputs.items()}
        parts.append(run(session, feeds, [output])[output][: samples - start])
        if progress is not None:
            progress(min(start + batch, samples), samples)
    return np.concatenate(parts)


def evaluate(
    session: ort.InferenceSession,
    data: LabelledData,
    *,
    output: str | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Measure a model on labelled data.

    Returns:
        {"accuracy": ..., "top5": ...} (top5 from six classes on) for class numbers, {"mse": ...} for targets.

    Raises:
        DataError: Inputs or labels do not fit the model.
    """
    result = predict(session, data.inputs, output=output, batch=batch, progress=progress)
    label = data.label
    if np.issubdtype(label.dtype, np.integer) and result.ndim == 2 and result.shape[1] > 1:
        if label.size != data.samples:
            raise DataError(f"labels of shape {label.shape} are no class numbers: one per sample is needed.")
        if label.min() < 0 or label.max() >= result.shape[1]:
            raise DataError(f"labels reach {label.max()}, but the model tells {result.shape[1]} classes apart.")
        label = label.reshape(-1)
        scores = {"accuracy": float(hits(result, label).mean())}
        if result.shape[1] > 5:
            scores["top5"] = float(hits(result, label, 5).mean())
        return scores
    if label.size != result.size:
        raise DataError(f"labels of shape {label.shape} do not fit the output's shape {result.shape}.")
    return {"mse": float(squared_differences(result, label.reshape(result.shape)).mean())}


def read_npz(path: Path) -> dict[str, Array]:
    """Read an .npz file.

    Raises:
        DataError: No such file, or no .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"'{path}' does not exist.") from None
    except (
        OSError,
        ValueError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise DataError(f"'{path}' is not an .npz file of plain arrays.") from error
    except MemoryError as error:
        raise DataError(f"'{path}' states an array that is larger than the memory.") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member of the archive that is no .npy comes as bytes
            raise DataError(f"'{path}' holds '{name}', which is no array.")
    return arrays
