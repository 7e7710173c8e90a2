"""Arrays from .npz files: read without running code, by the names of a model's inputs."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from onnxprune.errors import DataError

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
