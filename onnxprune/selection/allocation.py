"""How much goes of each layer: uniform, ERK, LAMP, or by measured sensitivity. Each gives {weight: share that goes}.

All reach the sparsity asked for over all weights together, as nearly as whole weights allow.

    shares = ALLOCATIONS["erk"](weights, 0.9)
    masks = masks_of_shares(weights, criterion, shares)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.runtime.graph_tools import Builder
from onnxprune.runtime.statistics import Inputs, batches, output_error, shadow
from onnxprune.scoring.magnitude import lamp
from onnxprune.scoring.registry import Context, Criterion
from onnxprune.scoring.weights import Weight, total_size
from onnxprune.selection.matrices import matrix_axes
from onnxprune.structure.masking import constant_content, zero_of
from onnxprune.structure.terms import Bools

Shares = dict[ir.Value, float]
Allocation = Callable[[Sequence[Weight], float], Shares]

ALLOCATIONS: dict[str, Allocation] = {}
"""Allocations that look at shapes and weights alone, by name."""

Point = tuple[float, float]

LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def allocation(name: str) -> Callable[[Allocation], Allocation]:
    """Register an allocation."""

    def register(function: Allocation) -> Allocation:
        ALLOCATIONS[name] = function
        return function

    return register


@allocation("uniform")
def uniform(weights: Sequence[Weight], sparsity: float) -> Shares:
    """The same share of every layer."""
    return {w.value: sparsity for w in weights}


@allocation("erk")
def erk(weights: Sequence[Weight], sparsity: float) -> Shares:
    """Erdos-Renyi kernel: density in proportion to (inputs + outputs + sides of the kernel) / (their product).

    Layers whose density would exceed 1 stay dense, and the others share what is left.
    Source: Evci et al. 2020, Rigging the Lottery, section 3, Mask Initialization.
    """
    raw = np.array([_erk_factor(w) for w in weights])
    sizes = np.array([w.size for w in weights], np.float64)
    budget = (1 - sparsity) * sizes.sum()
    full = np.zeros(len(weights), bool)
    while True:
        scale = max(budget - sizes[full].sum(), 0.0) / max(float((raw * sizes)[~full].sum()), 1e-300)
        over = ~full & (scale * raw > 1)
        if not over.any():
            break
        full |= over
    density = np.where(full, 1.0, scale * raw)
    return {w.value: float(1 - d) for w, d in zip(weights, density, strict=True)}


def _erk_factor(weight: Weight) -> float:
    shape = list(weight.shape)
    axes = matrix_axes(weight)
    if axes is not None and len(shape) == 3 and weight.node.op_type not in ("Conv", "ConvTranspose"):
        shape = [shape[axes.output], shape[axes.reduction]]
    return sum(shape) / float(np.prod(shape))


@allocation("lamp")
def lamp_shares(weights: Sequence[Weight], sparsity: float) -> Shares:
    """The shares that ranking all weights by LAMP gives, whatever criterion then chooses inside a layer.

    Source: Lee et al. 2021, Layer-adaptive Sparsity for Magnitude-based Pruning.
    """
    context = Context(np.random.default_rng(0))
    scores = [lamp(w, context).reshape(-1) for w in weights]
    owner = np.repeat(np.arange(len(weights)), [s.size for s in scores])
    order = np.argsort(np.concatenate(scores), kind="stable")[: round(sparsity * total_size(weights))]
    gone = np.bincount(owner[order], minlength=len(weights))
    return {w.value: float(n) / w.size for w, n in zip(weights, gone, strict=True)}


def masks_of_shares(
    weights: Sequence[Weight], criterion: Criterion, shares: Mapping[ir.Value, float], *, seed: int = 0
) -> dict[ir.Value, Bools]:
    """Let the least salient share of each weight go: masks, True where a weight stays."""
    return {
        w.value: least_salient_mask(criterion.saliency(w, np.random.default_rng([seed, i])), shares[w.value])
        for i, w in enumerate(weights)
    }


def least_salient_mask(saliency: npt.NDArray[np.float32], share: float) -> Bools:
    """Drop exactly ``round(share * size)`` entries, the least salient; ties go in order."""
    mask = np.ones(saliency.size, bool)
    mask[np.argsort(saliency.reshape(-1), kind="stable")[: round(share * saliency.size)]] = False
    return mask.reshape(saliency.shape)


# -- by sensitivity -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sensitivity:
    """How much a model suffers when a share of one layer goes and nothing else.

    Attributes:
        names: The weights.
        sizes: Their numbers of parameters.
        levels: Shares that were tried, rising.
        errors: Relative squared error of the model's outputs, shape (weights, levels).
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    levels: tuple[float, ...]
    errors: npt.NDArray[np.float64]

    def rows(self) -> list[dict[str, object]]:
        """Return one row a layer for a table."""
        return [
            {"weight": name, "parameters": size}
            | {f"{level:.0%}": float(e) for level, e in zip(self.levels, row, strict=True)}
            for name, size, row in zip(self.names, self.sizes, self.errors, strict=True)
        ]


