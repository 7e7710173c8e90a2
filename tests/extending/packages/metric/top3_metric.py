"""`--metric top3`: the share of samples whose label is among the three largest class scores."""

import numpy as np
import numpy.typing as npt

from onnxprune.data.metrics import hits, metric


@metric("top3", needs="labels", higher_is_better=True)
def top3(output: npt.NDArray[np.float32], target: npt.NDArray[np.int64]) -> tuple[float, int]:
    """Share of samples whose label is among the three largest class scores."""
    counted = hits(output, target, 3)
    return float(counted.sum()), counted.size
