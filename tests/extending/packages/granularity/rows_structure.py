"""`--structure rows`: all weights of an output become zero as one, and the graph stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.graph.layers import matrix_axes
from onnxprune.pipeline.choose import Plan, Task, chooser
from onnxprune.recipe.granularity import Shape, structure
from onnxprune.scoring import Weight


@structure("rows", "all weights of an output become zero as one")
@dataclass(frozen=True)
class Rows(Shape):
    """All weights of an output go as one."""

    called = "rows"
    ranks = False

    @classmethod
    def parse(cls, text: str) -> Rows | None:
        """Read the value of --structure."""
        return cls() if text == "rows" else None


@chooser(Rows)
def choose_rows(task: Task) -> Plan:
    """Rows of the least mean saliency go, of all layers together, until the share is reached."""
    weights = [weight for weight in task.weights if matrix_axes(weight.value, weight.node) is not None]
    masks = {weight.value: np.ones(weight.shape, bool) for weight in weights}
    scored = []
    for number, weight in enumerate(weights):
        saliency = task.criterion.saliency(weight, np.random.default_rng([task.recipe.seed, number]))
        rows = by_rows(weight, saliency)
        scored += [(float(row.mean()), number, index) for index, row in enumerate(rows)]
    left = task.share * sum(weight.size for weight in weights)
    for _, number, index in sorted(scored):
        row = by_rows(weights[number], masks[weights[number].value])[index]
        if row.size <= left:
            row[...] = False
            left -= row.size
    return task.plan(masks)


def by_rows(weight: Weight, array: npt.NDArray) -> npt.NDArray:
    """A view of numbers of a weight's shape with the axis that counts outputs first."""
    axes = matrix_axes(weight.value, weight.node)
    assert axes is not None
    return np.moveaxis(array, axes.output, 0)
