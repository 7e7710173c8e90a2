"""A cache of scores that are found by data: rankings ask for them again, and a search begins with one model many times.

cache = ScoreCache()
criterion = cached(find_criterion("obc").on(evidence), cache)      # of one model; another needs a cache of its own
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxprune.runtime.stream.store import Store
from onnxprune.scoring.registry import Context, Criterion
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

Scores = TypeVar("Scores")


class ScoreCache:
    """Scores of one model under one criterion, and a scan of it. Names and atom ids are alike in all its analyses."""

    def __init__(self) -> None:
        self._scores: dict[Hashable, Any] = {}
        self._store = Store()

    def recall(self, key: Hashable, find: Callable[[], Scores]) -> Scores:
        """Return what was found under a key before, or find it now."""
        if key not in self._scores:
            self._scores[key] = find()
        scores: Scores = self._scores[key]
        return scores

    def recall_array(self, key: Hashable, find: Callable[[], npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        """Do the same for an array of the size of a weight; many of them lie on disk."""
        return self.recall(key, lambda: self._store.held(find()))


def cached(criterion: Criterion, cache: ScoreCache, *, weights_too: bool = True) -> Criterion:
    """Return the criterion with all that it finds by data kept in the cache.

    What looks at the weights alone is cheap, so that it is computed anew.

    Args:
        criterion: Of one model.
        cache: Of that model.
        weights_too: Whether scores of single weights are worth keeping, which take as much as the weights: more than
            one ranking or run will ask for them.
    """
    weights, units, blocks = criterion.weights, criterion.units, criterion.blocks

    def of_weight(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
        assert weights is not None
        return cache.recall_array(("weight", weight.name), lambda: weights(weight, context))

    def of_units(
        structure: Structure, counted: list[Weight], group: Group, context: Context
    ) -> npt.NDArray[np.float64]:
        assert units is not None
        return cache.recall(("units", group.atoms.tobytes()), lambda: units(structure, counted, group, context))

    def of_blocks(structure: Structure, scored: Sequence[ResidualBlock], context: Context) -> npt.NDArray[np.float64]:
        assert blocks is not None
        return cache.recall(("blocks", *(b.name for b in scored)), lambda: blocks(structure, scored, context))

    return replace(
        criterion,
        weights=of_weight if weights_too and weights is not None and criterion.looks_at != "weights" else weights,
        units=of_units if units is not None and criterion.needs != "nothing" else units,
        blocks=of_blocks if blocks is not None and criterion.needs != "nothing" else blocks,
    )
