"""Criteria that look at the weights alone: magnitude, LAMP, BatchNorm scales and chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.scoring.acting import acting_numbers
from onnxprune.scoring.registry import Context, criterion, unit_criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.masking import constant_content
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight


@criterion("magnitude", source="Han et al. 2015, Learning both Weights and Connections, section 3.1 (L2 over a unit)",
           compares="layer")  # fmt: skip
def l2(weight: Weight, _: Context) -> npt.NDArray[np.float32]:
    """w^2: ranks single weights by |w|, and units by the L2 norm of all that goes with them."""
    return np.square(acting_numbers(weight))


@criterion("l1", source="Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.1", compares="layer")
def l1(weight: Weight, _: Context) -> npt.NDArray[np.float32]:
    """|w|: ranks units by the L1 norm of all that goes with them."""
    return np.abs(acting_numbers(weight))


@criterion("random", source="the baseline of Blalock et al. 2020, section 7.2")
def chance(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """Uniform in [0, 1), by the run's seed."""
    return context.rng.random(weight.shape, dtype=np.float32)


@criterion("lamp", source="Lee et al. 2021, Layer-adaptive Sparsity for Magnitude-based Pruning, eq. 4",
           cost="one sort of the weights")  # fmt: skip
def lamp(weight: Weight, _: Context) -> npt.NDArray[np.float32]:
    """w^2 / (sum of the squares in its tensor that are no smaller): ranked globally it sets each layer's share."""
    squares = np.square(acting_numbers(weight).astype(np.float64)).reshape(-1)
    order = np.argsort(squares, kind="stable")
    scores = np.empty_like(squares)
    scores[order] = _lamp_of_sorted(squares[order])
    return scores.reshape(weight.shape).astype(np.float32)


def sorted_lamp(weight: Weight) -> npt.NDArray[np.float64]:
    """Return the LAMP scores of a weight's numbers in rising order, shape (size,); cheaper than those in place."""
    squares = np.sort(np.abs(acting_numbers(weight)), axis=None).astype(np.float64)
    return _lamp_of_sorted(np.square(squares, out=squares))


def _lamp_of_sorted(squares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    tails = np.cumsum(squares[::-1])[::-1]
    np.maximum(tails, np.finfo(np.float64).tiny, out=tails)
    return np.divide(squares, tails, out=np.ascontiguousarray(squares))


@unit_criterion(
    "bn-scale", source="Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming"
)
def batchnorm_scale(structure: Structure, _: list[Weight], group: Group, __: Context) -> npt.NDArray[np.float64]:
    """|gamma|: the mean magnitude of the scales that BatchNormalization gives to a unit's channels."""
    totals, counts = np.zeros(structure.terms.count), np.zeros(structure.terms.count)
    has_batch_norm = False
    for site in group.sites:
        ids = structure.axes[site.value][site.axis]
        if isinstance(ids, Dynamic) or not _is_scale(site.value.uses()):
            continue
        has_batch_norm = True
        rows, atoms = structure.members(ids)
        np.add.at(totals, atoms, np.abs(constant_content(site.value).astype(np.float64))[rows])
        np.add.at(counts, atoms, 1.0)
    if not has_batch_norm:
        raise RecipeError(
            "no BatchNormalization scales these units (exporters fold it into the convolution before it, unless they "
            "export in training mode)"
        )
    return totals[group.atoms] / np.maximum(counts[group.atoms], 1)


def _is_scale(uses: object) -> bool:
    return any(node.op_type == "BatchNormalization" and index == 1 for node, index in uses)  # type: ignore[attr-defined]
