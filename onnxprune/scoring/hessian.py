"""Criteria of second order: a layer's squared output error (OBC, SparseGPT), or the loss (OBD)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.scoring.registry import Context, criterion, unit_criterion
from onnxprune.scoring.weights import Weight
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure

_COST = "one pass over the calibration data and one inverse a layer"
_SOURCE = "Frantar and Alistarh 2022, Optimal Brain Compression, eq. 3; 2023, SparseGPT, eq. 5"


@criterion("obc", looks_at="activations", needs="calibration", source=_SOURCE, cost=_COST)
def obc(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """w^2 / [H^-1]_qq with H = E[a a^T] + damping: a layer's error when one weight goes and the others adapt.

    The others do adapt in recovery, whose least squares within what is left is the weight update of OBC.
    """
    inverse = context.evidence.inverse_hessian(weight.name)
    layer = context.evidence.layer(weight.name)
    matrix = layer.to_matrix(weight.numbers()).astype(np.float64) * layer.scale
    diagonal = np.diagonal(inverse, axis1=1, axis2=2)[:, None, :]
    return layer.from_matrix(np.square(matrix) / diagonal).astype(np.float32)


@unit_criterion("obc", needs="calibration", source=_SOURCE, cost=_COST)
def channel_obs(structure: Structure, weights: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
    """The sum over a unit's consumers of tr(W_B [H^-1]_BB^-1 W_B^T), for the block B of columns that the unit feeds.

    That is the squared output error that is left when the columns go and all others adapt (Kurtic et al. 2023,
    ZipLM, eq. 2). The score is its root, as for all saliencies that are squares.
    """
    sums = np.zeros(structure.terms.count)
    measured = False
    for weight in weights:
        if weight.name not in context.evidence.layers:
            continue
        layer = context.evidence.layer(weight.name)
        axis = structure.axes[weight.value][layer.input_axis]
        if isinstance(axis, Dynamic):
            continue
        rows, atoms = structure.terms.members(axis)
        wanted = np.isin(atoms, group.atoms)
        if not wanted.any():
            continue
        measured = True
        inverse = context.evidence.inverse_hessian(weight.name)
        matrix = layer.to_matrix(weight.numbers()).astype(np.float64) * layer.scale
        size = matrix.shape[2] // len(axis)
        for atom in np.unique(atoms[wanted]):
            columns = (rows[atoms == atom][:, None] * size + np.arange(size)).reshape(-1)
            for inner, w in zip(inverse, matrix[:, :, columns], strict=True):
                sums[atom] += float(np.sum(w * np.linalg.solve(inner[np.ix_(columns, columns)], w.T).T))
    if not measured:
        others = (w for w in weights if any(s.value is w.value for s in group.sites))
        for w in others:
            context.evidence.layer(w.name)
    return np.asarray(np.sqrt(np.maximum(sums[group.atoms], 0.0)))


@criterion("obd", looks_at="gradients", needs="calibration",
           source="LeCun et al. 1990, Optimal Brain Damage, eq. 5 (Gauss-Newton diagonal)",
           cost="one backward pass a sample, at most 256")  # fmt: skip
def obd(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
    """h w^2 / 2, h the diagonal of the loss's Hessian (Gauss-Newton, by labels drawn from the model's own outputs)."""
    curvature = context.evidence.gradients.squared(sampled=True, name=weight.name)
    return (0.5 * curvature * np.square(weight.numbers())).astype(np.float32)
