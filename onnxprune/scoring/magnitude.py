"""Criteria that look at the weights alone: magnitude and chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.scoring.registry import criterion
from onnxprune.scoring.weights import Weight


@criterion("magnitude", source="Han et al. 2015, Learning both Weights and Connections, section 3.1 (L2 over a unit)")
def l2(weight: Weight, _: np.random.Generator) -> npt.NDArray[np.float32]:
    """w^2: ranks single weights by |w|, and units by the L2 norm of all that goes with them."""
    return np.square(weight.numbers())


@criterion("l1", source="Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.1")
def l1(weight: Weight, _: np.random.Generator) -> npt.NDArray[np.float32]:
    """|w|: ranks units by the L1 norm of all that goes with them."""
    return np.abs(weight.numbers())


@criterion("random", source="the baseline of Blalock et al. 2020, section 7.2")
def chance(weight: Weight, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Uniform in [0, 1), by the run's seed."""
    return rng.random(weight.shape, dtype=np.float32)
