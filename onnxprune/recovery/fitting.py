"""Fitting the weights of one layer to targets, and judging the fit on inputs that it was not made from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear, Matrix
from onnxprune.recipe.granularity import Shape
from onnxprune.recovery.alps import Spectrum
from onnxprune.recovery.quadratic import Quadratic, fit_within
from onnxprune.recovery.solve import RIDGES, Affine, Support, best_bias, ridge_fit, squared_error
from onnxprune.runtime.statistics import Moments

SAMPLE = 64
"""Outputs of a layer that choose its ridge, where each has zeros of its own."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the pruned network.

    Attributes:
        linear: Where it stands.
        start: Its weights and bias as they are.
        support: Which weights are not zero, shape [g, O, K].
        has_shift: Whether there is a place for a change of the bias.
        dense: The dense network's weights at the places that are left, shape [g, O, K].
        anchor: The weights that a fit is drawn to, shape [g, O, K]: what pruning left before any recovery, so that a
            second pass finds what the first one found.
        gain: What the outputs are multiplied by right behind the layer, shape [g, O].
        pattern: What its zeros must keep to where they are chosen anew; None for anything.
    """

    linear: Linear
    start: Affine
    support: Support
    has_shift: bool
    dense: Matrix
    anchor: Matrix
    gain: Matrix
    pattern: Shape | None = None


@dataclass(frozen=True, eq=False)
class Proposal:
    """New numbers, and the relative error on held-back inputs without and with them."""

    affine: Affine
    before: float
    after: float
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Problem:
    """The error of a layer whose outputs have zeros of their own; the last fold is held back.

    Attributes:
        layer: The layer.
        made_from: The moments that a fit is made from.
        held: Those that it is judged by.
        total: Those that the weights are fitted to in the end.
        error: The error over `made_from`, in scaled inputs.
    """

    layer: Layer
    made_from: Moments
    held: Moments
    total: Moments
    error: Quadratic

    @staticmethod
    def of(layer: Layer, folds: Sequence[Moments]) -> Problem:
        """From a layer and its moments."""
        made_from = but_last(folds)
        error = Quadratic.of(made_from, layer.start.bias, with_bias=layer.has_shift)
        return Problem(layer, made_from, folds[-1], total_of(folds), error)

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """Of the Gram matrix: the one decomposition that a layer needs."""
        return Spectrum.of(self.error.gram)

    def without_zeros(self) -> Matrix:
        """The best weights without zeros, for scaled inputs; drawn to the dense ones by the best ridge."""
        dense = self.error.scaled(self.layer.dense)
        gap = self.error.target - dense @ self.error.gram
        tried = [dense, *(dense + self.spectrum.solve(gap, ridge) for ridge in RIDGES)]
        return min(tried, key=lambda w: self._held_error(self._affine(self.made_from, w)))

    def fitted(self, start: Matrix, support: Support) -> Proposal:
        """Fit the weights inside a support, drawn to ``start`` (for scaled inputs) by the best ridge."""
        some = self._sample()
        part = Quadratic(self.error.gram, self.error.target[:, some], self.error.scale)

        def error(ridge: float) -> float:
            weight = fit_within(part, start[:, some], support[:, some], ridge)
            made_from = self.made_from.of(some)
            return float(squared_error(self.held.of(some), self._affine(made_from, weight, some)).sum())

        ridge = min(RIDGES, key=error)
        weight = fit_within(self.error, start, support, ridge)
        after = self._held_error(self._affine(self.made_from, weight))
        whole = Quadratic.of(self.total, self.layer.start.bias, with_bias=self.layer.has_shift)
        rescaled = whole.scale[:, None, :] / self.error.scale[:, None, :]
        final = whole.plain(fit_within(whole, start * rescaled, support, ridge, begin=weight * rescaled))
        bias = best_bias(self.total, final) if self.layer.has_shift else self.layer.start.bias
        return Proposal(Affine(final, bias), self._before(), after, f"ridge {ridge:g}")

    def judged(self, weight: Matrix) -> Proposal:
        """Weights for scaled inputs as they are, with the best bias."""
        new = self._affine(self.made_from, weight)
        return Proposal(new, self._before(), self._held_error(new))

    def _affine(self, moments: Moments, weight: Matrix, some: Rows | None = None) -> Affine:
        plain = self.error.plain(weight)
        old = self.layer.start.bias if some is None else self.layer.start.bias[:, some]
        return Affine(plain, best_bias(moments, plain) if self.layer.has_shift else old)

    def _before(self) -> float:
        return self._held_error(self.layer.start)

    def _held_error(self, affine: Affine) -> float:
        return float(squared_error(self.held, affine).sum()) / size_of([self.held])

    def _sample(self) -> Rows:
        outputs = self.layer.support.shape[1]
        return np.unique(np.linspace(0, outputs - 1, min(SAMPLE, outputs)).astype(np.int64))


def shared_fit(layer: Layer, folds: Sequence[Moments], anchor: Affine) -> Proposal:
    """Fit a layer all of whose outputs have the same zeros.

    The ridge is chosen by the error on each fold of what is fitted to the others.
    """
    total, scale = total_of(folds), size_of(folds)

    def error(ridge: float) -> float:
        found = 0.0
        for fold in folds:
            fit = ridge_fit(total - fold, anchor, layer.support, ridge, with_bias=layer.has_shift)
            found += float(squared_error(fold, fit).sum())
        return found / scale

    errors = {ridge: error(ridge) for ridge in RIDGES}
    best = min(errors, key=lambda ridge: errors[ridge])
    before = sum(float(squared_error(m, layer.start).sum()) for m in folds) / scale
    fitted = ridge_fit(total, anchor, layer.support, best, with_bias=layer.has_shift)
    return Proposal(fitted, before, errors[best], f"ridge {best:g}")


def but_last(folds: Sequence[Moments]) -> Moments:
    """The sum of all folds but the last, or of the only one."""
    return total_of(folds[:-1] or folds)


def total_of(folds: Sequence[Moments]) -> Moments:
    """The sum of all folds."""
    total = folds[0]
    for m in folds[1:]:
        total = total + m
    return total


def size_of(folds: Sequence[Moments]) -> float:
    """The variance of the targets, summed over outputs and rows: what a relative error is relative to."""
    total = total_of(folds)
    return float(np.sum(total.zz - total.z**2 / total.rows)) or 1.0
