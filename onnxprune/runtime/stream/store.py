"""Values of many batches, in memory or, where they are large, in files that go when nobody looks at them any more."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

IN_MEMORY = 1 << 30
"""Bytes of the values that are kept together; more are kept on disk."""


class Store:
    """A folder that is made when it is needed."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._count = 0

    def kept(self, values: Mapping[str, Array], together: int) -> dict[str, Array]:
        """Return the values of one batch as they are, or mapped from disk.

        Args:
            values: Of one batch.
            together: How many such batches are kept at once.
        """
        if sum(array.nbytes for array in values.values()) * together <= IN_MEMORY:
            return dict(values)
        return {name: self._on_disk(array) for name, array in values.items()}

    def _on_disk(self, array: Array) -> Array:
        if array.nbytes < IN_MEMORY >> 12 or array.dtype == object:
            return array
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
            self._folder = Path(folder.name)
            weakref.finalize(self, folder.cleanup)
        self._count += 1
        path = self._folder / str(self._count)
        array.tofile(path)
        mapped: Array = np.memmap(path, array.dtype, "r", shape=array.shape)
        path.unlink()  # the mapping keeps it until it goes
        return mapped
