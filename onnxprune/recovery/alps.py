"""ALPS: which weights of a layer go, and what the others become, found together by ADMM.

For the error tr((W - W0) H (W - W0)^T) under a constraint on the zeros of D = W, with multipliers V and a penalty r

    W <- (H W0 - V + r D) (H + r)^-1,    D <- the best weights with zeros next to W + V / r,    V <- V + r (W - D)

while r grows, by a factor of 1.3 where many weights still change sides and of 1.1 where few do (Meng et al. 2024,
ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models, eqs. 4 to 6). H is decomposed
once; (H + r)^-1 costs two products then, whatever r is. It ends where the zeros stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Matrix
from onnxprune.recovery.solve import Support

DAMPING = 0.01
"""Added to the Hessian's diagonal, relative to its mean (as SparseGPT, section 3.1)."""

_PENALTY = 0.1  # the first r, for inputs of mean square 1
_TURNS, _BETWEEN = 300, 3  # at most; and how often r grows
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # (share of the kept weights that changed, factor)

Floats = npt.NDArray[np.floating[Any]]

Project = Callable[[Floats], Support]
"""From weights [g, O, K] to those that may stay: the support of the nearest weights with the zeros asked for."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues [g, K] and eigenvectors [g, K, K] (in columns) of a Gram matrix."""

    values: Floats
    vectors: Floats

    @staticmethod
    def of(gram: Matrix) -> Spectrum:
        """Decompose [g, K, K]; rounding may leave eigenvalues below zero, which count as zero."""
        values, vectors = np.linalg.eigh(gram)
        return Spectrum(np.maximum(values, 0.0), vectors)

    def solve(self, right: Floats, damping: float) -> Floats:
        """Return ``right (G + damping)^-1`` for rows [g, O, K]."""
        return np.asarray((right @ self.vectors / (self.values[:, None, :] + damping)) @ self.vectors.swapaxes(1, 2))


def alps(target: Matrix, spectrum: Spectrum, project: Project) -> tuple[Matrix, Support]:
    """Choose which weights stay, and update them.

    Args:
        target: The weights without zeros W0, shape [g, O, K], for inputs of mean square 1.
        spectrum: Of the inputs' Gram matrix, the diagonal of which is 1.
        project: What zeros are asked for.

    Returns:
        The weights with zeros, and which are not.
    """
    single = Spectrum((spectrum.values + DAMPING).astype(np.float32), spectrum.vectors.astype(np.float32))
    w0: Floats = target.astype(np.float32)
    gradient = (w0 @ single.vectors * single.values[:, None, :]) @ single.vectors.swapaxes(1, 2)
    support = project(w0)
    d, u = w0 * support, np.zeros_like(w0)  # u is V / r
    penalty, before = _PENALTY, support
    for turn in range(1, _TURNS + 1):
        u += single.solve(gradient + penalty * (d - u), penalty)
        support = project(u)
        d = u * support
        u -= d
        if turn % _BETWEEN == 0:
            changed = np.count_nonzero(support & ~before)
            if not changed:
                break
            growth = next(f for share, f in _GROWTH if changed >= share * np.count_nonzero(support))
            penalty, before = penalty * growth, support
            u /= growth
    return np.asarray(d, np.float64), support


def keep_largest(count: int) -> Project:
    """Keep the ``count`` largest of all weights of a layer; ties go in order."""

    def project(weight: Floats) -> Support:
        flat = np.abs(weight).reshape(-1)
        flags = np.zeros(flat.size, bool)
        if count:
            flags[np.argpartition(-flat, min(count, flat.size) - 1)[:count]] = True
        return flags.reshape(weight.shape)

    return project


def keep_pattern(stay: int, of: int, places: int) -> Project:
    """Keep the ``stay`` largest of every ``of`` consecutive input channels, for each kernel position."""

    def project(weight: Floats) -> Support:
        groups, outputs, columns = weight.shape
        blocks = np.abs(weight).reshape(groups, outputs, columns // places // of, of, places)
        flags = np.empty(blocks.shape, bool)
        for i in range(of):  # by comparison: several times faster than to sort so many short blocks
            greater = np.zeros((*blocks.shape[:3], places), np.int8)
            for j in range(of):
                if j != i:
                    compare = np.greater_equal if j < i else np.greater  # ties go in order
                    greater += compare(blocks[:, :, :, j], blocks[:, :, :, i])
            flags[:, :, :, i] = greater < stay
        return flags.reshape(weight.shape)

    return project
