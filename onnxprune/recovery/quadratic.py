"""A layer's squared error as a function of its weights, and its minimum where each output has zeros of its own.

With G = A^T A / n and C = Z^T A / n over the rows of the layer's inputs and targets (less their means where a bias
adapts), the error of weights W is tr(W G W^T) - 2 tr(W C^T) + const. Inputs are scaled so that the diagonal of G is 1:
a ridge then means the same for every input, and conjugate gradients need no other preconditioner.

One matrix serves all outputs. The minimum within the support S of one output, w_S = (G_SS + r)^-1 (c_S + r w0_S), is
found for all outputs at once by conjugate gradients, projected to each support (Meng et al. 2024, ALPS, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Matrix
from onnxprune.recovery.solve import Support, normal_equations, parts
from onnxprune.runtime.statistics import Moments

STEPS = 20
"""Steps of conjugate gradients: what is still to be gained then is under 1 % of the error, measured on MiniLM."""

Floats = npt.NDArray[np.floating[Any]]

_CONSTANT = 1e-6  # of its mean square: an input that varies less is a constant, to the precision of float32 sums
_ENOUGH = 1e-6  # of the first residual's square
_TOGETHER = 1024  # outputs that are fitted at once


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The error of one layer, in inputs scaled to a mean square of 1.

    Attributes:
        gram: G, shape [g, K, K], with ones on the diagonal (zeros for inputs that are constant).
        target: C, shape [g, O, K].
        scale: The root of the mean square of each input, shape [g, K]; less the mean where a bias adapts. Of a group
            that read nothing, as an expert that no token went to, that of the others' inputs together.
    """

    gram: Matrix
    target: Matrix
    scale: Matrix

    @staticmethod
    def of(moments: Moments, bias: Matrix, *, with_bias: bool, consume: bool = False) -> Quadratic:
        """From sums; without a bias that adapts, the targets are those less the bias that is there, shape [g, O].

        With ``consume`` the sums A^T A are lost.
        """
        powers = np.diagonal(moments.aa, axis1=1, axis2=2) / moments.rows
        g, c = normal_equations(moments, bias, with_bias, consume=consume)
        squares = np.diagonal(g, axis1=1, axis2=2) / moments.rows
        varies = squares > np.maximum(_CONSTANT * powers, np.finfo(np.float64).tiny)
        scale = np.sqrt(np.where(varies, squares, np.where(powers > 0, powers, 1.0)))
        seen = powers.any(axis=1)
        if seen.any():
            scale[~seen] = np.sqrt(powers[seen].mean())
        for rows in parts(g.shape[1]):  # in place: it is the largest array of all
            g[:, rows] = g[:, rows] / moments.rows / (scale[:, rows, None] * scale[:, None, :])
            g[:, rows] *= varies[:, rows, None] & varies[:, None, :]
        target = np.where(varies[:, None, :], c.transpose(0, 2, 1) / moments.rows / scale[:, None, :], 0.0)
        return Quadratic(g, target, scale)

    def scaled(self, weight: Matrix) -> Matrix:
        """Weights [g, O, K] for the scaled inputs."""
        return weight * self.scale[:, None, :]

    def plain(self, weight: Matrix) -> Matrix:
        """Weights for the inputs as they are."""
        return weight / self.scale[:, None, :]


def fit_within(q: Quadratic, start: Matrix, support: Support, ridge: float) -> Matrix:
    """Minimise the error plus ridge |W - W0|^2 over the weights inside a support; all in scaled inputs.

    Args:
        q: The error.
        start: W0, shape [g, O, K].
        support: Which weights may be other than 0.
        ridge: Relative to the inputs' mean squares, which are 1.

    Returns:
        The weights, zero outside the support.
    """
    gram, result = q.gram.astype(np.float32), np.empty(start.shape)
    for outputs in parts(start.shape[1], _TOGETHER):
        some = (slice(None), outputs)
        result[some] = _fit(gram, q.target[some], start[some], support[some], ridge)
    return result


def _fit(gram: Floats, target: Matrix, start: Matrix, support: Support, ridge: float) -> Floats:
    inside = support.astype(np.float32)
    r = np.float32(ridge)
    right = (target + ridge * start).astype(np.float32)
    w = start.astype(np.float32) * inside
    residual = (right - w @ gram - r * w) * inside
    direction: Floats = residual.copy()
    power = _squares(residual)
    limit = np.maximum(_ENOUGH * power, np.finfo(np.float32).tiny)
    for _ in range(STEPS):
        image = (direction @ gram + r * direction) * inside
        curvature = np.sum(direction * image, axis=-1, keepdims=True)
        size = np.divide(power, curvature, out=np.zeros_like(power), where=(curvature > 0) & (power > limit))
        w += size * direction
        residual -= size * image
        new = _squares(residual)
        if (new <= limit).all():
            break
        direction = residual + np.divide(new, power, out=np.zeros_like(new), where=power > 0) * direction
        power = new
    return w


def _squares(x: Floats) -> Floats:
    return np.asarray(np.sum(np.square(x), axis=-1, keepdims=True))
