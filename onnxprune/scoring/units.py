"""From the saliency of weights to the score of units: the sum over all sites of a unit, fair between groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.errors import RecipeError
from onnxprune.scoring.in_branch import Pairs
from onnxprune.scoring.registry import Criterion
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight, prunable_weights

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

    def or_else(self, other: UnitScores, groups: Sequence[Group]) -> UnitScores:
        """Take the scores of some groups that have none from others of these groups."""
        values = self.values.copy()
        for group in groups:
            values[group.atoms] = other.values[group.atoms]
        left = {group: reason for group, reason in self.unscored.items() if group not in groups}
        return UnitScores(values, {**left, **other.unscored})


def score_units(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], criterion: Criterion, seed: int
) -> UnitScores:
    """Score every atom that the criterion can score.

    The score of an atom is the root of the summed saliencies over all its sites (the L2 norm of the unit where the
    saliency is w^2), or what the criterion says of units itself, divided by the mean over its group, so that groups of
    small and of large weights compete fairly (Blalock et al. 2020, section 2.3: global scope).
    """
    rng, unscored = np.random.default_rng(seed), dict[Group, str]()
    if criterion.units is not None:
        scores, unscored = _told_by_data(structure, weights, groups, criterion, rng)
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


def _told_by_data(
    structure: Structure,
    weights: Sequence[Weight],
    groups: Sequence[Group],
    criterion: Criterion,
    rng: np.random.Generator,
) -> tuple[Scores, dict[Group, str]]:
    """What a criterion says of units itself, by atom id, and the groups that it cannot score, with the reason.

    Where its data were taken in a branch, it scores the units of that branch.
    """
    evidence = criterion.evidence if criterion.needs != "nothing" else None
    if evidence is None or evidence.structure is structure:
        return _by_groups(structure, weights, groups, criterion, rng)
    view, names = evidence.structure, {weight.name for weight in weights}
    inner = [weight for weight in prunable_weights(view) if weight.name in names]
    pairs = Pairs.of(structure, view)
    wanted = pairs.inner[np.isin(pairs.atoms, np.concatenate([group.atoms for group in groups]))]
    inside = [group for group in view.groups if np.isin(group.atoms, wanted).any()]
    values, missed = _by_groups(view, inner, inside, criterion, rng)
    able = np.zeros(view.terms.count, bool)
    for group in inside:
        able[group.atoms] = group not in missed
    scores, has = pairs.told(values, able)
    why = next(iter(missed.values()), "the branch that the samples take does not read them")
    return scores, {group: why for group in groups if not has[group.atoms].all()}


def _by_groups(
    structure: Structure,
    weights: Sequence[Weight],
    groups: Sequence[Group],
    criterion: Criterion,
    rng: np.random.Generator,
) -> tuple[Scores, dict[Group, str]]:
    assert criterion.units is not None
    scores, unscored = np.zeros(structure.terms.count), dict[Group, str]()
    for group in groups:
        try:
            scores[group.atoms] = criterion.units(structure, list(weights), group, criterion.context(rng))
        except RecipeError as reason:
            unscored[group] = str(reason)
    return scores, unscored


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
