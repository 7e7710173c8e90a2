"""Which residual blocks go: the least important for what they save, while the budget lasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.structure.blocks import ResidualBlock, as_one, layers_of
from onnxprune.structure.weights import Weight

_OVERSHOOT = 0.005  # a block that goes further beyond the target than this share is left out


def select_blocks(
    blocks: Sequence[ResidualBlock],
    scores: npt.NDArray[np.float64],
    weights: Sequence[Weight],
    sparsity: float,
    most: float = 0.0,
) -> tuple[list[ResidualBlock], int]:
    """Take blocks in the order of score per parameter until the budget is met, or the nearest below it.

    A block inside one that goes is not taken beside it.

    Args:
        blocks: What is on offer.
        scores: Of each.
        weights: The prunable weights, of which `sparsity` is a share.
        sparsity: The share of their parameters that should go.
        most: The share that a single block may bring what is gone to, where that is more: see `UnitBudget`.

    Returns:
        The blocks, in the order of the model, and how many parameters go with them.
    """
    sizes = {w.value: w.size for w in weights}
    total = sum(sizes.values())
    target, limit = sparsity * total, (max(sparsity, most) + _OVERSHOOT) * total
    order = np.argsort(scores / np.array([max(block.size, 1) for block in blocks]), kind="stable")
    taken: dict[int, ResidualBlock] = {}
    gone: dict[ir.Value, int] = {}
    for number in order.tolist():
        block = blocks[number]
        if sum(gone.values()) >= target or any(block.add in other.nodes for other in taken.values()):
            continue
        after = gone | _counted(block, sizes)
        if sum(after.values()) <= limit:
            taken = {n: b for n, b in taken.items() if b.add not in block.nodes} | {number: block}
            gone = after
    return [taken[number] for number in sorted(taken)], sum(gone.values())


def select_layers(
    blocks: Sequence[ResidualBlock],
    scores: npt.NDArray[np.float64],
    weights: Sequence[Weight],
    sparsity: float,
    most: float = 0.0,
) -> tuple[list[ResidualBlock], int]:
    """Take whole layers, each with all its blocks; its score is the sum of theirs. Arguments as of `select_blocks`."""
    layers = layers_of(blocks)
    number = {block: i for i, block in enumerate(blocks)}
    sums = np.array([sum(scores[number[block]] for block in layer) for layer in layers])
    whole = [as_one(layer) for layer in layers]
    chosen, gone = select_blocks(whole, sums, weights, sparsity, most)
    return [block for i, layer in enumerate(layers) if whole[i] in chosen for block in layer], gone


def _counted(block: ResidualBlock, sizes: Mapping[ir.Value, int]) -> dict[ir.Value, int]:
    return {value: size for value, size in block.weights.items() if value in sizes}
