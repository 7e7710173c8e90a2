"""How much goes of each layer: a registry of functions ``(weights, sparsity, context) -> {weight: share that goes}``.

All reach the sparsity asked for over all weights together, as nearly as whole weights allow.

    shares = ALLOCATIONS["erk"](weights, 0.9)
    masks = masks_of_shares(weights, criterion, shares)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.batches import Inputs
from onnxprune.errors import DataError
from onnxprune.graph.layers import matrix_axes
from onnxprune.graph.operators import operator_of
from onnxprune.plugins import Plugins, Registry, judged, summary
from onnxprune.runtime.stream.store import Store
from onnxprune.scoring.cache import ScoreCache
from onnxprune.scoring.magnitude import sorted_lamp
from onnxprune.scoring.registry import Compares, Criterion
from onnxprune.selection.sensitivity import OutputError, Sensitivity, scan, shares_by_sensitivity, zero_share
from onnxprune.selection.weights import least_of_each, least_salient
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight, total_size

Shares = dict[ir.Value, float]

_SCORES_IN_MEMORY = 128 << 20
"""Bytes of LAMP scores, eight for each weight; more lie on disk."""


@dataclass(eq=False)
class AllocationContext:
    """What an allocation knows beside the weights.

    Attributes:
        criterion: What goes first.
        inputs: Unlabelled samples by input name; None where there are none.
        seed: For criteria that draw at random.
        cache: Keeps a scan for the next time that one is asked for.
        table: The scan, once one was made.
    """

    criterion: Criterion
    inputs: Inputs | None = None
    seed: int = 0
    cache: ScoreCache = field(default_factory=ScoreCache)
    table: Sensitivity | None = None


Divide = Callable[[Sequence[Weight], float, AllocationContext | None], Shares | None]
"""Shares of the weights; None leaves them to the one ranking of all weights together."""

Needs = Literal["nothing", "calibration"]


@dataclass(frozen=True)
class Allocation:
    """A way to divide the sparsity among layers.

    Attributes:
        divide: The function.
        needs: Whether it needs calibration inputs.
        asks: Whether it, or the ranking that it leaves all to, asks for the scores of a weight more than once.
    """

    divide: Divide
    needs: Needs = "nothing"
    asks: bool = True

    def __call__(
        self, weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None
    ) -> Shares | None:
        return self.divide(weights, sparsity, context)

    @property
    def formula(self) -> str:
        """The first sentence of the docstring."""
        return summary(self.divide)


USUAL_ALLOCATION: Mapping[Compares, str] = {"model": "global", "layer": "lamp", "output": "uniform"}
"""What ``--allocation auto`` is for single weights, by where the criterion compares."""


def allocation_of(name: str, criterion: Criterion) -> Allocation:
    """Return an allocation of single weights by name; ``auto`` is the usual one for the criterion.

    Raises:
        RecipeError: There is none of that name.
    """
    return ALLOCATIONS.find(USUAL_ALLOCATION[criterion.compares] if name == "auto" else name)


PLUGINS = Plugins("onnxprune.allocations")
"""What fills the registries of both allocations: of single weights and of whole units."""


def _fault(shares: object, weights: Sequence[Weight], *_: object) -> str:
    """What is wrong with the shares that a user's function gave."""
    if shares is None:
        return ""
    if not isinstance(shares, Mapping) or any(weight.value not in shares for weight in weights):
        return "is not a mapping with the share that goes of each weight, by `weight.value`, nor None"
    for weight in weights:
        share = shares[weight.value]
        if not isinstance(share, (int, float, np.number)) or not 0 <= share <= 1:
            return f"holds the share {share!r} for '{weight.name}': shares are numbers between 0 and 1"
    return ""


ALLOCATIONS: Registry[Allocation] = Registry(
    "allocation of single weights",
    PLUGINS,
    flag="--allocation",
    of_function=lambda name, function: Allocation(judged(function, name, _fault)),
)


def allocation(name: str, *, needs: Needs = "nothing", asks: bool = True) -> Callable[[Divide], Divide]:
    """Register an allocation of single weights; see `Allocation`."""

    def register(function: Divide) -> Divide:
        ALLOCATIONS.add(name, Allocation(function, needs, asks), function)
        return function

    return register


