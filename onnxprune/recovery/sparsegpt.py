"""The column sweep of SparseGPT: choose which weights go and let those to the right make up for each, in one walk.

With H the Hessian of a layer's squared error over its inputs, and U the upper Cholesky factor of H^-1 = U^T U, column
j of a row that is zeroed costs (w_j / U_jj)^2, and the columns right of it take over what they can:

    w_j: -= w_j / U_jj * U_j,j:

(Frantar and Alistarh 2023, SparseGPT, eqs. 3 to 5 and algorithm 1.) The row of U that belongs to j is that of the
inverse over the columns from j on, so one factorisation serves all rows, whatever each of them loses. Columns on the
left stay as they are: for a given choice of zeros, least squares over all that is left (`solve.ridge_fit`) is nearer,
and what the sweep adds is the choice, which sees what earlier columns left behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Matrix
from onnxprune.recovery.solve import Support, subtract_outer
from onnxprune.runtime.statistics import Moments

BLOCK = 128
"""Columns that are chosen from together, at most (SparseGPT, section 3.2)."""

_DIRECTLY = 256
"""Columns of a block that is factorised by LAPACK: wider ones by products of blocks, in the memory that they are in."""

_NARROWEST = 8
_BLOCKS = 8
"""Columns of a block and blocks of a layer, at least. The paper's layers have thousands of columns; in a layer of one
block no choice would see what earlier columns left behind (benchmarks/decoder.py: perplexity 26.5 instead of 24.9)."""

DAMPING = 0.01
"""Added to the Hessian's diagonal, relative to its mean (SparseGPT, section 3.1)."""


