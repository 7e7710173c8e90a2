"""Terms, atoms and unification: what lives and dies together. Pure arithmetic on integers, no ONNX here.

An *atom* is the smallest thing that can be removed. A *term* is a set of atoms; an index of an axis is removed if
any atom of its term is removed, and the empty term is never removed. Every index of every axis carries the id of a
term. Ids form a union-find forest whose roots are either atoms or *bound* to a product of other ids, as variables
are in type inference.

An atom can be *pinned* (never removed) or *mixed* (removing it changes what is left, so it is off by default). Both
carry a reason that reaches the user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.structure.id_arrays import distinct, first_places, homes_of

Ids = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

PINNED = 0
"""The id of the empty term."""

_WEAK = ("an axis of extent 1", "it is a spatial axis", "it is tied to an index that is never removed")
_STRONG = 1 << 32  # reasons from this number on stand before the weak ones, which tell a user less

_LONGEST = 1 << 28  # elements of an axis; a file may claim any number


def _check_extent(n: int) -> None:
    if n > _LONGEST:
        raise MemoryError(f"an axis is said to have {n:,} elements")


class Terms:
    """A union-find forest of term ids with products, pins and tags.

    Attributes:
        reasons: Texts by number; ``pinned`` and ``mixed`` hold numbers (0 means no).
    """

    def __init__(self) -> None:
        self.count = 0
        self.parent: Ids = np.zeros(1024, np.int64)
        self.pinned: Ids = np.zeros(1024, np.int64)
        self.mixed: Ids = np.zeros(1024, np.int64)
        self.tags: Ids = np.zeros(1024, np.int64)
        self.bound: Bools = np.zeros(1024, bool)
        self.parts: dict[int, tuple[int, ...]] = {}
        # Most products have two parts: these are read as arrays, too.
        self.paired: Bools = np.zeros(1024, bool)
        self.first: Ids = np.zeros(1024, np.int64)
        self.second: Ids = np.zeros(1024, np.int64)
        self.reasons: dict[int, str] = {0: ""}
        self._reason_ids: dict[str, int] = {"": 0}
        self._products: dict[tuple[int, ...], int] = {}
        self._grids: dict[tuple[bytes, bytes], Ids] = {}
        # The members of axes with products, by their roots, until a term changes that was there: many ask again.
        self._members: dict[bytes, tuple[Ids, Ids]] = {}
        self.fresh(1)
        self.pinned[PINNED] = self.reason_id("the empty term")

    # -- making ids ---------------------------------------------------------------------------------------------

    def fresh(self, n: int) -> Ids:
        """Return ids of ``n`` new atoms, shape (n,).

        Raises:
            MemoryError: No real axis is so long.
        """
        _check_extent(n)
        start, self.count = self.count, self.count + n
        if self.count > len(self.parent):
            size = max(self.count, 2 * len(self.parent))
            for name in ("parent", "pinned", "mixed", "tags", "bound", "paired", "first", "second"):
                old = getattr(self, name)
                new = np.zeros(size, old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
        ids = np.arange(start, self.count, dtype=np.int64)
        self.parent[start : self.count] = ids
        return ids

    def term(self, atoms: Sequence[int]) -> int:
        """Return the id of the term that holds ``atoms`` (the empty term is PINNED)."""
        if len(atoms) < 2:
            return int(atoms[0]) if atoms else PINNED
        key = tuple(int(a) for a in atoms)
        known = self._products.get(key)
        if known is None:
            known = int(self.fresh(1)[0])
            self._become(known, key)
            self._products[key] = known
        return known

    def product(self, factors: Sequence[Ids]) -> Ids:
        """Return the ids of the row-major product of ``factors``: shape (prod of lengths,)."""
        out = factors[0]
        for factor in factors[1:]:
            if self.all_pinned(factor):
                out = np.repeat(out, len(factor))
            elif self.all_pinned(out):
                out = np.tile(factor, len(out))
            else:
                out = self._grid(self.find(out), self.find(factor))
        return out

    def _grid(self, rows: Ids, columns: Ids) -> Ids:
        """Return the ids of all pairs (row, column), row-major."""
        key = (rows.tobytes(), columns.tobytes())
        known = self._grids.get(key)
        if known is None:
            pairs = np.add.outer(rows * self.count, columns).reshape(-1)
            different, place = np.unique(pairs, return_inverse=True)
            first, second = np.divmod(different, self.count)
            ids = self.fresh(len(different))
            self.bound[ids] = self.paired[ids] = True
            self.first[ids], self.second[ids] = first, second
            self.parts.update(zip(ids.tolist(), zip(first.tolist(), second.tolist(), strict=True), strict=True))
            known = self._grids[key] = ids[place.reshape(-1)]
        return known

    def split(self, ids: Ids, shape: Sequence[int]) -> list[Ids]:
        """Split one axis into several: ids of shape (prod(shape),) become one id array for each part.

        An atom that depends on one part only moves there; what is left is bound to a product of fresh atoms, so that
        what can be removed from the axis is a box in the new shape.
        """
        rows, atoms = self.members(ids)
        if shape[0] == len(ids) and len(atoms):  # the first part is all there is, as of a depthwise convolution
            return [self._collect(rows, atoms, len(ids)), *(np.full(n, PINNED, np.int64) for n in shape[1:])]
        grid = np.indices(shape).reshape(len(shape), -1)
        homes = homes_of(grid[:, rows], atoms, shape)
        parts = [self._collect(grid[j][rows[homes == j]], atoms[homes == j], shape[j]) for j in range(len(shape))]
        left = homes < 0
        if left.any():
            rest = self._collect(rows[left], atoms[left], len(ids))
            fresh = [self.fresh(n) if n > 1 else np.array([PINNED], np.int64) for n in shape]
            self.unify(rest, self.product(fresh))
            parts = [
                np.array([self.term((*self.atoms(p), f)) for p, f in zip(part.tolist(), new.tolist(), strict=True)])
                for part, new in zip(parts, fresh, strict=True)
            ]
        elif not len(atoms):
            reason = int(self.pinned[self.find(ids[:1])][0]) if len(ids) else 0
            parts = [self.pinned_axis(n, self.reasons[reason]) for n in shape]
        return parts

    def pinned_axis(self, n: int, reason: str) -> Ids:
        """Return ``n`` ids of one new pinned atom, shape (n,). Raises as `fresh`."""
        _check_extent(n)
        atom = self.fresh(1)
        self.pinned[atom[0]] = self.reason_id(reason)
        return atom if n == 1 else np.full(n, atom[0], np.int64)

    # -- reading ids --------------------------------------------------------------------------------------------

    def find(self, ids: Ids) -> Ids:
        """Return the roots of ``ids``, same shape."""
        roots = self.parent[ids]
        above = self.parent[roots]
        if not np.count_nonzero(above != roots):  # which takes a third of the time of `all`
            return roots
        while np.count_nonzero(above != roots):
            roots, above = above, self.parent[above]
        self.parent[ids] = roots
        return roots

    def root(self, i: int) -> int:
        """Return the root of one id."""
        parent = self.parent
        top = int(parent[i])
        while (above := int(parent[top])) != top:
            top = above
        parent[i] = top
        return top

    def atoms(self, i: int) -> tuple[int, ...]:
        """Return the removable atoms of one id, in order, without repeats; pinned ones are left out."""
        top = self.root(i)
        if not self.bound[top]:
            return () if self.pinned[top] else (top,)
        out: dict[int, None] = {}
        for part in map(self.root, self.parts[top]):
            if self.bound[part]:
                out.update(dict.fromkeys(self.atoms(part)))
            elif not self.pinned[part]:
                out[part] = None
        flat = tuple(out)
        if flat:  # as paths to a root are, products are kept short; an empty one keeps its parts for their reasons
            self.parts[top] = flat
        return flat

    def members(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return all (index, removable atom) pairs of an axis as two arrays of equal length, not to be written to."""
        roots = self.find(ids)
        bound, free = self.bound[roots], self.pinned[roots] == 0
        if not np.count_nonzero(bound):
            return free.nonzero()[0], roots[free]
        free &= ~bound
        key = roots.tobytes()
        known = self._members.get(key)
        if known is None:
            rows, atoms = self._product_members(roots, np.flatnonzero(bound))
            known = np.concatenate([free.nonzero()[0], rows]), np.concatenate([roots[free], atoms])
            for part in known:
                part.setflags(write=False)
            self._members[key] = known
        return known

    def _product_members(self, roots: Ids, rows: Ids) -> tuple[Ids, Ids]:
        """Return (index, removable atom) pairs of the rows whose roots are products, as `atoms` orders them."""
        tops = roots[rows]
        triples: list[tuple[Ids, Ids, Ids]] = []
        path, step = np.zeros(len(tops), np.int64), 1 << 62
        while len(tops):
            pair = self.paired[tops] & (step > 1)
            triples.extend(() if pair.all() else self._many_members(rows[~pair], tops[~pair], path[~pair]))
            rows, tops, path, step = rows[pair], tops[pair], path[pair], step >> 1
            rows, path = np.tile(rows, 2), np.concatenate([path, path + step])
            tops = self.find(np.concatenate([self.first[tops], self.second[tops]]))
            plain = ~self.bound[tops]
            free = plain & (self.pinned[tops] == 0)
            triples.append((rows[free], tops[free], path[free]))
            rows, tops, path = rows[~plain], tops[~plain], path[~plain]
        out, atoms, path = (np.concatenate(part) for part in zip(*triples, strict=True))
        if (path[1:] < path[:-1]).any():
            order = np.argsort(path, kind="stable")
            out, atoms = out[order], atoms[order]
        once = first_places(out * self.count + atoms)
        return (out, atoms) if once is None else (out[once], atoms[once])

    def _many_members(self, rows: Ids, tops: Ids, path: Ids) -> list[tuple[Ids, Ids, Ids]]:
        """Return (index, removable atom, place in the order) of products of any number of parts."""
        out = []
        for top in np.unique(tops).tolist():
            mine, atoms = np.flatnonzero(tops == top), np.array(self.atoms(top), np.int64)
            repeated = np.repeat(mine, len(atoms))
            out.append((rows[repeated], np.tile(atoms, len(mine)), path[repeated]))
        return out

    def all_pinned(self, ids: Ids) -> bool:
        """Say whether no index of the axis can be removed."""
        roots = self.find(ids)
        if not np.count_nonzero(self.bound[roots]):
            return np.count_nonzero(self.pinned[roots]) == len(roots)
        return not len(self.members(ids)[1])

    # -- constraints --------------------------------------------------------------------------------------------

    def unify(self, a: Ids, b: Ids) -> None:
        """Make the terms of two axes equal, index by index. Shapes (n,) and (n,)."""
        if a is b:
            return
        ra, rb = self.find(a), self.find(b)
        differ = ra != rb
        if not np.count_nonzero(differ):
            return
        ra, rb = ra[differ], rb[differ]
        for children, roots in ((ra, rb), (rb, ra)):
            if self._can_link(children, roots):
                self._link(children, roots)
                return
        for x, y in zip(ra.tolist(), rb.tolist(), strict=True):
            self._unify_pair(x, y)

    def pin(self, ids: Ids, reason: str) -> None:
        """Never remove any index of the axis."""
        self._flag(self.pinned, ids, reason)

    def mix(self, ids: Ids, reason: str) -> None:
        """Mark every index of the axis as one whose removal changes what is left."""
        self._flag(self.mixed, ids, reason)

    def tag(self, ids: Ids, bit: int) -> None:
        """Set a tag bit on every atom of the axis, pinned or not."""
        roots = self.find(ids)
        if np.count_nonzero(self.bound[roots]):
            roots = np.concatenate([roots, self.members(ids)[1]])
        self.tags[roots] |= bit

    def reason_id(self, text: str) -> int:
        """Return the number of a reason text."""
        if text not in self._reason_ids:
            number = len(self.reasons) + (0 if text.endswith(_WEAK) else _STRONG)
            self._reason_ids[text], self.reasons[number] = number, text
        return self._reason_ids[text]

    # -- inside -------------------------------------------------------------------------------------------------

    def _flag(self, flags: Ids, ids: Ids, reason: str) -> None:
        roots = self.find(ids)
        number = self.reason_id(reason)
        if np.count_nonzero(self.bound[roots]):
            _, inner = self.members(ids)
            roots = np.concatenate([roots[~self.bound[roots]], inner])
        before = flags[roots]
        changes = before < _STRONG if number >= _STRONG else before == 0
        if not np.count_nonzero(changes):
            return
        if flags is self.pinned:
            self._members.clear()
        flags[roots[changes]] = number

    def _can_link(self, children: Ids, roots: Ids) -> bool:
        """Say whether all children are different atoms that the roots have no part of."""
        if np.count_nonzero(self.bound[children]) or len(distinct(children)) < len(children):
            return False
        if not np.count_nonzero(self.bound[roots]):
            apart = children.max() < roots.min() or roots.max() < children.min()
            return bool(apart) or not np.isin(children, roots).any()
        return not np.count_nonzero(self.pinned[children]) and not np.isin(children, self.members(roots)[1]).any()

    def _link(self, children: Ids, roots: Ids) -> None:
        """Hang atoms (all different) under other ids, carrying pins and tags along."""
        self._members.clear()
        self.parent[children] = roots
        if np.count_nonzero(self.bound[roots]):
            rows, atoms = self.members(roots)
            children, roots = children[rows], atoms
        for flags, onto in ((self.pinned, np.maximum), (self.mixed, np.maximum), (self.tags, np.bitwise_or)):
            carried = flags[children]
            if np.count_nonzero(carried):
                onto.at(flags, roots, carried)

    def _become(self, i: int, parts: tuple[int, ...]) -> None:
        """Bind an id to a product."""
        self.bound[i] = True
        self.parts[i] = parts
        if len(parts) == 2:
            self.paired[i] = True
            self.first[i], self.second[i] = parts

    def _unify_pair(self, x: int, y: int) -> None:
        x, y = self.root(x), self.root(y)
        if x == y:
            return
        if not self.bound[x] and not self.bound[y]:
            self._link(np.array([x]), np.array([y]))
            return
        left, right = self.atoms(x), self.atoms(y)
        if set(left) == set(right):
            return
        self._unify_products(left, right)

    def _unify_products(self, left: Sequence[int], right: Sequence[int]) -> None:
        common = [a for a in left if a in right]
        ours, theirs = [a for a in left if a not in common], [a for a in right if a not in common]
        if len(ours) > len(theirs):
            ours, theirs = theirs, ours
        if not ours:
            # One side holds the other: what is left over is tied to a part that both have, or nothing can go.
            for extra in theirs:
                if common:
                    self._unify_pair(extra, common[-1])
                else:
                    self.pin(np.array([extra]), "it is tied to an index that is never removed")
            return
        *heads, last = ours
        for a, b in zip(heads, theirs, strict=False):
            self._unify_pair(a, b)
        self._bind(last, theirs[len(heads) :])

    def _bind(self, atom: int, parts: Sequence[int]) -> None:
        atom = self.root(atom)
        inner: dict[int, None] = {}
        for part in parts:
            inner.update(dict.fromkeys(self.atoms(part)))
        if self.bound[atom] or atom in inner:  # an earlier pair of this product has tied it meanwhile
            if set(self.atoms(atom)) != set(inner):
                self._unify_products(self.atoms(atom), tuple(inner))
            return
        if len(inner) == 1:
            self._unify_pair(atom, next(iter(inner)))
            return
        self._become(atom, tuple(inner))
        self._members.clear()
        if self.mixed[atom] or self.pinned[atom]:
            members = np.array(list(inner), np.int64)
            if self.mixed[atom]:
                self.mix(members, self.reasons[self.mixed[atom]])
            if self.pinned[atom]:
                self.pin(members, self.reasons[self.pinned[atom]])
        if tags := int(self.tags[atom]):
            for member in inner:
                self.tags[member] |= tags

    def _collect(self, rows: Ids, atoms: Ids, n: int) -> Ids:
        """Ids of shape (n,): at each row the term of all atoms that are paired with it."""
        pairs, order = np.unique(rows * self.count + atoms, return_index=True)
        at, atom = np.divmod(pairs, self.count)
        if not np.count_nonzero(at[1:] == at[:-1]):  # one atom for each row at most
            out = np.full(n, PINNED, np.int64)
            out[at] = atom
            return out
        sets: list[dict[int, None]] = [{} for _ in range(n)]
        for k in np.sort(order).tolist():
            sets[int(rows[k])][int(atoms[k])] = None
        return np.array([self.term(tuple(s)) for s in sets], np.int64)
