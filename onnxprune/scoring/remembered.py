"""What data say of a model, found once: rankings ask again, and a search begins with the same model again and again.

memory = Memory()
criterion = remembered(find_criterion("obc").on(evidence), memory)      # of one model; another needs its own memory
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxprune.scoring.registry import Context, Criterion
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

Found = TypeVar("Found")


class Memory:
    """Scores of one model under one criterion, and a scan of it. Names and atom ids are alike in all its analyses."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}

    def recall(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """Return what was found under a key; find it where nothing was."""
        if key not in self._found:
            self._found[key] = find()
        found: Found = self._found[key]
        return found


def remembered(criterion: Criterion, memory: Memory) -> Criterion:
    """Return the criterion with what it finds by data kept in the memory; looks at the weights alone cost nothing."""
    weights, units, blocks = criterion.weights, criterion.units, criterion.blocks

    def saliency(weight: Weight, context: Context) -> npt.NDArray[np.float32]:
        assert weights is not None
        return memory.recall(("weight", weight.name), lambda: weights(weight, context))

    def of_units(structure: Structure, own: list[Weight], group: Group, context: Context) -> npt.NDArray[np.float64]:
        assert units is not None
        return memory.recall(("units", group.atoms.tobytes()), lambda: units(structure, own, group, context))

    def of_blocks(structure: Structure, own: Sequence[ResidualBlock], context: Context) -> npt.NDArray[np.float64]:
        assert blocks is not None
        return memory.recall(("blocks", *(b.name for b in own)), lambda: blocks(structure, own, context))

    return replace(
        criterion,
        weights=saliency if weights is not None and criterion.looks_at != "weights" else weights,
        units=of_units if units is not None and criterion.needs != "nothing" else units,
        blocks=of_blocks if blocks is not None and criterion.needs != "nothing" else blocks,
    )
