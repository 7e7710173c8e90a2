"""Han's threshold: a weight goes when it is smaller than a quality parameter times its layer's standard deviation.

Source: Han, Pool, Tran and Dally 2015 (Learning both Weights and Connections), section 4: "the pruning threshold is
chosen as a quality parameter multiplied by the standard deviation of a layer's weights". The share that goes follows
from the weights themselves, unlike with a share set in advance.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError


def threshold_masks(
    weights: Mapping[str, npt.NDArray[np.floating]],
    quality: float | Mapping[str, float],
    kept: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks, True where a weight stays: |w| >= q std(w).

    Args:
        weights: Initializer name -> its array, any shape.
        quality: q, one for all, or one for each name.
        kept: Masks of an earlier step. The standard deviation is then that of the surviving weights alone, and what
            was pruned stays pruned.

    Raises:
        RecipeError: A quality is negative or missing.
    """
    masks = {}
    for name, weight in weights.items():
        q = quality.get(name) if isinstance(quality, Mapping) else quality
        if q is None:
            raise RecipeError(f"No quality parameter is given for '{name}'.")
        if q < 0:
            raise RecipeError(f"The quality parameter of '{name}' is {q:g}; it has to be 0 or more.")
        alive = kept[name] if kept is not None and name in kept else np.ones(weight.shape, dtype=bool)
        survivors = weight[alive].astype(np.float64)
        limit = q * float(survivors.std()) if survivors.size else 0.0
        masks[name] = alive & (np.abs(weight) >= limit)
    return masks
