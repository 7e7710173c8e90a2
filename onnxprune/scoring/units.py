"""From the saliency of weights to the score of units: the sum over all sites of a unit, fair between groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.scoring.registry import Criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

Scores = npt.NDArray[np.float64]


def unit_scores(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], criterion: Criterion, seed: int
) -> Scores:
    """Score every atom of groups that can be scored; see `score_units`.

    Raises:
        RecipeError: The criterion has no scores for the units of one of them.
    """
    scores = score_units(structure, weights, groups, criterion, seed)
    for reason in scores.unscored.values():
        raise RecipeError(reason)
    return scores.values


@dataclass(frozen=True, eq=False)
class UnitScores:
    """Scores of units.

    Attributes:
        values: By atom id, shape (number of ids,); atoms without a weight have 0.
        unscored: Groups that the criterion has no scores for, with the reason.
    """

    values: Scores
    unscored: Mapping[Group, str]

    def or_else(self, other: UnitScores) -> UnitScores:
        """Take the scores of groups that have none from others of these groups."""
        values = self.values.copy()
        for group in self.unscored:
            values[group.atoms] = other.values[group.atoms]
        return UnitScores(values, other.unscored)


def score_units(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], criterion: Criterion, seed: int
) -> UnitScores:
    """Score every atom that the criterion can score.

    The score of an atom is the root of the summed saliencies over all its sites (the L2 norm of the unit where the
    saliency is w^2), or what the criterion says of units itself, divided by the mean over its group, so that groups of
    small and of large weights compete fairly (Blalock et al. 2020, section 2.3: global scope).
    """
    rng = np.random.default_rng(seed)
    unscored: dict[Group, str] = {}
    if criterion.units is not None:
        scores: Scores = np.zeros(structure.terms.count)
        for group in groups:
            try:
                scores[group.atoms] = criterion.units(structure, list(weights), group, criterion.context(rng))
            except RecipeError as reason:
                unscored[group] = str(reason)
    else:
        obstacles = {w.value: criterion.obstacle(w) for w in weights}
        able = [w for w in weights if not obstacles[w.value]]
        scores = np.sqrt(sum_over_units(structure, able, lambda w: criterion.saliency(w, rng)))
        for group in groups:
            reasons = [obstacles[site.value] for site in group.sites if site.value in obstacles]
            if reasons and all(reasons):
                unscored[group] = reasons[0]
    for group in groups:
        mean = scores[group.atoms].mean()
        if mean > 0:
            scores[group.atoms] /= mean
    return UnitScores(scores, unscored)


def sum_over_units(
    structure: Structure, weights: Iterable[Weight], numbers: Callable[[Weight], npt.NDArray[np.floating]]
) -> Scores:
    """Add up numbers of each weight's shape over all that goes with an atom; by atom id, shape (number of ids,)."""
    sums: Scores = np.zeros(structure.terms.count)
    for weight in weights:
        array = numbers(weight)
        for axis, ids in enumerate(structure.axes[weight.value]):
            if isinstance(ids, Dynamic):
                continue
            rows, atoms = structure.members(ids)
            if len(atoms):
                others = tuple(i for i in range(array.ndim) if i != axis)
                np.add.at(sums, atoms, array.sum(axis=others, dtype=np.float64)[rows])
    return sums
