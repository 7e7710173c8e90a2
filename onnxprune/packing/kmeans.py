"""One-dimensional k-means for codebooks (weight sharing of Han et al. 2015, "Deep Compression", section 3).

In one dimension the clusters are intervals of the sorted values, so a Lloyd step is a binary search per centroid and
a difference of prefix sums: O(k log n) once the values are sorted. There is no randomness anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GROUPS = 4096
_GROUP_SIZE = 8
_MAX_STEPS = 200


def kmeans_1d(values: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The k centroids (ascending) that a Lloyd iteration reaches from a density-aware start.

    The start places centroids evenly in the integral of density**(1/3), which is the optimal quantiser for many
    levels (Panter and Dite 1951): denser where the values are, yet with some for the tails.

    Args:
        values: [n] finite numbers, n > 0.
        k: How many centroids at most. When there are k distinct values or fewer, those are returned.
    """
    ordered = np.sort(values)
    distinct = ordered[np.r_[True, ordered[1:] != ordered[:-1]]]
    if distinct.size <= k:
        return distinct
    prefix = np.concatenate(([0.0], np.cumsum(ordered)))
    centroids = _density_start(ordered, k)
    for _ in range(_MAX_STEPS):
        cuts = np.concatenate(([0], np.searchsorted(ordered, boundaries(centroids), side="right"), [ordered.size]))
        counts = np.diff(cuts)
        means = np.diff(prefix[cuts]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return np.sort(centroids)


def boundaries(centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """[k - 1] midpoints: a value belongs to centroid `searchsorted(boundaries, value)`."""
    return np.asarray(centroids[1:] / 2 + centroids[:-1] / 2, dtype=np.float64)


def _density_start(ordered: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Groups of equally many values have density 1 / width, so each weighs width * (1 / width)**(1/3)."""
    groups = int(min(_GROUPS, max(ordered.size // _GROUP_SIZE, k)))
    edges = ordered[np.linspace(0, ordered.size - 1, groups + 1).astype(np.int64)]
    mass = np.concatenate(([0.0], np.cumsum(np.diff(edges) ** (2 / 3))))
    start: NDArray[np.float64] = np.interp((np.arange(k) + 0.5) / k * mass[-1], mass, edges)
    return start
