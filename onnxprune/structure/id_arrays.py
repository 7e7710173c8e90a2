"""Arithmetic on arrays of ids that needs to know nothing of terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


def homes_of(coordinates: Ids, atoms: Ids, shape: Sequence[int]) -> Ids:
    """Return, for each (index, atom) pair, the part of a split on which the atom alone depends, or -1.

    Args:
        coordinates: Where each pair lies along each part, shape (parts, pairs).
        atoms: The atom of each pair, shape (pairs,).
        shape: The extents of the parts.
    """
    homes = np.full(len(atoms), -1, np.int64)
    if not len(atoms):
        return homes
    _, position, sizes = np.unique(atoms, return_inverse=True, return_counts=True)
    total = int(np.prod(shape))
    for j, extent in enumerate(shape):
        pairs = np.unique(position * extent + coordinates[j])
        spread = np.bincount(pairs // extent, minlength=len(sizes))
        fits = sizes == spread * (total // extent)
        homes = np.where((homes < 0) & fits[position], j, homes)
    return homes


def distinct(ids: Ids) -> Ids:
    """The different ids, sorted, as from np.unique, which takes longer where they are sorted already."""
    return ids if bool((ids[1:] > ids[:-1]).all()) else np.unique(ids)


def first_places(numbers: Ids) -> Ids | None:
    """Where each number occurs first, in order; None where none occurs twice, which a plain sort tells sooner."""
    ordered = np.sort(numbers)
    if not np.count_nonzero(ordered[1:] == ordered[:-1]):
        return None
    return np.sort(np.unique(numbers, return_index=True)[1])
