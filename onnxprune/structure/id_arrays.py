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
    if ascending(atoms):
        position, sizes = np.arange(len(atoms)), np.ones(len(atoms), np.int64)
    else:
        _, position, sizes = np.unique(atoms, return_inverse=True, return_counts=True)
    total = int(np.prod(shape))
    for j, extent in enumerate(shape):
        pairs = distinct(position * extent + coordinates[j])
        spread = np.bincount(pairs // extent, minlength=len(sizes))
        fits = sizes == spread * (total // extent)
        homes = np.where((homes < 0) & fits[position], j, homes)
    return homes


def distinct(ids: Ids) -> Ids:
    """The different ids, sorted, as from np.unique, which takes longer where they are sorted already."""
    return ids if ascending(ids) else np.unique(ids)


def ascending(ids: Ids) -> bool:
    """Whether the ids are sorted and all different."""
    return not np.count_nonzero(ids[1:] <= ids[:-1])  # which takes less time than `all`


def numbered(values: Ids) -> Ids:
    """Return the rank of each value among the different ones; these are not negative and small."""
    return (np.cumsum(np.bincount(values) > 0) - 1)[values]


def first_places(numbers: Ids) -> Ids | None:
    """Where each number occurs first, in order; None where none occurs twice, which a plain sort tells sooner."""
    ordered = np.sort(numbers)
    if not np.count_nonzero(ordered[1:] == ordered[:-1]):
        return None
    return np.sort(np.unique(numbers, return_index=True)[1])