@allocation("global")
def together(weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None) -> None:
    """No shares: the weights of all layers are ranked together, by saliencies that are relative to their layer's mean.

    Those that tell the loss of the whole model are ranked as they are.
    """


@allocation("uniform", asks=False)
def uniform(weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None) -> Shares:
    """The same share of every layer."""
    return {w.value: sparsity for w in weights}


@allocation("erk", asks=False)
def erk(weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None) -> Shares:
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
    axes = matrix_axes(weight.value, weight.node, weight.shape)
    matrix = None if axes is None else [shape[axes.output], shape[axes.reduction]]
    if matrix is not None and (operator_of(weight.node).kind != "conv" or np.prod(matrix) == weight.size):
        shape = matrix  # a kernel of 1 x 1 is none: such a layer is fully connected at each place
    return sum(shape) / float(np.prod(shape))


@allocation("lamp", asks=False)
def lamp_shares(weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None) -> Shares:
    """The shares that ranking all weights by LAMP gives, whatever criterion then chooses inside a layer.

    Source: Lee et al. 2021, Layer-adaptive Sparsity for Magnitude-based Pruning.
    """
    store = Store(_SCORES_IN_MEMORY)
    scores = [store.held(sorted_lamp(w)).view(np.uint64) for w in weights]  # in the order of their bit patterns
    count = round(sparsity * total_size(weights))
    gone = np.zeros(len(weights), np.int64)
    if count:
        threshold = _smallest(scores, count)
        gone = np.array([np.searchsorted(s, threshold, side="left") for s in scores])
        for i, s in enumerate(scores):  # of those that are equal, the first ones
            gone[i] += min(count - int(gone.sum()), int(np.searchsorted(s, threshold, side="right")) - int(gone[i]))
    return {w.value: float(n) / w.size for w, n in zip(weights, gone, strict=True)}


def _smallest(arrays: Sequence[npt.NDArray[np.uint64]], count: int) -> np.uint64:
    """Return the ``count``-th smallest number of sorted arrays, of which only a few pages are read."""
    low, high = 0, (1 << 64) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(int(np.searchsorted(a, np.uint64(middle), side="right")) for a in arrays) >= count:
            high = middle
        else:
            low = middle + 1
    return np.uint64(low)


@allocation("sensitivity", needs="calibration")
def by_sensitivity(weights: Sequence[Weight], sparsity: float, context: AllocationContext | None = None) -> Shares:
    """By a scan: each layer is pruned alone to several levels, and errors of the outputs, taken as additive, are least.

    Source: Han et al. 2015, Learning both Weights and Connections, section 4.1 and figure 6.

    Raises:
        DataError: There are no inputs to scan on.
    """
    if context is None or context.inputs is None:
        raise DataError("the allocation 'sensitivity' scans layers on calibration data, and there are none.")
    criterion, seed, measure = context.criterion, context.seed, OutputError(weights[0].structure.model, context.inputs)
    context.table = table = context.cache.recall("scan", lambda: scan(weights, criterion, measure, seed=seed))
    shares = shares_by_sensitivity(table, sparsity, [zero_share(w) for w in weights])
    return {w.value: shares[w.name] for w in weights}


def masks_of_shares(
    weights: Sequence[Weight], criterion: Criterion, shares: Mapping[ir.Value, float], *, seed: int = 0
) -> Mapping[ir.Value, Bools]:
    """Let the least salient share of each weight go: masks, True where a weight stays.

    A criterion that compares within outputs lets the same share of each output's weights go.
    """

    def mask(i: int, weight: Weight) -> Bools:
        saliency = criterion.saliency(weight, np.random.default_rng([seed, i]))
        count, axes = round(shares[weight.value] * weight.size), matrix_axes(weight.value, weight.node)
        if criterion.compares == "output" and axes is not None:
            one = operator_of(weight.node).kind in ("conv", "rnn")
            rows = [axes.output] if one else [i for i in range(saliency.ndim) if i != axes.reduction]
            return least_of_each(saliency, count, *rows)
        return least_salient(saliency, count)

    return BitMasks((weight.value, mask(i, weight)) for i, weight in enumerate(weights))
