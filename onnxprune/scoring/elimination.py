"""Channel OBS: the inputs of a layer go block by block, the cheapest first, and those that are left adapt after each.

For a block B of columns of W [O, K] and H the Hessian over the columns that are left, removing it costs

    tr(W_B ([H^-1]_BB)^-1 W_B^T),    W -= W_B ([H^-1]_BB)^-1 [H^-1]_B,    H^-1 -= [H^-1]_:B ([H^-1]_BB)^-1 [H^-1]_B:

(Kurtic et al. 2023, ZipLM, eqs. 2 and 3, algorithm 1.) After each block the rest is again the least-squares optimum,
so of two units that do the same, the second becomes dear once the first has gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.graph.linear import Matrix

Columns = npt.NDArray[np.int64]
ROUNDS = 64
"""Largest number of rounds: in groups of more units, several go before the costs are worked out anew."""

_HIGHER = 1 + 1e-9  # later units count for a little more, so that costs tell the order


class Consumer:
    """One layer that reads the units of a group: what each costs it, and how it adapts.

    Columns that are gone leave the matrices, so that a round costs what is left.

    Args:
        weight: The weights [g, O, K].
        inverse: The inverse Hessian [g, K, K].
        blocks: The columns of each unit, by its number.
        worth: What the error of this layer counts for among other consumers.
    """

    def __init__(self, weight: Matrix, inverse: Matrix, blocks: Mapping[int, Columns], worth: float = 1.0) -> None:
        self._weight, self._inverse, self._worth = weight.copy(), inverse.copy(), worth
        self._blocks = dict(blocks)
        self._place = np.arange(weight.shape[2])  # of each column in what is left of the matrices

    def costs(self, count: int) -> npt.NDArray[np.float64]:
        """Return what each of ``count`` units costs as things stand, shape [count]; 0 for one that is not read."""
        out = np.zeros(count)
        for units, columns in self._by_size():
            for w, inverse in zip(self._weight, self._inverse, strict=True):
                if columns.shape[1] == 1:
                    only = columns[:, 0]
                    out[units] += np.square(w[:, only]).sum(axis=0) / inverse[only, only]
                    continue
                squares = inverse[columns[:, :, None], columns[:, None, :]]
                read = np.moveaxis(w[:, columns], 0, 2)
                out[units] += np.einsum("nbo,nbo->n", read, np.linalg.solve(squares, read))
        return out * self._worth

    def remove(self, units: Sequence[int]) -> None:
        """Remove units; what is left makes up for them."""
        removed_blocks = [self._blocks.pop(unit) for unit in units if unit in self._blocks]
        if not removed_blocks:
            return
        gone = np.unique(self._place[np.concatenate(removed_blocks)])
        left = np.setdiff1d(np.arange(self._weight.shape[2]), gone)
        weights, inverses = [], []
        for w, inverse in zip(self._weight, self._inverse, strict=True):
            share = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[np.ix_(gone, left)])
            weights.append(w[:, left] - w[:, gone] @ share)
            inverses.append(inverse[np.ix_(left, left)] - inverse[np.ix_(left, gone)] @ share)
        self._weight, self._inverse = np.stack(weights), np.stack(inverses)
        place = np.full(len(self._place), -1)
        place[np.flatnonzero(np.isin(self._place, left))] = np.arange(len(left))
        self._place = place
        # Units may share columns, such as those of a value that is joined to itself: what is left of a unit counts.
        left_blocks = {unit: columns[place[columns] >= 0] for unit, columns in self._blocks.items()}
        self._blocks = {unit: columns for unit, columns in left_blocks.items() if len(columns)}

    def _by_size(self) -> list[tuple[npt.NDArray[np.int64], Columns]]:
        """The units that are left, those with as many columns together, with the places of these."""
        sizes = sorted({len(columns) for columns in self._blocks.values()})
        stacks = []
        for size in sizes:
            units = [unit for unit, columns in self._blocks.items() if len(columns) == size]
            stacks.append((np.array(units), self._place[np.stack([self._blocks[unit] for unit in units])]))
        return stacks


def eliminate(consumers: Sequence[Consumer], count: int) -> npt.NDArray[np.float64]:
    """Remove all of ``count`` units, the cheapest first; return what each cost when it went, more than those before."""
    cost, left, level = np.zeros(count), np.ones(count, bool), 0.0
    at_once = -(-count // ROUNDS)
    while left.any():
        now = sum((c.costs(count) for c in consumers), np.zeros(count))
        alive = np.flatnonzero(left)
        cheapest = alive[np.argsort(now[alive], kind="stable")[:at_once]]
        for unit in cheapest.tolist():
            level = max(level * _HIGHER, float(now[unit]))
            cost[unit] = level
        left[cheapest] = False
        for consumer in consumers:
            consumer.remove(cheapest.tolist())
    return cost
