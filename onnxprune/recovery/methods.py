"""The methods of recovery: from a layer and its moments to a proposal of new weights and biases.

Each is a registered function of a few lines. `least-squares` is judged on the layer's own output, by cross-validation
over the folds of the calibration inputs: every fold is held back once. The others move means and variances, which can
bring a layer's output nearer and the model's farther (bias correction at high ratios does), so they are made from all
folds but the last, and judged by the model's outputs on the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.recovery.solve import RIDGES, Affine, Support, best_bias, ridge_fit, squared_error
from onnxprune.runtime.linear import Linear, Matrix
from onnxprune.runtime.statistics import Moments


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the pruned network.

    Attributes:
        linear: Where it stands.
        start: Its weights and bias as they are.
        support: Which weights are not zero, shape [g, O, K].
        has_shift: Whether there is a place for a change of the bias.
    """

    linear: Linear
    start: Affine
    support: Support
    has_shift: bool


@dataclass(frozen=True, eq=False)
class Proposal:
    """New numbers, and the relative error on held-back inputs without and with them."""

    affine: Affine
    before: float
    after: float
    detail: str = ""


_CONSTANT = 1e-6  # an output whose variance fell below this share is a constant: no gain brings it back

Propose = Callable[[Layer, Sequence[Moments]], Proposal]


@dataclass(frozen=True)
class Method:
    """A way to recover.

    Attributes:
        propose: The function.
        judged_by_outputs: Whether the model's outputs decide, instead of the errors in the proposal.
        source: Where it comes from.
    """

    propose: Propose
    judged_by_outputs: bool
    source: str


METHODS: dict[str, Method] = {}


def method(name: str, *, judged_by_outputs: bool, source: str) -> Callable[[Propose], Propose]:
    """Register a method."""

    def register(function: Propose) -> Propose:
        METHODS[name] = Method(function, judged_by_outputs, source)
        return function

    return register


@method(
    "least-squares",
    judged_by_outputs=False,
    source="He et al. 2017, Channel Pruning, eq. 4 (units); Frantar and Alistarh 2022, OBC, eq. 4 (single weights)",
)
def least_squares(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W, b = argmin |Z_dense - A W^T - b|^2 + lambda |W - W0|^2; lambda by cross-validation."""
    total = _sum(folds)
    scale = _size(folds)
    before = sum(float(squared_error(m, layer.start).sum()) for m in folds) / scale
    errors = {}
    for ridge in RIDGES:
        fits = (ridge_fit(total - m, layer.start, layer.support, ridge, with_bias=layer.has_shift) for m in folds)
        errors[ridge] = sum(float(squared_error(m, f).sum()) for m, f in zip(folds, fits, strict=True)) / scale
    best = min(errors, key=lambda r: errors[r])
    fitted = ridge_fit(total, layer.start, layer.support, best, with_bias=layer.has_shift)
    return Proposal(fitted, before, errors[best], f"ridge {best:g}")


@method("bias", judged_by_outputs=True, source="Nagel et al. 2019, Data-Free Quantization, section 4.2")
def bias_correction(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """b += E[z_dense] - E[z_pruned]."""
    used = _but_last(folds)
    new = Affine(layer.start.weight, best_bias(used, layer.start.weight) if layer.has_shift else layer.start.bias)
    return _judged_outside(layer, new, folds)


@method("moments", judged_by_outputs=True, source="BatchNorm re-estimation, as a change of the layer before it")
def match_moments(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W *= s, b so that each output has the dense one's mean and variance; s = sqrt(Var[z_dense] / Var[z_pruned]).

    It is what re-estimating a following BatchNorm's statistics does, and works where BatchNorm was folded.
    """
    used = _but_last(folds)
    if not layer.has_shift:
        return _judged_outside(layer, layer.start, folds)
    w = layer.start.weight
    mean = np.einsum("gok,gk->go", w, used.a) / used.rows
    ours = np.einsum("gok,gok->go", w @ used.aa, w) / used.rows - mean**2
    theirs = used.zz / used.rows - (used.z / used.rows) ** 2
    alive = (ours > _CONSTANT * theirs) & (theirs > 0)
    gain = np.sqrt(np.divide(theirs, ours, out=np.ones_like(ours), where=alive))
    scaled: Matrix = w * gain[:, :, None]
    return _judged_outside(layer, Affine(scaled, best_bias(used, scaled)), folds)


def _judged_outside(layer: Layer, new: Affine, folds: Sequence[Moments]) -> Proposal:
    scale = _size(folds[-1:])
    before, after = (float(squared_error(folds[-1], x).sum()) / scale for x in (layer.start, new))
    return Proposal(new, before, after)


def _but_last(folds: Sequence[Moments]) -> Moments:
    return _sum(folds[:-1] or folds)


def _sum(folds: Sequence[Moments]) -> Moments:
    total = folds[0]
    for m in folds[1:]:
        total = total + m
    return total


def _size(folds: Sequence[Moments]) -> float:
    """The variance of the targets, summed over outputs and rows: what a relative error is relative to."""
    total = _sum(folds)
    return float(np.sum(total.zz - total.z**2 / total.rows)) or 1.0
