"""Values of many batches, in memory or, where they are large, in files that go when nobody looks at them any more."""

from __future__ import annotations

import math
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


SMALLEST = 1 << 18
"""Bytes of an array that is worth a file."""


class Store:
    """A folder that is made when it is needed.

    Args:
        limit: Bytes that are kept in memory; by default `IN_MEMORY`.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._folder: Path | None = None
        self._count = 0
        self._limit = self._room = IN_MEMORY if limit is None else limit

    def kept(self, values: Mapping[str, Array], together: int) -> dict[str, Array]:
        """Return the values of one batch as they are, or mapped from disk.

        Args:
            values: Of one batch.
            together: How many such batches are kept at once.
        """
        if sum(array.nbytes for array in values.values()) * together <= self._limit:
            return dict(values)
        return {name: self._on_disk(array) for name, array in values.items()}

    def held(self, array: Array) -> Array:
        """Return an array that is never changed: as it is while there is room for it, else mapped from disk."""
        if array.nbytes <= self._room:
            self._room -= array.nbytes
            return array
        return self._on_disk(array)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Return an array of zeros that is added to, in float64: in memory while there is room, else in a file."""
        size = 8 * math.prod(shape)
        if size <= max(self._room, SMALLEST):
            self._room -= size
            return np.zeros(shape)
        path = self._next()
        mapped: Array = np.memmap(path, np.float64, "w+", shape=shape)
        path.unlink()
        return mapped

    def _on_disk(self, array: Array) -> Array:
        if array.nbytes < SMALLEST or array.dtype == object or isinstance(array, np.memmap):
            return array  # one that lies there already, as a cache that leaves the network, is not written again
        path = self._next()
        array.tofile(path)
        mapped: Array = np.memmap(path, array.dtype, "r", shape=array.shape)
        path.unlink()  # the mapping keeps it until it goes
        return mapped

    def _next(self) -> Path:
        """Where the next file goes."""
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
            self._folder = Path(folder.name)
            weakref.finalize(self, folder.cleanup)
        self._count += 1
        return self._folder / str(self._count)
