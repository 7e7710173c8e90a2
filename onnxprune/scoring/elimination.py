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
ROUNDS = 128
"""Largest number of rounds: in groups of more units, several go before the costs are worked out anew."""


class Consumer:
    """One layer that reads the units of a group: what each costs it, and how it adapts."""

    def __init__(self, weight: Matrix, inverse: Matrix, blocks: Mapping[int, Columns]) -> None:
        """Take the weights [g, O, K], the inverse Hessian [g, K, K] and the columns of each unit."""
        self.weight, self.inverse = weight.copy(), inverse.copy()
        self._blocks = blocks
        sizes = {len(columns) for columns in blocks.values()}
        self._by_size = [
            (
                np.array([unit for unit, c in blocks.items() if len(c) == size]),
                np.stack([c for c in blocks.values() if len(c) == size]),
            )
            for size in sorted(sizes)
        ]

    def costs(self, count: int) -> npt.NDArray[np.float64]:
        """Return what each of ``count`` units costs as things stand, shape [count]; 0 for one that is not read."""
        out = np.zeros(count)
        for w, inverse in zip(self.weight, self.inverse, strict=True):
            for units, columns in self._by_size:
                squares = inverse[columns[:, :, None], columns[:, None, :]]
                read = np.moveaxis(w[:, columns], 0, 2)
                out[units] += np.einsum("nbo,nbo->n", read, np.linalg.solve(squares, read))
        return out

    def remove(self, units: Sequence[int]) -> None:
        """Remove units; what is left makes up for them."""
        found = [self._blocks[unit] for unit in units if unit in self._blocks]
        if not found:
            return
        gone = np.concatenate(found)
        for w, inverse in zip(self.weight, self.inverse, strict=True):
            share = np.linalg.solve(inverse[np.ix_(gone, gone)], inverse[gone])
            w -= w[:, gone] @ share
            inverse -= inverse[:, gone] @ share
            w[:, gone] = 0.0
            inverse[gone], inverse[:, gone] = 0.0, 0.0
            inverse[gone, gone] = 1.0


def eliminate(consumers: Sequence[Consumer], count: int) -> npt.NDArray[np.float64]:
    """Remove all of ``count`` units, the cheapest first; return what each cost when it went, never less than before."""
    cost, left, level = np.zeros(count), np.ones(count, bool), 0.0
    at_once = -(-count // ROUNDS)
    while left.any():
        now = sum((c.costs(count) for c in consumers), np.zeros(count))
        alive = np.flatnonzero(left)
        cheapest = alive[np.argsort(now[alive], kind="stable")[:at_once]]
        for unit in cheapest.tolist():
            level = max(level, float(now[unit]))
            cost[unit] = level
        left[cheapest] = False
        for consumer in consumers:
            consumer.remove(cheapest.tolist())
    return cost
