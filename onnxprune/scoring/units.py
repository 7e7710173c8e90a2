"""From the saliency of weights to the score of units: the sum over all sites of a unit, fair between groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.scoring.registry import Criterion
from onnxprune.scoring.weights import Weight
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure

Scores = npt.NDArray[np.float64]


def unit_scores(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], criterion: Criterion, seed: int
) -> Scores:
    """Score every atom.

    The score of an atom is the root of the summed saliencies over all its sites (the L2 norm of the unit where the
    saliency is w^2), divided by the mean over its group, so that groups of small and of large weights compete fairly
    (Blalock et al. 2020, section 2.3: global scope).

    Returns:
        Scores by atom id, shape (number of ids,); atoms without a weight have 0.
    """
    rng = np.random.default_rng(seed)
    sums: Scores = np.zeros(structure.terms.count)
    for weight in weights:
        saliency = criterion.saliency(weight, rng)
        for axis, ids in enumerate(structure.axes[weight.value]):
            if isinstance(ids, Dynamic):
                continue
            rows, atoms = structure.terms.members(ids)
            if len(atoms):
                others = tuple(i for i in range(saliency.ndim) if i != axis)
                np.add.at(sums, atoms, saliency.sum(axis=others, dtype=np.float64)[rows])
    scores = np.sqrt(sums)
    for group in groups:
        mean = scores[group.atoms].mean()
        if mean > 0:
            scores[group.atoms] /= mean
    return scores
