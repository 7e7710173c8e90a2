"""Criteria that compare units with one another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.graph.layers import output_axis
from onnxprune.scoring.registry import Context, unit_criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight


@unit_criterion("fpgm", source="He et al. 2019, Filter Pruning via Geometric Median, eq. 4",
                cost="distances between all units of a group")  # fmt: skip
def geometric_median(structure: Structure, weights: list[Weight], group: Group, _: Context) -> npt.NDArray[np.float64]:
    """sum_j |f_i - f_j|: filters near the geometric median can be stood in for by the others.

    f is all that makes a unit: the slices of every weight that has the group among its outputs (all of its slices
    where it has none).
    """
    vectors = _filters(structure, weights, group, outputs_only=True)
    if not vectors:
        vectors = _filters(structure, weights, group, outputs_only=False)
    squares = np.zeros((len(group), len(group)))
    for v in vectors:
        norms = np.sum(v**2, axis=1)
        squares += norms[:, None] + norms[None, :] - 2 * v @ v.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)).sum(axis=1))


def _filters(
    structure: Structure, weights: list[Weight], group: Group, *, outputs_only: bool
) -> list[npt.NDArray[np.float64]]:
    """For each site the slices of the units, shape (units, numbers)."""
    by_value = {w.value: w for w in weights}
    filters = []
    for site in group.sites:
        weight, ids = by_value.get(site.value), structure.axes[site.value][site.axis]
        if weight is None or isinstance(ids, Dynamic):
            continue
        if outputs_only and site.axis != output_axis(weight.value, weight.node, weight.shape):
            continue
        rows, atoms = structure.members(ids)
        places = [rows[atoms == atom] for atom in group.atoms]
        array = np.moveaxis(weight.numbers().astype(np.float64), site.axis, 0)
        if len({len(p) for p in places}) == 1:
            filters.append(np.stack([array[p].reshape(-1) for p in places]))
    return filters
