"""The methods of recovery that see one layer: from its moments to a proposal of new weights and biases.

Each is a registered function of a few lines. `least-squares` and `obc` are judged on the layer's own output, by
cross-validation over the folds of the calibration inputs: every fold is held back once. The others move means and
variances, which can bring a layer's output nearer and the model's farther (bias correction at high ratios does), so
they are made from all folds but the last, and judged by the model's outputs on the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Linear, Matrix
from onnxprune.recipe.granularity import NM, Block
from onnxprune.recovery.solve import RIDGES, Affine, Support, best_bias, ridge_fit, squared_error
from onnxprune.recovery.sparsegpt import choose_pattern, choose_support, damped_hessian
from onnxprune.runtime.statistics import Moments


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
        pattern: What its zeros must keep to where they are chosen anew; None for anything.
    """

    linear: Linear
    start: Affine
    support: Support
    has_shift: bool
    dense: Matrix
    anchor: Matrix
    pattern: NM | Block | None = None


@dataclass(frozen=True, eq=False)
class Proposal:
    """New numbers, and the relative error on held-back inputs without and with them."""

    affine: Affine
    before: float
    after: float
    detail: str = ""


_CONSTANT = 1e-6  # an output whose variance fell below this share is a constant: no gain brings it back

_SAMPLE = 32  # outputs of a layer that choose its ridge, where each has zeros of its own

Propose = Callable[[Layer, Sequence[Moments]], Proposal]
Rows = npt.NDArray[np.int64]


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


LAYER_METHODS: dict[str, Method] = {}


def method(name: str, *, judged_by_outputs: bool, source: str) -> Callable[[Propose], Propose]:
    """Register a method that sees one layer."""

    def register(function: Propose) -> Propose:
        LAYER_METHODS[name] = Method(function, judged_by_outputs, source)
        return function

    return register


@method(
    "least-squares",
    judged_by_outputs=False,
    source="He et al. 2017, Channel Pruning, eq. 4 (units); Frantar and Alistarh 2022, OBC, eq. 4 (single weights)",
)
def least_squares(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W, b = argmin |Z_dense - A W^T - b|^2 + lambda |W - W0|^2; lambda by cross-validation."""
    anchor = Affine(np.where(layer.support, layer.anchor, 0.0), layer.start.bias)
    return _cross_validated(layer, folds, lambda _: (anchor, layer.support))


@method(
    "obc",
    judged_by_outputs=False,
    source="Frantar and Alistarh 2023, SparseGPT, algorithm 1; 2022, Optimal Brain Compression, eqs. 3 and 4",
)
def obc(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """Which weights of a layer are zero is chosen anew, as many as there are, by w^2 / [H^-1]_qq column by column.

    It starts from the best weights without zeros, for the inputs that the layer now has; what is left is then fitted by
    least squares. Where that is no nearer than least squares on the zeros as they were, those stay.
    """
    given = least_squares(layer, folds)
    if isinstance(layer.pattern, Block) or not (~layer.support & (layer.dense != 0)).any():
        return given

    def choose(moments: Moments) -> tuple[Affine, Support]:
        dense = Affine(layer.dense, layer.start.bias)
        full = ridge_fit(moments, dense, layer.dense != 0, RIDGES[0], with_bias=layer.has_shift)
        hessian = damped_hessian(moments, centred=layer.has_shift)
        if isinstance(layer.pattern, NM):
            pattern = (layer.pattern.n, layer.pattern.m)
            weight, support = choose_pattern(full.weight, hessian, pattern, layer.linear.places)
        else:
            weight, support = choose_support(full.weight, hessian, int((~layer.support).sum()))
        return Affine(weight, full.bias), support

    chosen = _cross_validated(layer, folds, choose)
    return chosen if chosen.after < given.after else given


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


def _cross_validated(
    layer: Layer, folds: Sequence[Moments], begin: Callable[[Moments], tuple[Affine, Support]]
) -> Proposal:
    """Choose the ridge by the error on each fold of what is fitted to the others; then fit to all of them.

    Args:
        layer: The layer.
        folds: Its moments.
        begin: From moments to the weights that the fit is drawn to, and which of them are not zero.
    """
    total, scale = _sum(folds), _size(folds)
    held = [(fold, total - fold, *begin(total - fold)) for fold in folds]
    some = _sample(layer)

    def error(ridge: float, rows: Rows | None) -> float:
        found = 0.0
        for fold, rest, start, support in held:
            if rows is not None:
                fold, rest, start, support = fold.of(rows), rest.of(rows), start.of(rows), support[:, rows]
            fit = ridge_fit(rest, start, support, ridge, with_bias=layer.has_shift)
            found += float(squared_error(fold, fit).sum())
        return found / scale

    best = min(RIDGES, key=lambda ridge: error(ridge, some))
    before = sum(float(squared_error(m, layer.start).sum()) for m in folds) / scale
    fitted = ridge_fit(total, *begin(total), best, with_bias=layer.has_shift)
    return Proposal(fitted, before, error(best, None), f"ridge {best:g}")


def _sample(layer: Layer) -> Rows | None:
    """The outputs that the ridge is chosen by; None for all, where they share one factorisation or are few."""
    outputs = layer.support.shape[1]
    if outputs <= _SAMPLE or (layer.support == layer.support[:, :1]).all():
        return None
    return np.linspace(0, outputs - 1, _SAMPLE).astype(np.int64)


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
