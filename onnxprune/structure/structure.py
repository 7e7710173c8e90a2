"""What analysis found: the terms of every axis, and the groups, sites and weights that follow from them."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.graph.packed import Packed
from onnxprune.graph.shapes import Facts
from onnxprune.structure.axes import Axis, Dynamic, parts
from onnxprune.structure.groups import Group, Site, kind_of
from onnxprune.structure.id_arrays import distinct, numbered
from onnxprune.structure.terms import Bools, Ids, Terms


@dataclass(frozen=True)
class Fill:
    """How a quantised constant is zeroed: with its zero point, given for each index of an axis, or 0.

    Of a packed one, `packed` says which bytes that makes.
    """

    zero_point: ir.Value | None
    axis: int
    packed: Packed | None = None


@dataclass(frozen=True, eq=False)
class Structure:
    """The coupling of a model.

    Attributes:
        model: The analysed model.
        facts: The shapes of its values.
        terms: The store of all terms.
        axes: The axes of every value that has a known rank.
        zero: For each axis, whether its removed indices are exactly zero when the removed weights are.
        fills: How quantised weights are zeroed.
        weights: Constants that hold the weights of a Conv, Gemm, MatMul, recurrent cell, ..., with that node.
        mixed: For each node that mixes along an axis, the (input, axis) pairs.
        unmasked: Constants that must not be zeroed (divisors, quantisation scales).
        unruled: Operators without a rule, with how often they occur.
        picks: Integers that are indices of an axis, with the terms of that axis.
        least: Axes that must keep so many indices: the experts that a router takes of each token.
    """

    model: ir.Model
    facts: Facts
    terms: Terms
    axes: dict[ir.Value, list[Axis]]
    zero: dict[ir.Value, list[bool]]
    fills: dict[ir.Value, Fill]
    weights: dict[ir.Value, ir.Node]
    mixed: dict[ir.Node, list[tuple[int, int]]]
    unmasked: set[ir.Value]
    unruled: dict[str, int]
    picks: dict[ir.Value, Ids] = field(default_factory=dict)
    least: list[tuple[Ids, int]] = field(default_factory=list)
    _members: dict[int, tuple[Ids, Ids, Ids]] = field(default_factory=dict, repr=False)

    def members(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return what `Terms.members` does, which nothing changes any more: asked once for each array."""
        known = self._members.get(id(ids))
        if known is None or known[0] is not ids:
            known = self._members[id(ids)] = ids, *self.terms.members(ids)
        return known[1], known[2]

    @functools.cached_property
    def known_shapes(self) -> dict[ir.Value, tuple[int, ...]]:
        """Every shape that is fully known, at the first setting."""
        return self.facts.known_shapes()

    @functools.cached_property
    def packed(self) -> dict[ir.Value, Packed]:
        """Weights in blocks of a few bits, with their layout."""
        return {value: fill.packed for value, fill in self.fills.items() if fill.packed is not None}

    def weight_shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the shape of the numbers of a weight; of a packed one `Packed.shape`, with one more axis or wider."""
        layout = self.packed.get(value)
        return layout.shape if layout is not None else tuple(int(n or 0) for n in self.facts.shape(value) or ())

    def weight_axes(self, value: ir.Value) -> list[Axis]:
        """Return an axis for each extent of `weight_shape`; what lies in a byte of a packed weight is never cut."""
        axes = self.axes[value]
        return [*axes, *(Dynamic() for _ in self.weight_shape(value)[len(axes) :])]

    @functools.cached_property
    def sources(self) -> list[ir.Value]:
        """Constants with axes: initializers, and ConstantOfShape outputs that stand for weights."""
        return [v for v in self.axes if v.is_initializer() or filled_at_run_time(v)]

    @functools.cached_property
    def groups(self) -> list[Group]:
        """Every family of atoms that has at least one weight, in the order of the model."""
        sites, members = self._sites()
        different = list({id(atoms): atoms for atoms in members}.values())  # the same array at most of the sites
        family = _families(different, self.terms)
        inside = {id(atoms): _first_seen(family[atoms]) for atoms in different}
        places: dict[int, list[Site]] = {}  # of each family, in the order of the model
        for site, atoms in zip(sites, members, strict=True):
            for name in inside[id(atoms)]:
                places.setdefault(name, []).append(site)
        everything = self._marked(different)
        everything = everything[np.argsort(family[everything], kind="stable")]
        names, starts = np.unique(family[everything], return_index=True)
        atoms_of = dict(zip(names.tolist(), np.split(everything, starts[1:]), strict=bool(len(names))))
        groups = []
        for name, at in places.items():
            first = next((s for s in at if s.value in self.weights), None)
            if first is not None:
                atoms = atoms_of[name]
                reason = self.terms.reasons[int(self.terms.mixed[atoms[0]])]
                kind, title = kind_of(int(self.terms.tags[atoms[0]])), f"{first.value.name}[{first.axis}]"
                groups.append(Group(title, kind, atoms, tuple(at), reason))
        return groups

    def _sites(self) -> tuple[list[Site], list[Ids]]:
        """Return every axis of a constant that has removable atoms, with these, sorted; equal ones are one array."""
        sites: list[Site] = []
        members: list[Ids] = []
        same: dict[bytes, Ids] = {}
        for value in self.sources:
            for i, axis in enumerate(self.axes[value]):
                for ids in parts(axis):
                    atoms = distinct(self.members(ids)[1])
                    if len(atoms):
                        sites.append(Site(value, i))
                        members.append(same.setdefault(atoms.tobytes(), atoms))
        return sites, members

    def _marked(self, members: list[Ids]) -> Ids:
        """Return all atoms of some arrays, sorted, each once."""
        marks = np.zeros(self.terms.count, bool)
        for atoms in members:
            marks[atoms] = True
        return np.flatnonzero(marks)

    def ids(self, value: ir.Value, axis: int) -> Ids | None:
        """Return the ids of a static axis, None for a dynamic one, one that is not there or an unknown value."""
        axes = self.axes.get(value, [])
        if not -len(axes) <= axis < len(axes) or isinstance(axes[axis], Dynamic):
            return None
        return axes[axis]  # type: ignore[return-value]

    def removable(self, value: ir.Value, axis: int, *, exact: bool = True) -> Bools:
        """Say which indices of an axis can be removed, shape (n,)."""
        ids = self.ids(value, axis)
        if ids is None:
            return np.zeros(0, bool)
        out = np.zeros(len(ids), bool)
        rows, atoms = self.members(ids)
        if exact:
            rows = rows[self.terms.mixed[atoms] == 0]
        out[rows] = True
        return out

    def prunable_share(self, *, exact: bool = True) -> tuple[int, int]:
        """Return (prunable, all) weight parameters; a weight counts if one of its axes has a free atom there."""
        free = total = 0
        for value in self.weights:
            if self.facts.shape(value) is None or value not in self.axes:
                continue
            extents = self.weight_shape(value)
            size = math.prod(extents)
            stuck = size
            for axis, n in enumerate(extents):
                stuck = stuck // max(n, 1) * int(n - self.removable(value, axis, exact=exact).sum())
            free, total = free + size - stuck, total + size
        return free, total

    def why_pinned(self, value: ir.Value) -> list[str]:
        """Return, for each axis of a constant that cannot be cut, in whole or in part, the reasons."""
        out = []
        for i in range(len(self.axes.get(value, ()))):
            ids, free = self.ids(value, i), self.removable(value, i, exact=False)
            if ids is None or len(ids) <= 1:
                continue
            roots, counts = np.unique(self.terms.find(ids[~free]), return_counts=True)
            indices: dict[str, int] = defaultdict(int)
            for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
                indices[self.terms.reasons[self._pin_reason(root)]] += count
            for reason, count in indices.items():
                part = "" if count == len(ids) else f", {count} of {len(ids)} indices"
                out.append(f"axis {i}{part}: {reason}")
        return out

    def _pin_reason(self, i: int) -> int:
        top = self.terms.root(i)
        if self.terms.bound[top]:
            return max((self._pin_reason(p) for p in self.terms.parts[top]), default=0)
        return int(self.terms.pinned[top])

    def keep(self, removed: Bools) -> Keep:
        """Return what survives when atoms go. ``removed`` has shape (number of ids,)."""
        return Keep(self, removed)


def filled_at_run_time(value: ir.Value) -> bool:
    """Say whether a value is a tensor of known shape that a ConstantOfShape makes."""
    node = value.producer()
    shape = node.inputs[0] if node is not None and node.op_type == "ConstantOfShape" else None
    return shape is not None and shape.const_value is not None and shape.const_value.size > 1


def _families(members: list[Ids], terms: Terms) -> Ids:
    """Return for each atom the number of its family: atoms of a family are in the same sites, with the same flags."""
    family = numbered(terms.tags[: terms.count] * 2 + (terms.mixed[: terms.count] != 0))
    count = int(family.max(initial=0)) + 1
    sizes = np.bincount(family, minlength=count).tolist()
    for atoms in members:
        mine = family[atoms]
        if bool((mine == mine[0]).all()):
            if sizes[mine[0]] == len(atoms):
                continue  # all of a family: nothing parts
            names, split, inside = mine[:1], np.zeros(1, np.int64), np.array([len(mine)])
        else:
            names, split, inside = np.unique(mine, return_inverse=True, return_counts=True)
        family[atoms] = split + count
        for name, part in zip(names.tolist(), inside.tolist(), strict=True):
            sizes[name] -= part
            sizes.append(part)
        count += len(names)
    return family


def _first_seen(names: Ids) -> list[int]:
    """Return the different numbers in the order in which they occur first."""
    if bool((names == names[0]).all()):
        return [int(names[0])]
    different, at = np.unique(names, return_index=True)
    return [int(n) for n in different[np.argsort(at)]]


class Keep:
    """Which indices of which axis survive a removal."""

    def __init__(self, structure: Structure, removed: Bools) -> None:
        self.structure = structure
        self.removed = removed
        self._cache: dict[int, Bools] = {}
        self._whole: dict[int, bool] = {}
        self._changed: dict[ir.Value, bool] = {}

    def ids(self, ids: Ids) -> Bools:
        """Return which indices of an id array survive."""
        known = self._cache.get(id(ids))
        if known is None:
            known = np.ones(len(ids), bool)
            rows, atoms = self.structure.members(ids)
            known[rows[self.removed[atoms]]] = False
            self._cache[id(ids)] = known
        return known

    def whole(self, ids: Ids) -> bool:
        """Say whether all indices of an id array survive."""
        known = self._whole.get(id(ids))
        if known is None:
            known = self._whole[id(ids)] = bool(self.ids(ids).all())
        return known

    def axis(self, value: ir.Value, axis: int) -> Bools | None:
        """Return which indices of an axis survive; None where the axis has no fixed extent or is not known."""
        ids = self.structure.ids(value, axis)
        return None if ids is None else self.ids(ids)

    def changed(self, value: ir.Value) -> bool:
        """Say whether a value loses any index."""
        known = self._changed.get(value)
        if known is None:
            axes = self.structure.axes.get(value, ())
            known = self._changed[value] = any(not self.whole(ids) for axis in axes for ids in parts(axis))
        return known

    def lost(self) -> Mapping[ir.Value, dict[int, Bools]]:
        """Return, for every constant that loses something, the kept flags of each axis that does."""
        out: dict[ir.Value, dict[int, Bools]] = {}
        for value in self.structure.sources:
            for i, axis in enumerate(self.structure.axes[value]):
                if not isinstance(axis, Dynamic) and not self.whole(axis):
                    out.setdefault(value, {})[i] = self.ids(axis)
        return out
