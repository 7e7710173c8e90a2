"""What is left of every axis, how many parameters are gone, and what the model costs, while atoms go."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxprune.structure.axes import Axis, Dynamic, parts
from onnxprune.structure.costs import Cost, counted_nodes
from onnxprune.structure.groups import Group
from onnxprune.structure.id_arrays import distinct
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools, Ids
from onnxprune.structure.weights import Weight


@dataclass(frozen=True, eq=False)
class Change:
    """What would be if some atoms went.

    Attributes:
        atoms: The atoms.
        gone: Parameters that would be gone, all that went before included.
        cost: What the model would cost.
    """

    atoms: Ids
    gone: float
    cost: float
    _freed: float
    _saved: float
    _at: int
    _dead: Mapping[int, Ids]
    _left: Mapping[int, int]
    _sizes: Mapping[int, float]
    _extents: Mapping[ir.Value, tuple[int, ...]]
    _costs: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class _Places:
    """Where atoms lie: entry i says that an atom takes an index of an axis along, number `place` of all there are.

    Places are numbered axis by axis, `extent` for each. Joined entries are in order of atoms.
    """

    atoms: Ids
    places: Ids
    extent: int = 1

    @classmethod
    def joined(cls, pieces: Sequence[tuple[Ids, Ids]]) -> _Places:
        """The places of axes, each given as atoms and the indices that go with them, in the order of their numbers."""
        if not pieces:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))
        atoms = np.concatenate([piece[0] for piece in pieces])
        extent = 1 + max(int(piece[1].max()) for piece in pieces)
        places = np.concatenate([indices + number * extent for number, (_, indices) in enumerate(pieces)])
        order = np.argsort(atoms, kind="stable")
        return cls(atoms[order], places[order], extent)

    def of(self, atoms: Ids) -> dict[int, Ids]:
        """The indices that these atoms take along, by the number of the axis, both in order and each once."""
        starts, stops = (np.searchsorted(self.atoms, atoms, side) for side in ("left", "right"))
        counts = stops - starts
        before = np.cumsum(counts) - counts
        entries = np.repeat(starts - before, counts) + np.arange(int(counts.sum()))
        axes, indices = np.divmod(distinct(np.sort(self.places[entries])), self.extent)
        cuts = [0, *(np.flatnonzero(axes[1:] != axes[:-1]) + 1).tolist(), len(axes)]
        return {int(axes[start]): indices[start:stop] for start, stop in zip(cuts, cuts[1:], strict=False) if stop}


class Ledger:
    """Keeps count of the parameters, of the cost and of every axis while atoms go.

    Attributes:
        removed: Flags by atom id of what went.
        prunable: The parameters that could go.
        gone: The parameters that went.
        cost: What the model costs now; 0 where no cost was given.
    """

    def __init__(
        self, structure: Structure, weights: Sequence[Weight], groups: Sequence[Group], floor: int,
        cost: Cost | None = None,
    ) -> None:  # fmt: skip
        self.structure = structure
        self.removed: Bools = np.zeros(structure.terms.count, bool)
        self.gone: float = 0
        self._floor, self._floors = floor, list[int]()
        self._least = {structure.terms.find(ids).tobytes(): n for ids, n in structure.least}
        self._alive: list[Bools] = []
        self._left: list[int] = []
        pieces: list[tuple[Ids, Ids]] = []
        self._index: dict[bytes, int] = {}
        self._index_of: dict[int, int] = {}  # by the id of an array that the structure holds: many values share axes
        offered = _offered(structure, groups)
        for axes in structure.axes.values():
            for ids in (i for axis in axes for i in parts(axis)):
                self._register(ids, offered, pieces)
        self._places = _Places.joined(pieces)
        self._weights = [self._axes_of(w) for w in weights]
        self._weight_values = [w.value for w in weights]
        self._density: list[float] = [1] * len(weights)
        self._users = _users(axes_ for axes_, _ in self._weights)
        self._sizes = [self._size(w, {}) for w in range(len(self._weights))]
        self.prunable = prunable_parameters(structure, weights, groups)
        self._cost = cost
        whole = structure.known_shapes
        nodes = [] if cost is None else [(node, n, n * cost(node, whole)) for node, n in counted_nodes(structure)]
        priced = [entry for entry in nodes if entry[2]]  # what costs nothing whole costs nothing cut
        self._nodes = [(node, times) for node, times, _ in priced]
        self._costs = [total for _, _, total in priced]
        self._operands = [[v for v in _values(node) if v in whole] for node, _ in self._nodes]
        self._names = list(dict.fromkeys(v for values in self._operands for v in values))
        self._extents = {v: whole[v] for v in self._names}
        self._shapes = {v: self._shape_of(v) for v in self._names}
        self._readers = _users([k for v in values for k in self._shrinking(v)] for values in self._operands)
        self._values = _users(self._shrinking(v) for v in self._names)
        self.cost = sum(self._costs)
        # When each axis, weight and node was touched last: a change that meets none of them anew is still true.
        self._commits = 0
        self._touched: tuple[list[int], ...] = ([0] * len(self._alive), [0] * len(weights), [0] * len(self._nodes))

    def remove(self, atoms: Ids, *, limit: float) -> bool:
        """Remove atoms unless an axis would fall below the floor or more than ``limit`` parameters be gone."""
        change = self.preview(atoms)
        if change is None or change.gone > limit:
            return False
        self.commit(change)
        return True

    def preview(self, atoms: Ids) -> Change | None:
        """Return what would be if these atoms went too; None if an axis would fall below the floor."""
        dead = self._places.of(atoms)
        left = {k: self._left[k] - int(np.count_nonzero(self._alive[k][rows])) for k, rows in dead.items()}
        if any(n < self._floors[k] for k, n in left.items()):
            return None
        sizes = {w: self._size(w, left) for w in {w for k in left for w in self._users.get(k, ())}}
        values = {self._names[i] for k in left for i in self._values.get(k, ())}
        extents = {v: self._extents_of(v, left) for v in values}
        costs = {n: self._cost_of(n, extents) for n in {n for k in left for n in self._readers.get(k, ())}}
        freed = sum(self._sizes[w] - n for w, n in sizes.items())
        saved = sum(self._costs[n] - c for n, c in costs.items())
        gone, cost = self.gone + freed, self.cost - saved
        return Change(atoms, gone, cost, freed, saved, self._commits, dead, left, sizes, extents, costs)

    def still(self, change: Change) -> Change | None:
        """Return a change that was previewed before, as it is now; None where what went since has to do with it."""
        met = (change._dead, change._sizes, change._costs)
        for last, numbers in zip(self._touched, met, strict=True):
            for number in numbers:
                if last[number] > change._at:
                    return None
        return replace(change, gone=self.gone + change._freed, cost=self.cost - change._saved)

    def commit(self, change: Change) -> None:
        """Let go what was previewed, nothing that has to do with it having gone since."""
        self._commits += 1
        for last, numbers in zip(self._touched, (change._dead, change._sizes, change._costs), strict=True):
            for number in numbers:
                last[number] = self._commits
        for k, rows in change._dead.items():
            self._alive[k][rows] = False
            self._left[k] = change._left[k]
        self._extents.update(change._extents)
        for w, size in change._sizes.items():
            self._sizes[w] = size
        for n, cost in change._costs.items():
            self._costs[n] = cost
        self.gone, self.cost = change.gone, change.cost
        self.removed[change.atoms] = True

    def recount(self, nodes: Collection[ir.Node], densities: Mapping[ir.Value, float]) -> None:
        """Count anew where more than extents decides what a node costs and how many parameters of a weight are left.

        Args:
            nodes: Their costs are asked for again.
            densities: By weight, the share of its parameters that is not gone from what its extents leave.
        """
        self._commits += 1
        for w, value in enumerate(self._weight_values):
            if value in densities:
                self._density[w] = densities[value]
                size = self._size(w, {})
                self.gone += self._sizes[w] - size
                self._sizes[w], self._touched[1][w] = size, self._commits
        for n in self._numbers_of(nodes):
            self._costs[n] = self._cost_of(n, {})
            self._touched[2][n] = self._commits
        self.cost = sum(self._costs)

    def cost_of(self, nodes: Collection[ir.Node]) -> float:
        """Return what some nodes cost now."""
        return sum(self._costs[n] for n in self._numbers_of(nodes))

    def size_of(self, values: Collection[ir.Value]) -> float:
        """Return how many parameters some weights have now."""
        return sum(size for value, size in zip(self._weight_values, self._sizes, strict=True) if value in values)

    def _numbers_of(self, nodes: Collection[ir.Node]) -> list[int]:
        return [n for node in nodes if (n := self._number_of.get(node)) is not None]

    @cached_property
    def _number_of(self) -> dict[ir.Node, int]:
        return {node: n for n, (node, _) in enumerate(self._nodes)}

    def _register(self, ids: Ids, offered: Bools, pieces: list[tuple[Ids, Ids]]) -> None:
        """Note an axis of which something can go, once, however many values have it."""
        if id(ids) in self._index_of:
            return
        key = self.structure.terms.find(ids).tobytes()
        if key in self._index:
            self._index_of[id(ids)] = self._index[key]
            return
        rows, atoms = self.structure.members(ids)
        wanted = offered[atoms]
        if not wanted.any():
            self._index[key] = self._index_of[id(ids)] = -1
            return
        self._index[key] = self._index_of[id(ids)] = len(self._alive)
        self._alive.append(np.ones(len(ids), bool))
        self._left.append(len(ids))
        self._floors.append(max(self._floor, self._least.get(key, 0)))
        pieces.append((atoms[wanted], rows[wanted]))

    def _numbers(self, axis: Axis) -> list[int]:
        """Return the numbers of an axis, or of its parts, of which something can go."""
        return [k for ids in parts(axis) if (k := self._index_of[id(ids)]) >= 0]

    def _axes_of(self, weight: Weight) -> tuple[list[int], int]:
        """Return the numbers of a weight's axes that can shrink, and the product of the others."""
        axes, rest = [], 1
        for n, axis in zip(weight.shape, self.structure.weight_axes(weight.value), strict=True):
            numbers = [] if isinstance(axis, Dynamic) else self._numbers(axis)
            axes += numbers
            rest *= 1 if numbers else n
        return axes, rest

    def _size(self, w: int, left: Mapping[int, int]) -> float:
        axes, size = self._weights[w]
        for k in axes:
            size *= left.get(k, self._left[k])
        return size * self._density[w]

    def _shape_of(self, value: ir.Value) -> list[tuple[int, list[int]]]:
        """Return each dimension of a value as (what cannot shrink, numbers of what can)."""
        extents, axes = self._extents[value], self.structure.axes.get(value)
        numbers = [self._numbers(axis) for axis in axes] if axes is not None else [[] for _ in extents]
        return [(n // math.prod(len(self._alive[k]) for k in ks), ks) for n, ks in zip(extents, numbers, strict=True)]

    def _shrinking(self, value: ir.Value) -> list[int]:
        return [k for _, ks in self._shapes[value] for k in ks]

    def _extents_of(self, value: ir.Value, left: Mapping[int, int]) -> tuple[int, ...]:
        extents, now = [], self._left
        for extent, ks in self._shapes[value]:
            for k in ks:
                extent *= left[k] if k in left else now[k]
            extents.append(extent)
        return tuple(extents)

    def _cost_of(self, n: int, extents: Mapping[ir.Value, tuple[int, ...]]) -> float:
        """Return the cost of a node, some of its values having other extents."""
        node, times = self._nodes[n]
        assert self._cost is not None
        shapes = {v: extents[v] if v in extents else self._extents[v] for v in self._operands[n]}
        return times * self._cost(node, shapes)


def prunable_parameters(structure: Structure, weights: Sequence[Weight], groups: Sequence[Group]) -> int:
    """Return how many parameters of some weights go where all units of some groups do."""
    offered = _offered(structure, groups)
    return sum(weight.size - _stuck(weight, offered) for weight in weights)


def _offered(structure: Structure, groups: Sequence[Group]) -> Bools:
    """Flags by atom id of the atoms of some groups."""
    offered = np.zeros(structure.terms.count, bool)
    for group in groups:
        offered[group.atoms] = True
    return offered


def _stuck(weight: Weight, offered: Bools) -> int:
    """Count the parameters of a weight that no offered atom takes along."""
    stuck = 1
    for n, axis in zip(weight.shape, weight.structure.weight_axes(weight.value), strict=True):
        if isinstance(axis, Dynamic):
            stuck *= n
            continue
        rows, atoms = weight.structure.members(axis)
        goes = np.zeros(n, bool)
        goes[rows[offered[atoms]]] = True
        stuck *= n - int(np.count_nonzero(goes))
    return stuck


def _values(node: ir.Node) -> list[ir.Value]:
    return [v for v in (*node.inputs, *node.outputs) if v is not None]


def _users(axes: Iterable[Iterable[int]]) -> dict[int, list[int]]:
    """From what uses which axes to what each axis is used by."""
    users: dict[int, list[int]] = defaultdict(list)
    for user, numbers in enumerate(axes):
        for k in set(numbers):
            users[k].append(user)
    return users
