"""The methods of recovery that see one layer: from its moments to a proposal of new weights and biases.

Each is a registered function of a few lines. Those that fit weights are judged on the layer's own output in the last
fold, which they are not made from. `bias` and `moments` can bring a layer's output nearer and the model's farther (bias
correction at high ratios does), so they are judged by the model's outputs on the last fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.graph.linear import Matrix
from onnxprune.recipe.granularity import NM
from onnxprune.recovery.alps import alps, keep_largest, keep_pattern
from onnxprune.recovery.fitting import Layer, Problem, Proposal, but_last, outputs_at_once, shared_fit, size_of
from onnxprune.recovery.registry import METHODS, Propose, method
from onnxprune.recovery.solve import Affine, Support, best_bias, parts, squared_error
from onnxprune.recovery.sparsegpt import choose_pattern, choose_support, damped_hessian
from onnxprune.recovery.swaps import refine
from onnxprune.runtime.statistics import Moments

_CONSTANT = 1e-6  # an output whose variance fell below this share is a constant: no gain brings it back


def propose(name: str, layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """Let a method look at a layer as it acts behind what scales its outputs, a BatchNormalization among others.

    So what is found does not depend on whether an exporter folded that into the weights. A very wide layer is fitted
    some outputs at a time, in the memory of these: each has its weights and its error for itself.

    Args:
        name: Of the method.
        layer: The layer.
        folds: Its moments, a part of the inputs each.
    """
    if not all(np.isfinite(m.aa).all() and np.isfinite(m.az).all() for m in folds):
        return Proposal(layer.start, 0.0, 0.0, "its inputs or outputs are not finite")
    function = METHODS.find(name).propose
    assert function is not None
    outputs = layer.start.weight.shape[1]
    some_at_once = list(parts(outputs, outputs_at_once(layer)))
    if len(some_at_once) == 1:
        return _as_it_acts(function, layer, folds)
    weight, bias = np.array(layer.start.weight), np.array(layer.start.bias)
    errors, sizes, details = list[tuple[float, float]](), list[float](), dict[str, None]()
    for some in some_at_once:
        these = [m.of(some) for m in folds]
        proposal = _as_it_acts(function, layer.of(some), these)
        better = proposal.after < proposal.before
        if better:
            weight[:, some], bias[:, some] = proposal.affine.weight, proposal.affine.bias
        errors.append((proposal.before, proposal.after if better else proposal.before))
        sizes.append(size_of(these[-1:]))
        details[proposal.detail] = None
    before, after = (float(np.average(side, weights=sizes)) for side in zip(*errors, strict=True))
    return Proposal(Affine(weight, bias), before, after, ", ".join(filter(None, details)))


def _as_it_acts(function: Propose, layer: Layer, folds: Sequence[Moments]) -> Proposal:
    gain = np.where(layer.gain != 0, layer.gain, 1.0)
    if (gain == 1).all():
        return function(layer, folds)
    by, zero = gain[:, :, None], np.zeros_like(gain)
    start = Affine(layer.start.weight * by, layer.start.bias * gain)
    acting = replace(layer, start=start, dense=layer.dense * by, anchor=layer.anchor * by)
    proposal = function(acting, [m.mapped(gain, zero) for m in folds])
    return replace(proposal, affine=Affine(proposal.affine.weight / by, proposal.affine.bias / gain))


@method(
    "least-squares",
    judged_by_outputs=False,
    source="He et al. 2017, Channel Pruning, eq. 4 (units); Frantar and Alistarh 2022, OBC, eq. 4 (single weights)",
)
def least_squares(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W, b = argmin |Z_dense - A W^T - b|^2 + lambda |W - W0|^2; lambda on inputs that are held back.

    Where outputs have zeros of their own, one Gram matrix serves them all, by conjugate gradients.
    """
    if (layer.support == layer.support[:, :1]).all():
        anchor = np.where(layer.support, layer.anchor, 0.0)
        return shared_fit(layer, folds, Affine(anchor, layer.start.bias))
    return _given(layer, Problem.of(layer, folds))


@method("obc", judged_by_outputs=False,
        source="Frantar and Alistarh 2023, SparseGPT, algorithm 1; 2022, Optimal Brain Compression, eqs. 3 and 4",
        )  # fmt: skip
