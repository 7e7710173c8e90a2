"""Zeros in patterns: N of every M weights along the reduction axis, or blocks of R outputs by C inputs.

N:M is what sparse tensor cores read (2:4: Mishra et al. 2021, Accelerating Sparse Deep Neural Networks): of every M
consecutive input channels of a Conv, or rows of K of a MatMul, at most N weights are non-zero, separately for each
output and kernel position. Blocks lie on the same matrix, outputs by inputs, for each kernel position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.layers import MatrixAxes, matrix_axes
from onnxprune.recipe.granularity import NM, Block
from onnxprune.scoring.registry import Criterion
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight

Saliencies = npt.NDArray[np.float32]

_TOGETHER = 1 << 18
"""Groups that are sorted at once: their order takes twice the bytes of their saliencies."""


@dataclass(frozen=True)
class PatternMasks:
    """What stays.

    Attributes:
        masks: For each weight that the pattern fits, True where it stays.
        dense: Weights that are left dense, with the reason.
    """

    masks: Mapping[ir.Value, Bools]
    dense: Mapping[str, str]


def pattern_masks(
    weights: Sequence[Weight], criterion: Criterion, pattern: NM | Block, sparsity: float, *,
    shares: Mapping[ir.Value, float] | None = None, seed: int = 0,
) -> PatternMasks:  # fmt: skip
    """Choose what stays.

    Args:
        weights: The prunable tensors.
        criterion: How saliency is measured.
        pattern: N:M sets the share that goes by itself; blocks go by their mean saliency.
        sparsity: The share of all weights that should be zero, for blocks; never more.
        shares: For blocks, the share of each weight; without them the blocks of all weights are ranked together.
        seed: For criteria that draw at random.
    """
    dense: dict[str, str] = {}

    def fitting() -> Iterator[tuple[Weight, Saliencies, MatrixAxes]]:
        for i, weight in enumerate(weights):
            axes = matrix_axes(weight.value, weight.node, weight.shape)
            reason = _misfit(weight, axes, pattern)
            if reason or axes is None:
                dense[weight.name] = reason
            else:
                yield weight, criterion.saliency(weight, np.random.default_rng([seed, i])), axes

    if isinstance(pattern, NM):
        masks = BitMasks((w.value, nm_mask(s, pattern, a.reduction)) for w, s, a in fitting())
    elif shares is None:
        masks = BitMasks(_block_masks(list(fitting()), pattern, sparsity * sum(w.size for w in weights)).items())
    else:
        separate = (_block_masks([one], pattern, shares[one[0].value] * one[0].size) for one in fitting())
        masks = BitMasks(item for part in separate for item in part.items())
    return PatternMasks(masks, dense)


def nm_mask(saliency: Saliencies, pattern: NM, axis: int) -> Bools:
    """Keep the ``n`` most salient of every ``m`` along an axis whose extent is a multiple of ``m``; ties in order."""
    moved = np.moveaxis(saliency, axis, -1)
    groups = np.ascontiguousarray(moved).reshape(-1, pattern.m)
    mask = np.zeros(groups.shape, bool)
    for start in range(0, len(groups), _TOGETHER):
        order = np.argsort(-groups[start : start + _TOGETHER], axis=1, kind="stable")
        np.put_along_axis(mask[start : start + _TOGETHER], order[:, : pattern.n], True, axis=1)
    return np.ascontiguousarray(np.moveaxis(mask.reshape(moved.shape), -1, axis))


def _misfit(weight: Weight, axes: MatrixAxes | None, pattern: NM | Block) -> str:
    """Why a pattern does not fit a weight, empty where it does."""
    if axes is None:
        return f"{weight.node.op_type} has no reduction axis that a pattern could lie on"
    extent, columns = axes.summed(weight.shape), pattern.m if isinstance(pattern, NM) else pattern.columns
    per_group = " in each of its groups" if extent != weight.shape[axes.reduction] else ""
    if extent % columns and (isinstance(pattern, NM) or per_group):
        return f"its reduction axis has {extent} entries{per_group}, no multiple of {columns}"
    return ""


def _block_masks(
    chosen: Sequence[tuple[Weight, Saliencies, MatrixAxes]], block: Block, budget: float
) -> dict[ir.Value, Bools]:
    """Drop the blocks of the least mean saliency, of all tensors together, while the budget of weights lasts."""
    tables = [_block_means(saliency, axes, block) for _, saliency, axes in chosen]
    if not tables:
        return {}
    means = np.concatenate([mean.reshape(-1) for mean, _ in tables])
    sizes = np.concatenate([size.reshape(-1) for _, size in tables])
    order = np.argsort(means, kind="stable")
    stays = np.ones(len(means), bool)
    stays[order[np.cumsum(sizes[order]) <= budget + 1e-9]] = False
    masks, start = {}, 0
    for (weight, _, axes), (mean, _) in zip(chosen, tables, strict=True):
        flags = stays[start : start + mean.size].reshape(mean.shape)
        start += mean.size
        rows, columns = weight.shape[axes.output], weight.shape[axes.reduction]
        flags = np.repeat(flags, block.rows, axis=-2)[..., :rows, :]
        flags = np.repeat(flags, block.columns, axis=-1)[..., :columns]
        masks[weight.value] = np.ascontiguousarray(np.moveaxis(flags, (-2, -1), (axes.output, axes.reduction)))
    return masks


def _block_means(
    saliency: Saliencies, axes: MatrixAxes, block: Block
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The mean saliency and the size of every block, shape [..., blocks of outputs, blocks of inputs]."""
    matrix = np.moveaxis(saliency, (axes.output, axes.reduction), (-2, -1)).astype(np.float64)
    rows, columns = matrix.shape[-2:]
    sums = np.add.reduceat(matrix, np.arange(0, rows, block.rows), axis=-2)
    sums = np.add.reduceat(sums, np.arange(0, columns, block.columns), axis=-1)
    sizes = np.outer(_lengths(rows, block.rows), _lengths(columns, block.columns))
    sizes = np.broadcast_to(sizes, sums.shape)
    return sums / sizes, sizes


def _lengths(extent: int, step: int) -> npt.NDArray[np.int64]:
    """The lengths of the pieces of an axis that is cut every ``step`` entries."""
    return np.diff(np.append(np.arange(0, extent, step), extent))
