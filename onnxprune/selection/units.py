"""Which units go: the least important ones, in steps that keep counts round, until the budget is met."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxprune.scoring.units import Scores
from onnxprune.scoring.weights import Weight
from onnxprune.selection.rounding import RoundTo, kept_counts, step_of
from onnxprune.structure.axes import Dynamic, parts
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools, Ids

_OVERSHOOT = 0.005  # a step that goes further beyond the target than this share is left out


@dataclass(frozen=True)
class UnitBudget:
    """How much goes, and in which steps.

    Attributes:
        sparsity: The share of prunable parameters that should be gone, 0 to 1.
        scope: ``global`` ranks the units of all groups together, ``layer`` cuts every group alike.
        round_to: The step of kept counts.
        floor: No axis falls below so many indices.
    """

    sparsity: float
    scope: Literal["global", "layer"] = "global"
    round_to: RoundTo = "auto"
    floor: int = 1


@dataclass(frozen=True)
class UnitSelection:
    """What goes.

    Attributes:
        removed: Flags by atom id.
        prunable: The parameters that could go, by the groups on offer.
        gone: The parameters that go.
    """

    removed: Bools
    prunable: int
    gone: int

    @property
    def sparsity(self) -> float:
        """The share of prunable parameters that go."""
        return self.gone / self.prunable if self.prunable else 0.0


def select_units(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, budget: UnitBudget
) -> UnitSelection:
    """Take units in the order of their scores until the budget is met, or the nearest below it."""
    ledger = Ledger(structure, weights, groups, budget.floor)
    target, slack = budget.sparsity * ledger.prunable, _OVERSHOOT * ledger.prunable
    queue = [_Queue(structure, group, scores, budget) for group in groups]
    heap = [(q.priority(), i) for i, q in enumerate(queue) if q.more()]
    heapq.heapify(heap)
    while heap and ledger.gone < target:
        _, i = heapq.heappop(heap)
        atoms = queue[i].take()
        if ledger.remove(atoms, limit=target + slack) and queue[i].more():
            heapq.heappush(heap, (queue[i].priority(), i))
    return UnitSelection(ledger.removed, ledger.prunable, ledger.gone)


def select_share(
    structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], scores: Scores, share: float,
    round_to: RoundTo = "none", floor: int = 1,
) -> UnitSelection:  # fmt: skip
    """Cut the same share of units from every group: the nearest allowed count to ``(1 - share) n``, at least one."""
    ledger = Ledger(structure, weights, groups, floor)
    for group in groups:
        n = len(group)
        wanted = (1 - share) * n
        counts = kept_counts(n, step_of(structure, group, round_to), floor)
        kept = min(counts, key=lambda k: (abs(k - wanted), k))
        order = group.atoms[np.argsort(scores[group.atoms], kind="stable")]
        ledger.remove(order[: n - kept], limit=ledger.prunable)
    return UnitSelection(ledger.removed, ledger.prunable, ledger.gone)


class _Queue:
    """The units of one group, least important first, in chunks that end at allowed counts."""

    def __init__(self, structure: Structure, group: Group, scores: Scores, budget: UnitBudget) -> None:
        values = scores[group.atoms]
        order = np.argsort(values, kind="stable")
        self.atoms = group.atoms[order]
        self.values = values[order]
        self.uniform = budget.scope == "layer"
        self.counts = kept_counts(len(group), step_of(structure, group, budget.round_to), budget.floor)
        self.level = 0
        self.last = 0.0

    def more(self) -> bool:
        """Say whether there is another chunk."""
        return self.level + 1 < len(self.counts)

    def _chunk(self) -> slice:
        n = len(self.atoms)
        return slice(n - self.counts[self.level], n - self.counts[self.level + 1])

    def priority(self) -> float:
        """Return how dear the next chunk is: its mean score, never less than that of the chunk before."""
        chunk = self._chunk()
        new = chunk.stop / len(self.atoms) if self.uniform else float(self.values[chunk].mean())
        self.last = max(self.last, new)
        return self.last

    def take(self) -> Ids:
        """Return the atoms of the next chunk and go on to the one behind it."""
        chunk = self._chunk()
        self.level += 1
        return self.atoms[chunk]


class Ledger:
    """Keeps count of the parameters and of every axis while atoms go."""

    def __init__(self, structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], floor: int) -> None:
        self.structure = structure
        self.removed: Bools = np.zeros(structure.terms.count, bool)
        self.gone = 0
        self._floor = floor
        self._alive: list[Bools] = []
        self._left: list[int] = []
        self._rows: dict[int, list[tuple[int, Ids]]] = defaultdict(list)
        self._index: dict[bytes, int] = {}
        offered = np.zeros(structure.terms.count, bool)
        for group in groups:
            offered[group.atoms] = True
        for axes in structure.axes.values():
            for ids in (i for axis in axes for i in parts(axis)):
                self._register(ids, offered)
        self._weights = [self._axes_of(w) for w in weights]
        self._users: dict[int, list[int]] = defaultdict(list)
        for w, (axes_, _) in enumerate(self._weights):
            for k in set(axes_):
                self._users[k].append(w)
        self._sizes = [self._size(w) for w in range(len(self._weights))]
        self.prunable = sum(self._sizes) - sum(self._stuck(w, offered) for w in weights)

    def remove(self, atoms: Ids, *, limit: float) -> bool:
        """Remove atoms unless an axis would fall below the floor or more than ``limit`` parameters be gone."""
        before: dict[int, Bools] = {}
        for atom in atoms.tolist():
            for k, rows in self._rows.get(atom, ()):
                if k not in before:
                    before[k] = self._alive[k].copy()
                self._alive[k][rows] = False
        left = {k: int(np.count_nonzero(self._alive[k])) for k in before}
        touched = {w for k in before for w in self._users.get(k, ())}
        old = {k: self._left[k] for k in left}
        for k, n in left.items():
            self._left[k] = n
        sizes = {w: self._size(w) for w in touched}
        gone = self.gone + sum(self._sizes[w] - n for w, n in sizes.items())
        if any(n < self._floor for n in left.values()) or gone > limit:
            for k, flags in before.items():
                self._alive[k] = flags
                self._left[k] = old[k]
            return False
        for w, n in sizes.items():
            self._sizes[w] = n
        self.gone = gone
        self.removed[atoms] = True
        return True

    def _register(self, ids: Ids, offered: Bools) -> int | None:
        """Note an axis once, however many values have it; return its number, None where nothing of it can go."""
        key = self.structure.terms.find(ids).tobytes()
        if key not in self._index:
            rows, atoms = self.structure.terms.members(ids)
            wanted = offered[atoms]
            if not wanted.any():
                self._index[key] = -1
            else:
                self._index[key] = k = len(self._alive)
                self._alive.append(np.ones(len(ids), bool))
                self._left.append(len(ids))
                for atom, where in _by_atom(rows[wanted], atoms[wanted]):
                    self._rows[atom].append((k, where))
        found = self._index[key]
        return None if found < 0 else found

    def _axes_of(self, weight: Weight) -> tuple[list[int], int]:
        """Return the numbers of a weight's axes that can shrink, and the product of the others."""
        axes, rest = [], 1
        for n, axis in zip(weight.shape, self.structure.axes[weight.value], strict=True):
            key = b"" if isinstance(axis, Dynamic) else self.structure.terms.find(axis).tobytes()
            k = self._index.get(key, -1)
            if k < 0:
                rest *= n
            else:
                axes.append(k)
        return axes, rest

    def _size(self, w: int) -> int:
        axes, size = self._weights[w]
        for k in axes:
            size *= self._left[k]
        return size

    def _stuck(self, weight: Weight, offered: Bools) -> int:
        """Count the parameters of a weight that no offered atom takes along."""
        stuck = 1
        for n, axis in zip(weight.shape, self.structure.axes[weight.value], strict=True):
            if isinstance(axis, Dynamic):
                stuck *= n
                continue
            rows, atoms = self.structure.terms.members(axis)
            stuck *= n - len(np.unique(rows[offered[atoms]]))
        return stuck


def _by_atom(rows: Ids, atoms: Ids) -> Iterable[tuple[int, npt.NDArray[np.int64]]]:
    order = np.argsort(atoms, kind="stable")
    rows, atoms = rows[order], atoms[order]
    starts = np.flatnonzero(np.r_[True, atoms[1:] != atoms[:-1]])
    for start, piece in zip(starts.tolist(), np.split(rows, starts[1:]), strict=True):
        yield int(atoms[start]), piece
