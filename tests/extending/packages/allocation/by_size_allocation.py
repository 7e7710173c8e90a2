"""`--allocation by-size`: large layers lose a larger share than small ones."""

from collections.abc import Sequence

import numpy as np

from onnxprune.scoring import Weight
from onnxprune.selection.allocation import AllocationContext, Shares, allocation


@allocation("by-size")
def by_size(weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None) -> Shares:
    """Shares in proportion to the root of a layer's size, none above 1."""
    sizes = np.array([weight.size for weight in weights], float)
    low, high = 0.0, 1.0 / float(np.sqrt(sizes.min()))
    for _ in range(60):
        factor = (low + high) / 2
        shares = np.minimum(1.0, factor * np.sqrt(sizes))
        low, high = (low, factor) if shares @ sizes > sparsity * sizes.sum() else (factor, high)
    return {weight.value: float(share) for weight, share in zip(weights, shares, strict=True)}
