"""The closed forms of recovery: ridge regression on the weights that are left, from Gram matrices.

With centred sums G = A^T A - n m m^T and C = A^T Z - n m z^T (means m of A and z of Z), the weights of one output
whose surviving inputs are S are

    w_S = (G_SS + lambda I)^-1 (C_S + lambda w0_S),        b = z - w m

the minimum of |Z - A_S w_S - b|^2 + lambda |w_S - w0_S|^2, for w0 the weights as they were left by pruning. With
lambda -> infinity nothing changes. Where S is the same for all outputs (units are gone) that is the least-squares
reconstruction of He et al. 2017 (Channel Pruning, eq. 4) with a bias; where it differs by output (weights are zeroed),
and A is the dense network's, it is the update of Optimal Brain Surgeon for all zeroed weights at once (Hassibi and
Stork 1993; Frantar and Alistarh 2022, Optimal Brain Compression, eq. 4): w0_S - H_SS^-1 H_S,rest w0_rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Matrix
from onnxprune.runtime.statistics import Moments

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Lambda, relative to the mean of the diagonal of G."""

Support = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Affine:
    """Weights [g, O, K] and biases [g, O] of a layer."""

    weight: Matrix
    bias: Matrix

    def of(self, outputs: npt.NDArray[np.int64]) -> Affine:
        """Those of some outputs."""
        return Affine(self.weight[:, outputs], self.bias[:, outputs])


def squared_error(moments: Moments, affine: Affine) -> Matrix:
    """|Z - A W^T - b|^2, summed over rows; shape [g, O]."""
    w, b = affine.weight, affine.bias
    quadratic = np.einsum("gok,gok->go", w @ moments.aa, w)
    cross = np.einsum("gok,gko->go", w, moments.az)
    wa = np.einsum("gok,gk->go", w, moments.a)
    error = moments.zz - 2 * cross + quadratic + 2 * b * (wa - moments.z) + moments.rows * b**2
    return np.asarray(np.maximum(error, 0.0))


def best_bias(moments: Moments, weight: Matrix) -> Matrix:
    """The bias that makes the means of A W^T + b and Z equal, shape [g, O]."""
    return np.asarray((moments.z - np.einsum("gok,gk->go", weight, moments.a)) / moments.rows)


def ridge_fit(moments: Moments, start: Affine, support: Support, ridge: float, *, with_bias: bool) -> Affine:
    """Fit the weights inside `support` [g, O, K]; the others stay zero. Without a bias the old one is kept."""
    g, c = normal_equations(moments, start.bias, with_bias)
    if support.all():
        return _full_fit(moments, start, g, c, ridge, with_bias=with_bias)
    weight = np.zeros_like(start.weight)
    for i in range(len(g)):
        scale = float(np.mean(np.diag(g[i]))) or 1.0
        weight[i] = _solve(g[i], c[i], start.weight[i], support[i], ridge * scale)
    return Affine(weight, best_bias(moments, weight) if with_bias else start.bias)


def _full_fit(moments: Moments, start: Affine, g: Matrix, c: Matrix, ridge: float, *, with_bias: bool) -> Affine:
    """The fit where no weight is zero: the groups of a convolution are solved together."""
    scale = np.mean(np.diagonal(g, axis1=1, axis2=2), axis=1)
    pull = ridge * np.where(scale == 0, 1.0, scale)[:, None, None]
    left = g + pull * np.eye(g.shape[1])
    right = c + pull * start.weight.transpose(0, 2, 1)
    weight = np.ascontiguousarray(_positive_solve(left, right).transpose(0, 2, 1))
    return Affine(weight, best_bias(moments, weight) if with_bias else start.bias)


def normal_equations(
    moments: Moments, bias: Matrix, with_bias: bool, *, consume: bool = False
) -> tuple[Matrix, Matrix]:
    """Return G [g, K, K] and C [g, K, O]; with ``consume`` G is made of the moments' own array, which is lost."""
    gram = moments.aa if consume else np.array(moments.aa)
    if with_bias:
        subtract_outer(gram, moments.a, moments.rows)
        outer_z = moments.a[:, :, None] * moments.z[:, None, :]
        return gram, moments.az - outer_z / moments.rows
    return gram, moments.az - moments.a[:, :, None] * bias[:, None, :]


def subtract_outer(gram: Matrix, sums: Matrix, count: float = 1.0) -> None:
    """Subtract s s^T / count from matrices [g, K, K], in place and some rows at a time; s of shape [g, K]."""
    for rows in parts(gram.shape[1]):
        gram[:, rows] -= sums[:, rows, None] * sums[:, None, :] / count


def parts(length: int, size: int = 512) -> Iterator[slice]:
    """Cut an axis into slices, so that what is calculated along it needs little memory at a time."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _solve(g: Matrix, c: Matrix, start: Matrix, support: Support, ridge: float) -> Matrix:
    """Rows with the same support are solved together: (G_SS + ridge I) w_S = c_S + ridge w0_S."""
    out = np.zeros_like(start)
    target = c.T + ridge * start
    patterns, which = np.unique(support, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        inside, rows = np.flatnonzero(pattern), np.flatnonzero(which.reshape(-1) == number)
        if len(inside):
            block = g[np.ix_(inside, inside)].copy()
            block.flat[:: len(inside) + 1] += ridge
            out[np.ix_(rows, inside)] = _positive_solve(block, target[np.ix_(rows, inside)].T).T
    return out


def _positive_solve(a: Matrix, b: Matrix) -> Matrix:
    try:
        return np.asarray(np.linalg.solve(a, b), np.float64)
    except np.linalg.LinAlgError:
        return np.asarray(np.linalg.pinv(a) @ b, np.float64)
