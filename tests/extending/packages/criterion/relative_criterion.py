"""`--criterion relative`: weights against the mean of their layer."""

import numpy as np
import numpy.typing as npt

from onnxprune.scoring import Context, Weight, criterion


@criterion("relative", source="an example")
def relative(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """|w| / mean |w| of the layer."""
    magnitude = np.abs(weight.numbers())
    return magnitude / max(float(magnitude.mean()), 1e-30)