def choose_support(weight: Matrix, hessian: Matrix, count: int) -> tuple[Matrix, Support]:
    """Choose which ``count`` weights of a layer go, and update those that stay.

    How many go in each block of columns follows from the costs w_q^2 / [H^-1]_qq over the whole layer; which ones, from
    the sweep.

    Args:
        weight: Shape [g, O, K].
        hessian: From `damped_hessian`, shape [g, K, K].
        count: How many weights go.

    Returns:
        The weights with zeros, and which are not.
    """
    factors = [inverse_factor(block) for block in hessian]
    diagonal = np.stack([np.einsum("kj,kj->j", f, f) for f in factors])
    cost = np.square(weight) / diagonal[:, None, :]
    gone = np.zeros(cost.size, bool)
    gone[np.argsort(cost.reshape(-1), kind="stable")[:count]] = True
    del cost
    block = min(BLOCK, max(_NARROWEST, weight.shape[2] // _BLOCKS))
    starts = np.arange(0, weight.shape[2], block)
    zeros = np.add.reduceat(gone.reshape(weight.shape).sum(axis=1), starts, axis=1)
    swept = [sweep_choosing(w, f, z.tolist(), block) for w, f, z in zip(weight, factors, zeros, strict=True)]
    return np.stack([w for w, _ in swept]), np.stack([s for _, s in swept])


def choose_pattern(
    weight: Matrix, hessian: Matrix, pattern: tuple[int, int], places: int = 1
) -> tuple[Matrix, Support]:
    """Choose the N of every M consecutive input channels that stay, for each of `places` kernel positions."""
    order: slice | npt.NDArray[np.intp] = slice(None)
    back: slice | npt.NDArray[np.intp] = slice(None)
    if places > 1:
        order = np.arange(weight.shape[2]).reshape(-1, places).T.reshape(-1)
        back = np.argsort(order)
    swept = [
        sweep_pattern(w[:, order], inverse_factor(h[order][:, order]), *pattern)
        for w, h in zip(weight, hessian, strict=True)
    ]
    return np.stack([w[:, back] for w, _ in swept]), np.stack([s[:, back] for _, s in swept])


def damped_hessian(moments: Moments, *, centred: bool) -> Matrix:
    """Return E[a a^T] and a damping, shape [g, K, K]; of a less its means where the bias adapts as well.

    A group that read nothing, as an expert that no token went to, gets inputs of the mean square of the others'.
    """
    hessian: Matrix = moments.aa / moments.rows
    if centred:
        subtract_outer(hessian, moments.a / moments.rows)
    diagonal = np.einsum("gkk->gk", hessian)  # a view
    mean = diagonal.mean(axis=1)
    seen = mean > 0
    diagonal += np.where(seen, DAMPING * mean, mean[seen].mean() if seen.any() else DAMPING)[:, None]
    return hessian


def inverse_factor(hessian: Matrix) -> Matrix:
    """Return the upper triangular U with H^-1 = U^T U, for H of shape [K, K].

    A matrix without full rank, which rounding makes of a small damping, gets more of it until it can be factorised.

    Raises:
        np.linalg.LinAlgError: The matrix holds numbers that are not finite.
    """
    norm = float(np.linalg.norm(hessian.reshape(-1))) or 1.0
    for damping in (0.0, 1e-8, 1e-6, 1e-4, 1e-2, 2.0):  # at the last it is positive definite, whatever it was
        factor = np.array(hessian, np.float64, order="C")
        factor.flat[:: len(factor) + 1] += damping * norm
        try:
            _invert_root(factor)
        except np.linalg.LinAlgError:
            continue
        return factor
    raise np.linalg.LinAlgError("the Gram matrix holds numbers that are not finite")


def _invert_root(h: Matrix) -> None:
    """Replace H = M M^T, M upper triangular, by M^-1, in place: block by block, with the lower right one first."""
    if len(h) <= _DIRECTLY:
        lower = np.linalg.cholesky(h[::-1, ::-1])
        h[:] = np.triu(np.linalg.inv(lower[::-1, ::-1]))
        return
    half = len(h) // 2
    first, across, last = h[:half, :half], h[:half, half:], h[half:, half:]
    _invert_root(last)
    across[:] = across @ last.T  # of M
    first -= across @ across.T
    _invert_root(first)
    across[:] = first @ (across @ last)
    np.negative(across, out=across)
    h[half:, :half] = 0.0


def sweep_choosing(weight: Matrix, factor: Matrix, zeros: Sequence[int], block: int = BLOCK) -> tuple[Matrix, Support]:
    """Zero the cheapest weights of each block of columns as the sweep comes to it.

    Args:
        weight: Shape [O, K].
        factor: From `inverse_factor`.
        zeros: How many go in each block of `block` columns, of all its rows together.
        block: Columns a block.

    Returns:
        The weights, and which of them stay.
    """
    w = np.array(weight, np.float64)
    support = np.ones(w.shape, bool)
    diagonal = np.square(np.diag(factor))
    for number, start in enumerate(range(0, w.shape[1], block)):
        stop = min(start + block, w.shape[1])
        cost = (np.square(w[:, start:stop]) / diagonal[start:stop]).reshape(-1)
        flags = np.ones(len(cost), bool)
        flags[np.argsort(cost, kind="stable")[: zeros[number]]] = False
        support[:, start:stop] = flags.reshape(len(w), -1)
        _sweep_block(w, factor, support, start, stop)
    return w, support


def sweep_pattern(weight: Matrix, factor: Matrix, stay: int, of: int) -> tuple[Matrix, Support]:
    """Keep the ``stay`` dearest of every ``of`` consecutive columns of each row (N:M; SparseGPT, section 3.2)."""
    w = np.array(weight, np.float64)
    support = np.zeros(w.shape, bool)
    diagonal = np.square(np.diag(factor))
    wide = max(1, BLOCK // of) * of  # what lies right of so many columns is brought up to date at once
    for start in range(0, w.shape[1], wide):
        stop = min(start + wide, w.shape[1])
        moved = np.zeros((len(w), stop - start))
        for at in range(start, stop, of):
            here = slice(at, min(at + of, stop))
            cost = np.square(w[:, here]) / diagonal[here]
            dearest = np.argsort(-cost, axis=1, kind="stable")[:, :stay]
            np.put_along_axis(support[:, here], dearest, True, axis=1)
            for j in range(here.start, here.stop):
                moved[:, j - start] = _zero_column(w, factor, j, ~support[:, j], stop)
        w[:, stop:] -= moved @ factor[start:stop, stop:]
    return w, support


def _sweep_block(w: Matrix, factor: Matrix, support: Support, start: int, stop: int) -> None:
    """Zero what goes in the columns of one block; what lies right of the block is brought up to date at once."""
    moved = np.zeros((len(w), stop - start))
    for j in range(start, stop):
        moved[:, j - start] = _zero_column(w, factor, j, ~support[:, j], stop)
    w[:, stop:] -= moved @ factor[start:stop, stop:]


def _zero_column(w: Matrix, factor: Matrix, j: int, gone: npt.NDArray[np.bool_], stop: int) -> Matrix:
    """Zero column j of the rows given and update the columns up to `stop`; returns w_j / U_jj, 0 where it stays."""
    moved = np.where(gone, w[:, j] / factor[j, j], 0.0)
    w[:, j:stop] -= np.outer(moved, factor[j, j:stop])
    w[gone, j] = 0.0
    return np.asarray(moved)