def scan(
    weights: Sequence[Weight], criterion: Criterion, inputs: Inputs, *, levels: Sequence[float] = LEVELS,
    seed: int = 0, batch: int = 64, progress: Callable[[str], None] | None = None,
) -> Sensitivity:  # fmt: skip
    """Prune one layer at a time to each level and measure the outputs (Han et al. 2015, section 4.1 and figure 6).

    Args:
        weights: The layers, of one normalised model. It stays as it is.
        criterion: What goes first.
        inputs: Unlabelled samples by input name.
        levels: Shares to try, rising.
        seed: For criteria that draw at random.
        batch: Samples run at once.
        progress: Called with the name of each layer.
    """
    model = weights[0].structure.model
    feeds = batches(model, inputs, batch)
    outputs = [str(v.name) for v in model.graph.outputs]
    errors = np.zeros((len(weights), len(levels)))
    for i, weight in enumerate(weights):
        if progress is not None:
            progress(weight.name)
        saliency = criterion.saliency(weight, np.random.default_rng([seed, i]))
        for j, level in enumerate(levels):
            joined = shadow(model, model)
            _zero(joined, weight, least_salient_mask(saliency, level))
            errors[i, j] = output_error(joined, feeds, outputs)
    return Sensitivity(tuple(w.name for w in weights), tuple(w.size for w in weights), tuple(levels), errors)


def _zero(joined: ir.Model, weight: Weight, mask: Bools) -> None:
    """Zero what a mask drops of one weight, in one of the two models of a joined graph."""
    values = (*joined.graph.initializers.values(), *(out for node in joined.graph for out in node.outputs))
    value = next(v for v in values if v.name == weight.name)
    array = constant_content(weight.value).copy()
    np.copyto(array, zero_of(weight.structure.fills.get(weight.value), array), where=~mask)
    value.replace_all_uses_with(Builder(joined).constant(array))


def shares_by_sensitivity(table: Sensitivity, sparsity: float) -> dict[str, float]:
    """Choose a level for each layer so that errors, taken as additive, are least for the weights that go.

    Steps go in the order of error per weight (along the lower convex hull of each layer's curve, which makes the greedy
    choice optimal at every step's end); the last one is taken in part, so that the sparsity is reached exactly.

    Returns:
        By weight name, the share that goes.
    """
    steps = []
    for i, size in enumerate(table.sizes):
        errors = np.maximum.accumulate([0.0, *table.errors[i].tolist()])
        for (x0, y0), (x1, y1) in _hull([0.0, *table.levels], errors.tolist()):
            steps.append(((y1 - y0) / ((x1 - x0) * size), i, x0, x1))
        steps.append((np.inf, i, table.levels[-1], 1.0))  # beyond what was measured, only where all else is gone
    shares = np.zeros(len(table.sizes))
    left = sparsity * sum(table.sizes)
    for _, i, start, stop in sorted(steps):
        taken = min(left, (stop - start) * table.sizes[i])
        shares[i] = start + taken / table.sizes[i] if taken > 0 else shares[i]
        left -= taken
    return dict(zip(table.names, shares.tolist(), strict=True))


def _hull(x: Sequence[float], y: Sequence[float]) -> list[tuple[Point, Point]]:
    """The segments of the lower convex hull of points with rising x."""
    kept: list[Point] = []
    for point in zip(x, y, strict=True):
        while len(kept) > 1 and _above(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return list(zip(kept, kept[1:], strict=False))


def _above(a: Point, b: Point, c: Point) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])
