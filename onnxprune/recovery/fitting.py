"""Fitting the weights of one layer to targets, and judging the fit on inputs that it was not made from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear, Matrix
from onnxprune.recipe.granularity import Shape
from onnxprune.recovery.alps import Spectrum
from onnxprune.recovery.quadratic import Quadratic, fit_within
from onnxprune.recovery.solve import RIDGES, Affine, Support, best_bias, ridge_fit, squared_error
from onnxprune.runtime.statistics import Moments
from onnxprune.runtime.stream.store import Store

SAMPLE = 64
"""Where each output has zeros of its own, so many outputs of a layer choose its ridge and judge its fit."""

WEIGHTS_AT_ONCE = 1 << 23
"""So many weights are fitted at once: some twenty arrays of their size are made on the way."""

_WIDE = 8
"""A layer with so many times as many outputs as inputs is wide: in parts of that shape its Gram matrix costs little."""

_WIDE_AT_ONCE = 1 << 21

_IN_MEMORY = 64 << 20  # bytes of a Gram matrix

Rows = npt.NDArray[np.int64]
Solve = Callable[[npt.NDArray[Any], float], npt.NDArray[Any]]


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
        is_last: Whether no other layer reads what it gives.
    """

    linear: Linear
    start: Affine
    support: Support
    has_shift: bool
    dense: Matrix
    anchor: Matrix
    gain: Matrix
    pattern: Shape | None = None
    is_last: bool = False

    def of(self, outputs: slice) -> Layer:
        """The layer with some of its outputs alone, of each group."""
        start = Affine(self.start.weight[:, outputs], self.start.bias[:, outputs])
        dense, anchor, gain = (array[:, outputs] for array in (self.dense, self.anchor, self.gain))
        return replace(self, start=start, support=self.support[:, outputs], dense=dense, anchor=anchor, gain=gain)