def obc(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """Zeros are chosen anew, as many as there are, by w^2 / [H^-1]_qq column by column; then least squares.

    It starts from the best weights without zeros, for the inputs that the layer now has. Where the result is no nearer
    than least squares on the zeros as they were, those stay.
    """
    return _chosen_anew(layer, folds, _sweep, fit=True)


@method("sparsegpt", judged_by_outputs=False, source="Frantar and Alistarh 2023, SparseGPT, algorithm 1")
def sparse_gpt(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """w_j: -= w_j / U_jj U_j,j: for each weight that goes, H^-1 = U^T U; by the least (w_j / U_jj)^2 of 128 columns.

    The sweep alone: weights on the left of one that goes stay as they are.
    """
    return _chosen_anew(layer, folds, _sweep, fit=False)


@method("alps", judged_by_outputs=False, source="Meng et al. 2024, ALPS, eqs. 4 to 6 and section 3.3")
def alps_method(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W = (H W0 - V + r D) (H + r)^-1, D = top-k(W + V / r), V += r (W - D) for r that grows; then least squares.

    Zeros are chosen anew, as many as there are in the layer, or in the pattern that was asked for.
    """
    return _chosen_anew(layer, folds, _alps, fit=True)


@method("sparseswaps", judged_by_outputs=False, source="Zimmer et al. 2025, SparseSwaps, section 3")
def sparse_swaps(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """The best exchange p for q by 2 w_p c_p + w_p^2 G_pp - 2 w_q c_q + w_q^2 G_qq - 2 w_p w_q G_pq, c = G (w (1 - m)).

    From the zeros as they are, in every output until none lowers its error; then least squares on what is left.
    """
    return _chosen_anew(layer, folds, _swaps, fit=True)


Choose = Callable[[Layer, Problem], tuple[Matrix, Support]]
"""From a layer and its error to weights with zeros and their support; for scaled inputs."""


def _chosen_anew(layer: Layer, folds: Sequence[Moments], choose: Choose, *, fit: bool) -> Proposal:
    """Choose the zeros of a layer anew; with a fit, unless least squares on those that are there is nearer."""
    if not isinstance(layer.pattern, NM | None) or not (~layer.support & (layer.dense != 0)).any():
        return least_squares(layer, folds)
    problem = Problem.of(layer, folds)
    weight, support = choose(layer, problem)
    if not fit:
        return Proposal(problem.as_it_is(weight), problem.before, problem.error_of(weight[:, problem.sample]))
    current = problem.error.scaled(np.where(layer.support, layer.anchor, 0.0))
    ways = [(weight, support), (current, layer.support)]
    if np.array_equal(support, layer.support):
        ways.pop()  # what an earlier pass chose: it ends as that pass did
    (ridge, after), way = min(((problem.tried(*way), way) for way in ways), key=lambda tried: tried[0][1])
    return Proposal(problem.fitted(*way, ridge), problem.before, after, f"ridge {ridge:g}")


def _given(layer: Layer, problem: Problem) -> Proposal:
    start = problem.error.scaled(np.where(layer.support, layer.anchor, 0.0))
    ridge, after = problem.tried(start, layer.support)
    return Proposal(problem.fitted(start, layer.support, ridge), problem.before, after, f"ridge {ridge:g}")


def _sweep(layer: Layer, problem: Problem) -> tuple[Matrix, Support]:
    weight = problem.error.plain(problem.without_zeros(problem.solve_directly))
    hessian = damped_hessian(problem.made_from, centred=layer.has_shift)
    if isinstance(layer.pattern, NM):
        pattern = (layer.pattern.n, layer.pattern.m)
        swept, support = choose_pattern(weight, hessian, pattern, layer.linear.places)
    else:
        swept, support = choose_support(weight, hessian, int((~layer.support).sum()))
    return problem.error.scaled(swept), support


def _alps(layer: Layer, problem: Problem) -> tuple[Matrix, Support]:
    full = problem.without_zeros(problem.spectrum.solve)
    if isinstance(layer.pattern, NM):
        project = keep_pattern(layer.pattern.n, layer.pattern.m, layer.linear.places)
    else:
        project = keep_largest(int(layer.support.sum()))
    return alps(full, problem.spectrum, project)


def _swaps(layer: Layer, problem: Problem) -> tuple[Matrix, Support]:
    full = problem.without_zeros(problem.solve_directly)
    nm = layer.pattern
    pattern = (nm.n, nm.m, layer.linear.places) if isinstance(nm, NM) else None
    support = refine(full, problem.error.gram, layer.support, pattern)
    return np.where(support, full, 0.0), support


@method("bias", judged_by_outputs=True, source="Nagel et al. 2019, Data-Free Quantization, section 4.2")
def bias_correction(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """b += E[z_dense] - E[z_pruned]."""
    used = but_last(folds)
    new = Affine(layer.start.weight, best_bias(used, layer.start.weight) if layer.has_shift else layer.start.bias)
    return _judged_outside(layer, new, folds)


@method("moments", judged_by_outputs=True, source="BatchNorm re-estimation, as a change of the layer before it")
def match_moments(layer: Layer, folds: Sequence[Moments]) -> Proposal:
    """W *= s, b so that each output has the dense one's mean and variance; s = sqrt(Var[z_dense] / Var[z_pruned]).

    It is what re-estimating a following BatchNorm's statistics does, and works where BatchNorm was folded.
    """
    used = but_last(folds)
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
    scale = size_of(folds[-1:])
    before, after = (float(squared_error(folds[-1], x).sum()) / scale for x in (layer.start, new))
    return Proposal(new, before, after)
