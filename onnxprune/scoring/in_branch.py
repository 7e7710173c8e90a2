"""Scores of units that lie in branches: found in the branch that the samples take, and told to the whole model.

A criterion that looks at data sees the nodes of the main graph alone. So of a merged decoder it is given one branch in
the place of the If (`Evidence.structure`), whose units are other atoms than those of the model. Weights keep their
names: atoms that go with the same index of the same constant belong together.

    pairs = Pairs.of(structure, view)
    scores, found = pairs.told(scores_of_view, found_of_view)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools, Ids


@dataclass(frozen=True, eq=False)
class Pairs:
    """Atoms of a model, and those of one of its branches that go with the same weights.

    Attributes:
        count: How many ids the model has.
        atoms: Atoms of the model, shape (pairs,).
        inner: Those of the branch, in the same order; each pair is there once.
    """

    count: int
    atoms: Ids
    inner: Ids

    @classmethod
    def of(cls, structure: Structure, view: Structure) -> Pairs:
        """Match the atoms of both by the names of their constants."""
        inside = {str(value.name): value for value in view.sources}
        found = [np.zeros((0, 2), np.int64)]
        for value in structure.sources:
            twin = inside.get(str(value.name))
            for axis in range(len(structure.axes[value]) if twin is not None else 0):
                ours, theirs = structure.ids(value, axis), view.ids(twin, axis) if twin is not None else None
                if ours is not None and theirs is not None and len(ours) == len(theirs):
                    found.append(_joined(structure.members(ours), view.members(theirs)))
        pairs = np.unique(np.concatenate(found), axis=0)
        return cls(structure.terms.count, pairs[:, 0], pairs[:, 1])

    def told(self, scores: npt.NDArray[np.float64], found: Bools) -> tuple[npt.NDArray[np.float64], Bools]:
        """Return the scores of the model's atoms, the sum over those of the branch, and which atoms have one.

        Args:
            scores: Of the branch, by atom id.
            found: Which of its atoms were scored.
        """
        known = found[self.inner]
        sums, has = np.zeros(self.count), np.zeros(self.count, bool)
        np.add.at(sums, self.atoms[known], scores[self.inner[known]])
        has[self.atoms[known]] = True
        return sums, has


def _joined(ours: tuple[Ids, Ids], theirs: tuple[Ids, Ids]) -> npt.NDArray[np.int64]:
    """Pairs of atoms that have an index in common, from (index, atom) pairs of both sides; shape (pairs, 2)."""
    order = np.argsort(theirs[0], kind="stable")
    rows, atoms = theirs[0][order], theirs[1][order]
    first = np.searchsorted(rows, ours[0], "left")
    counts = np.searchsorted(rows, ours[0], "right") - first
    starts = np.repeat(first - np.cumsum(counts) + counts, counts)
    return np.stack([np.repeat(ours[1], counts), atoms[starts + np.arange(int(counts.sum()))]], axis=1)