def outputs_at_once(layer: Layer) -> int:
    """How many outputs of a layer are fitted at once: all but of large ones, and never fewer than inputs.

    Gram matrices are factorised anew for each part, which then takes less time than the fits. So of the head of a small
    language model fewer are taken: 4,096 of 512 inputs, 4,096 of 4,096 inputs.
    """
    inputs = max(layer.start.weight.shape[2], 1)
    return min(max(WEIGHTS_AT_ONCE // inputs, inputs), max(_WIDE_AT_ONCE // inputs, _WIDE * inputs))


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

    Weights are for scaled inputs here. What is tried is fitted and judged on a sample of the outputs; only what is
    taken is fitted on all of them.

    Attributes:
        layer: The layer.
        made_from: The moments that a fit is made from.
        held: Those that it is judged by, of the sample.
        folds: All, which the weights are fitted to in the end.
        error: The error over `made_from`.
        sample: Outputs.
    """

    layer: Layer
    made_from: Moments
    held: Moments
    folds: Sequence[Moments]
    error: Quadratic
    sample: Rows

    @staticmethod
    def of(layer: Layer, folds: Sequence[Moments]) -> Problem:
        """From a layer and its moments."""
        made_from, outputs = but_last(folds), layer.support.shape[1]
        error = Quadratic.of(made_from, layer.start.bias, with_bias=layer.has_shift)
        error = replace(error, gram=Store(_IN_MEMORY).held(error.gram))
        sample = np.unique(np.linspace(0, outputs - 1, min(SAMPLE, outputs)).astype(np.int64))
        return Problem(layer, made_from, folds[-1].of(sample), folds, error, sample)

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """Of the Gram matrix: the one decomposition that a layer needs."""
        return Spectrum.of(self.error.gram)

    @functools.cached_property
    def before(self) -> float:
        """The relative error of the layer as it is."""
        return self._held_error(self.layer.start.of(self.sample))

    def without_zeros(self, solve: Solve) -> Matrix:
        """The best weights without zeros, drawn to the dense ones by the best ridge, or those themselves.

        Args:
            solve: What solves x (G + damping) = rows: `solve_directly`, or `spectrum.solve` where a method needs that.
        """
        dense = self.error.scaled(self.layer.dense)
        gap = self.error.target - dense @ self.error.gram
        some, missing = dense[:, self.sample], gap[:, self.sample]
        best, error = best_ridge(lambda ridge: self.error_of(some + solve(missing, ridge)))
        return dense if self.error_of(some) <= error else dense + solve(gap, best)

    def solve_directly(self, right: Matrix, damping: float) -> Matrix:
        """Return ``right (G + damping)^-1`` for rows [g, O, K], without a decomposition that stays in memory."""
        solved = np.empty(right.shape)
        for i, gram in enumerate(self.error.gram):
            damped = np.array(gram)
            damped.flat[:: len(damped) + 1] += damping
            solved[i] = np.linalg.solve(damped, right[i].T).T
        return solved

    def tried(self, start: Matrix, support: Support) -> tuple[float, float]:
        """Return the best ridge of a fit inside a support, drawn to ``start``, and the relative error of that fit."""
        part = Quadratic(self.error.gram, self.error.target[:, self.sample], self.error.scale)
        start, support = start[:, self.sample], support[:, self.sample]
        return best_ridge(lambda ridge: self.error_of(fit_within(part, start, support, ridge)))

    def fitted(self, start: Matrix, support: Support, ridge: float) -> Affine:
        """Fit all outputs to all inputs."""
        self.__dict__.pop("spectrum", None)  # not needed any more, and large
        total = total_of(self.folds)
        ours = len(self.folds) > 1  # a sum of its own
        whole = Quadratic.of(total, self.layer.start.bias, with_bias=self.layer.has_shift, consume=ours)
        rescaled = start * (whole.scale / self.error.scale)[:, None, :]
        return self._affine(total, whole.plain(fit_within(whole, rescaled, support, ridge)), self.layer.start.bias)

    def as_it_is(self, weight: Matrix) -> Affine:
        """All outputs with these weights and the best bias."""
        return self._affine(self.made_from, self.error.plain(weight), self.layer.start.bias)

    def error_of(self, weight: Matrix) -> float:
        """The relative error of weights of the sample."""
        bias, moments = self.layer.start.bias[:, self.sample], self.made_from.of(self.sample)
        return self._held_error(self._affine(moments, self.error.plain(weight), bias))

    def _affine(self, moments: Moments, plain: Matrix, bias: Matrix) -> Affine:
        return Affine(plain, best_bias(moments, plain) if self.layer.has_shift else bias)

    def _held_error(self, affine: Affine) -> float:
        return float(squared_error(self.held, affine).sum()) / size_of([self.held])


def best_ridge(error: Callable[[float], float]) -> tuple[float, float]:
    """Return the ridge of the least error, and that; from small to large, up to the second that is worse in turn."""
    errors: dict[float, float] = {}
    worse = 0
    for ridge in RIDGES:
        errors[ridge] = error(ridge)
        worse = worse + 1 if errors[ridge] > min(errors.values()) else 0
        if worse == 2:
            break
    best = min(errors, key=lambda ridge: errors[ridge])
    return best, errors[best]


def shared_fit(layer: Layer, folds: Sequence[Moments], anchor: Affine) -> Proposal:
    """Fit a layer all of whose outputs have the same zeros.

    The last fold chooses the ridge and judges. No fit of a layer with others behind it sees that fold. Else the layers
    behind would look better on it than on other inputs, and too small ridges would be chosen.
    """
    used, held = but_last(folds), folds[-1]
    size = size_of([held])

    def fit(moments: Moments, ridge: float) -> Affine:
        return ridge_fit(moments, anchor, layer.support, ridge, with_bias=layer.has_shift)

    def error(affine: Affine) -> float:
        return float(squared_error(held, affine).sum()) / size

    best, after = best_ridge(lambda ridge: error(fit(used, ridge)))
    return Proposal(fit(total_of(folds) if layer.is_last else used, best), error(layer.start), after, f"ridge {best:g}")


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
