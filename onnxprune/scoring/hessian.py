"""Criteria of second order: a layer's squared output error (OBC, SparseGPT), or the loss (OBD)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.scoring.acting import acting_numbers
from onnxprune.scoring.elimination import Consumer, eliminate
from onnxprune.scoring.registry import Context, criterion, unit_criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

_COST = "one pass over the calibration data and one inverse a layer"
_SOURCE = "Frantar and Alistarh 2022, Optimal Brain Compression, eq. 3; 2023, SparseGPT, eq. 5"


@criterion("obc", looks_at="activations", needs="calibration", source=_SOURCE, cost=_COST, compares="layer")
def obc(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """w^2 / [H^-1]_qq with H = E[a a^T] + damping: a layer's error when one weight goes and the others adapt.

    The others do adapt in recovery, whose least squares within what is left is the weight update of OBC.
    """
    inverse = context.evidence.inverse_hessian(weight.name)
    layer = context.evidence.layer(weight.name)
    matrix = layer.to_matrix(acting_numbers(weight)).astype(np.float64) * layer.scale
    diagonal = np.diagonal(inverse, axis1=1, axis2=2)[:, None, :]
    return layer.from_matrix(np.square(matrix) / diagonal).astype(np.float32)


@unit_criterion("obc", needs="calibration", source=_SOURCE, cost=_COST)
def channel_obs(structure: Structure, weights: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """What a unit costs its consumers, tr(W_B [H^-1]_BB^-1 W_B^T) for its columns B, when all cheaper units are gone.

    The others adapt after each removal, their biases too where they can (H is centred then); see `elimination`. The
    score is the root of the cost, as for all saliencies that are squares.
    """
    consumers = []
    for weight in weights:
        blocks = _columns(structure, weight, group, context) if weight.name in context.evidence.layers else {}
        if blocks:
            layer = context.evidence.layer(weight.name)
            matrix = layer.to_matrix(acting_numbers(weight)).astype(np.float64) * layer.scale
            inverse = context.evidence.inverse_hessian(weight.name, centred=layer.shift is not None)
            consumers.append(Consumer(matrix, inverse, blocks))
    if not consumers:
        for weight in weights:
            if any(s.value is weight.value for s in group.sites):
                context.evidence.layer(weight.name)
        raise RecipeError("no layer reads these units by weights of its own")
    return np.asarray(np.sqrt(np.maximum(eliminate(consumers, len(group)), 0.0)))


def _columns(structure: Structure, weight: Weight, group: Group, context: Context) -> dict[int, npt.NDArray[np.int64]]:
    """Return, for each unit of a group that a layer reads, by its place in the group, the columns it feeds."""
    layer = context.evidence.layer(weight.name)
    axis = structure.axes[weight.value][layer.input_axis]
    if isinstance(axis, Dynamic):
        return {}
    rows, atoms = structure.members(axis)
    size = layer.matrix().shape[2] // len(axis)
    within = np.arange(size)
    return {
        unit: (rows[atoms == atom][:, None] * size + within).reshape(-1)
        for unit, atom in enumerate(group.atoms.tolist())
        if (atoms == atom).any()
    }


@criterion("obd", looks_at="gradients", needs="calibration",
           source="LeCun et al. 1990, Optimal Brain Damage, eq. 5 (Gauss-Newton diagonal)",
           cost="one backward pass a sample, at most 256")  # fmt: skip
def obd(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """h w^2 / 2, h the diagonal of the loss's Hessian (Gauss-Newton, by labels drawn from the model's own outputs)."""
    curvature = context.evidence.gradients.squared(sampled=True, name=weight.name)
    return (0.5 * curvature * np.square(weight.numbers())).astype(np.float32)
