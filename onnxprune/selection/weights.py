"""Which single weights go: the least salient of all tensors ranked together, or of one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.scoring.registry import Context, Criterion
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight

_BUCKET_BITS = 16


def select_weights(
    weights: Sequence[Weight], criterion: Criterion, sparsity: float, *, seed: int = 0
) -> Mapping[ir.Value, Bools]:
    """Rank the weights of all tensors together and choose those that stay.

    Args:
        weights: The prunable tensors.
        criterion: How saliency is measured; it is computed once or twice per tensor and never held for all at once.
        sparsity: The share to zero, 0 to 1. Exactly ``round(sparsity * size)`` weights go; ties go in order.
        seed: For criteria that draw at random.

    Returns:
        For each tensor a mask of its shape, True where the weight stays.
    """
    count = round(sparsity * sum(w.size for w in weights))
    threshold, ties = _global_threshold(weights, criterion, count, seed)

    def masks() -> Iterator[tuple[ir.Value, Bools]]:
        left = ties
        for i, weight in enumerate(weights):
            bits = _bits(criterion.saliency(weight, _rng(seed, i)))
            mask = bits > threshold
            equal = np.flatnonzero(bits.reshape(-1) == threshold)
            mask.reshape(-1)[equal[left:]] = True
            left = max(0, left - len(equal))
            yield weight.value, mask

    return BitMasks(masks())


def _rng(seed: int, i: int) -> np.random.Generator:
    return np.random.default_rng([seed, i])


def _bits(saliency: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Non-negative floats in the order of their bit patterns; NaN counts as most salient."""
    clean = np.nan_to_num(np.ascontiguousarray(saliency, np.float32), nan=np.inf, posinf=np.inf)
    return (clean + np.float32(0)).view(np.uint32)


def least_salient(saliency: npt.NDArray[np.float32], count: int) -> Bools:
    """Return a mask of the same shape that drops the ``count`` least salient entries; ties go in order."""
    mask = np.ones(saliency.size, bool)
    if count:
        bits = _bits(saliency).reshape(-1)
        threshold = np.partition(bits, count - 1)[count - 1]
        below = bits < threshold
        mask[below] = False
        mask[np.flatnonzero(bits == threshold)[: count - int(below.sum())]] = False
    return mask.reshape(saliency.shape)


def least_of_each(saliency: npt.NDArray[np.float32], count: int, *axes: int) -> Bools:
    """Return a mask that drops ``count`` entries, as many of each index of some axes: the least salient of that index.

    What is left over where the counts cannot be alike goes by saliency, one of an index at most.
    """
    first = range(len(axes))
    moved = np.moveaxis(saliency, axes, first)
    rows = np.ascontiguousarray(moved).reshape(math.prod(moved.shape[: len(axes)]), -1)
    order = np.argsort(_bits(rows), axis=1, kind="stable")
    each, over = divmod(count, len(rows))
    stays = np.ones(rows.shape, bool)
    np.put_along_axis(stays, order[:, :each], False, axis=1)
    if over:
        following = order[:, each]
        cheapest = np.argsort(_bits(rows[np.arange(len(rows)), following]), kind="stable")[:over]
        stays[cheapest, following[cheapest]] = False
    return np.ascontiguousarray(np.moveaxis(stays.reshape(moved.shape), first, axes))


def relative_to_layers(criterion: Criterion) -> Criterion:
    """Return a criterion whose saliencies are those of another over their mean in the layer.

    So what scales a whole layer, and what takes that back behind it, does not count.
    """
    saliency = criterion.weights
    if saliency is None or criterion.compares == "model":
        return criterion

    def relative(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
        scores = saliency(weight, context)
        mean = float(scores.mean(dtype=np.float64)) if scores.size else 0.0
        return np.asarray(scores / mean, np.float32) if mean > 0 else scores

    return replace(criterion, weights=relative)


def _global_threshold(weights: Sequence[Weight], criterion: Criterion, count: int, seed: int) -> tuple[int, int]:
    """Find the bit pattern of the ``count``-th least saliency by two histograms, holding one tensor at a time.

    Returns:
        The pattern, and how many that are equal to it still go.
    """
    if count == 0:
        return 0, 0
    coarse = np.zeros(1 << _BUCKET_BITS, np.int64)
    for i, weight in enumerate(weights):
        high = _bits(criterion.saliency(weight, _rng(seed, i))).reshape(-1) >> _BUCKET_BITS
        coarse += np.bincount(high, minlength=len(coarse))
    bucket = int(np.searchsorted(np.cumsum(coarse), count))
    left = count - int(coarse[:bucket].sum())
    fine = np.zeros(1 << _BUCKET_BITS, np.int64)
    for i, weight in enumerate(weights):
        bits = _bits(criterion.saliency(weight, _rng(seed, i))).reshape(-1)
        low = bits[bits >> _BUCKET_BITS == bucket] & ((1 << _BUCKET_BITS) - 1)
        fine += np.bincount(low, minlength=len(fine))
    position = int(np.searchsorted(np.cumsum(fine), left))
    return (bucket << _BUCKET_BITS) | position, left - int(fine[:position].sum())
