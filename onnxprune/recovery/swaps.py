"""SparseSwaps: a mask is refined by exchanging weights that stay for weights that go, within each output.

With m the mask of one output's weights w, G the inputs' Gram matrix and c = G (w (1 - m)), the output's error is
(w (1 - m))^T c. Pruning p and reviving q changes it by exactly

    2 w_p c_p + w_p^2 G_pp - 2 w_q c_q + w_q^2 G_qq - 2 w_p w_q G_pq

(Zimmer et al. 2025, SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, section 3). The best exchange is made
in every output at once, until none lowers the error; so the error never rises, and every output keeps as many weights
as before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Matrix
from onnxprune.recovery.solve import Support

CANDIDATES = 24
"""Of the weights that stay, and of those that went, so many of the least error alone are tried against each other."""

_LEAST = 1e-7  # of an output's first error: what counts as lower

Indices = npt.NDArray[np.intp]


def refine(weight: Matrix, gram: Matrix, support: Support, pattern: tuple[int, int, int] | None = None) -> Support:
    """Exchange weights until no exchange lowers the error.

    Args:
        weight: The weights without zeros, shape [g, O, K].
        gram: Shape [g, K, K].
        support: Which of them stay.
        pattern: N, M and the kernel's positions where N of every M consecutive input channels stay: exchanges are made
            within these M then.
    """
    return np.stack([_refine(w, h, s, pattern) for w, h, s in zip(weight, gram, support, strict=True)])


def mask_error(weight: Matrix, gram: Matrix, support: Support) -> Matrix:
    """The error of each output when the weights outside the support go and nothing else changes, shape [g, O]."""
    lost = np.where(support, 0.0, weight)
    return np.asarray(np.einsum("gok,gok->go", lost @ gram, lost))


def _refine(weight: Matrix, gram: Matrix, support: Support, pattern: tuple[int, int, int] | None) -> Support:
    support = support.copy()
    lost = np.where(support, 0.0, weight)
    c = lost @ gram
    limit = _LEAST * np.sum(lost * c, axis=1)
    power = np.square(weight) * np.diag(gram)
    rows = np.arange(len(weight))
    for _ in range(2 * weight.shape[1]):
        cost = 2 * weight[rows] * c[rows]
        prune = np.where(support[rows], cost + power[rows], np.inf)
        revive = np.where(support[rows], np.inf, power[rows] - cost)
        if pattern is None:
            p, q, change = _best_pair(weight[rows], gram, prune, revive)
        else:
            p, q, change = _best_in_block(weight[rows], gram, prune, revive, pattern)
        better = change < -limit[rows]
        rows, p, q = rows[better], p[better], q[better]
        if not len(rows):
            break
        support[rows, p], support[rows, q] = False, True
        c[rows] += weight[rows, p, None] * gram[p] - weight[rows, q, None] * gram[q]
    return support


def _best_pair(weight: Matrix, gram: Matrix, prune: Matrix, revive: Matrix) -> tuple[Indices, Indices, Matrix]:
    """The best exchange of each output among the candidates: which goes, which comes back, the change of the error."""
    p, q = _least(prune), _least(revive)
    rows = np.arange(len(weight))[:, None]
    change = prune[rows, p][:, :, None] + revive[rows, q][:, None, :]
    change = change - 2 * weight[rows, p][:, :, None] * weight[rows, q][:, None, :] * gram[p[:, :, None], q[:, None, :]]
    best = np.argmin(change.reshape(len(weight), -1), axis=1)
    i, j = np.divmod(best, q.shape[1])
    row = rows[:, 0]
    return p[row, i], q[row, j], change.reshape(len(weight), -1)[row, best]


def _least(cost: Matrix) -> Indices:
    count = min(CANDIDATES, cost.shape[1])
    return np.asarray(np.argpartition(cost, count - 1, axis=1)[:, :count])


def _best_in_block(
    weight: Matrix, gram: Matrix, prune: Matrix, revive: Matrix, pattern: tuple[int, int, int]
) -> tuple[Indices, Indices, Matrix]:
    """The same where both have to lie in one block of the pattern."""
    _, of, places = pattern
    columns = np.arange(weight.shape[1]).reshape(-1, of, places).transpose(0, 2, 1).reshape(-1, of)  # [blocks, of]
    inside = gram[columns[:, :, None], columns[:, None, :]]
    w = weight[:, columns]
    change = prune[:, columns][:, :, :, None] + revive[:, columns][:, :, None, :]
    change = change - 2 * w[:, :, :, None] * w[:, :, None, :] * inside
    best = np.argmin(change.reshape(len(weight), -1), axis=1)
    block, i, j = np.unravel_index(best, change.shape[1:])
    return columns[block, i], columns[block, j], change.reshape(len(weight), -1)[np.arange(len(weight)), best]
