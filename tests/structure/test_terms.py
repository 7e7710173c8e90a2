"""The algebra of terms: unification, products and splits, pins and tags."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.structure.groups import KIND_BITS
from onnxprune.structure.id_arrays import distinct
from onnxprune.structure.terms import PINNED, Ids, Terms


def sets(terms: Terms, ids: Ids) -> list[frozenset[int]]:
    """The atoms of each index, as sets."""
    return [frozenset(terms.atoms(int(i))) for i in ids]


def kept(terms: Terms, ids: Ids, removed: set[int]) -> list[bool]:
    """Which indices survive when atoms go."""
    return [not (atoms & removed) for atoms in sets(terms, ids)]


# -- unification ----------------------------------------------------------------------------------------------------


def test_unified_axes_have_the_same_atoms() -> None:
    terms = Terms()
    a, b, c = (terms.fresh(4) for _ in range(3))
    terms.unify(a, b)
    terms.unify(c, a)
    assert sets(terms, a) == sets(terms, b) == sets(terms, c)
    assert len(set(sets(terms, a))) == 4


def test_unifying_a_permutation_with_itself_ties_its_cycles() -> None:
    terms = Terms()
    a = terms.fresh(5)
    terms.unify(a, a[[1, 0, 2, 4, 3]])
    first, second, third, fourth, fifth = sets(terms, a)
    assert first == second and fourth == fifth and len({first, third, fourth}) == 3


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.randoms())
def test_unification_does_not_depend_on_order(pairs: list[tuple[int, int]], random: object) -> None:
    results = []
    for order in (pairs, pairs[::-1]):
        terms = Terms()
        ids = terms.fresh(10)
        for i, j in order:
            terms.unify(ids[[i]], ids[[j]])
        found = sets(terms, ids)
        results.append([[a == b for b in found] for a in found])
    assert results[0] == results[1]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_vector_and_pairwise_unification_agree(pairs: list[tuple[int, int]]) -> None:
    one, many = Terms(), Terms()
    a, b = one.fresh(10), many.fresh(10)
    for i, j in pairs:
        one.unify(a[[i]], a[[j]])
    many.unify(b[[i for i, _ in pairs]], b[[j for _, j in pairs]])
    assert [[x == y for y in sets(one, a)] for x in sets(one, a)] == [
        [x == y for y in sets(many, b)] for x in sets(many, b)
    ]


# -- pins, mixed, tags ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pin_first", [True, False])
def test_a_pin_spreads_to_what_is_unified(pin_first: bool) -> None:
    terms = Terms()
    a, b = terms.fresh(3), terms.fresh(3)
    if pin_first:
        terms.pin(a[:1], "because")
    terms.unify(a, b)
    if not pin_first:
        terms.pin(a[:1], "because")
    assert sets(terms, b)[0] == frozenset() and all(sets(terms, b)[1:])
    assert terms.reasons[int(terms.pinned[terms.root(int(b[0]))])] == "because"


@pytest.mark.parametrize("mix_first", [True, False])
def test_mixed_and_tags_spread_to_what_is_unified(mix_first: bool) -> None:
    terms = Terms()
    a, b = terms.fresh(2), terms.fresh(2)
    actions = [lambda: terms.unify(a, b), lambda: terms.mix(a, "why"), lambda: terms.tag(b, KIND_BITS["heads"])]
    for action in actions[::-1] if mix_first else actions:
        action()
    roots = terms.find(b)
    assert all(terms.reasons[int(m)] == "why" for m in terms.mixed[roots])
    assert all(terms.tags[roots] == KIND_BITS["heads"])


def test_the_empty_term_is_pinned() -> None:
    terms = Terms()
    assert terms.atoms(PINNED) == () and terms.term([]) == PINNED


# -- products and splits --------------------------------------------------------------------------------------------


def test_a_product_goes_by_rows_and_columns() -> None:
    terms = Terms()
    rows, columns = terms.fresh(2), terms.fresh(3)
    product = terms.product([rows, columns])
    assert kept(terms, product, {int(rows[0])}) == [False] * 3 + [True] * 3
    assert kept(terms, product, {int(columns[1])}) == [True, False, True] * 2


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_splitting_a_product_gives_back_its_parts(shape: list[int]) -> None:
    terms = Terms()
    parts = [terms.fresh(n) if n > 1 else np.array([PINNED], np.int64) for n in shape]
    back = terms.split(terms.product(parts), shape)
    assert [sets(terms, p) for p in back] == [sets(terms, p) for p in parts]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_split_axis_is_the_product_of_its_parts(shape: list[int]) -> None:
    terms = Terms()
    axis = terms.fresh(int(np.prod(shape)))
    parts = terms.split(axis, shape)
    assert sets(terms, terms.product(parts)) == sets(terms, axis)
    assert [len(p) for p in parts] == shape


@given(st.sampled_from([(2, 6), (3, 4), (4, 3), (2, 2, 3)]), st.sampled_from([(6, 2), (4, 3), (3, 4), (3, 2, 2)]))
def test_two_splits_of_one_axis_agree_on_what_can_go(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    terms = Terms()
    axis = terms.fresh(12)
    first = terms.split(axis, one)
    second = terms.split(axis, other)
    assert sets(terms, terms.product(first)) == sets(terms, terms.product(second)) == sets(terms, axis)


def test_whatever_goes_from_a_split_axis_is_a_box() -> None:
    terms = Terms()
    axis = terms.fresh(12)
    terms.split(axis, (3, 4))
    for atom in {a for s in sets(terms, axis) for a in s}:
        grid = np.array(kept(terms, axis, {atom})).reshape(3, 4)
        assert (grid == grid.any(axis=1)[:, None] * grid.any(axis=0)[None]).all()


def test_unifying_two_products_ties_them_part_by_part() -> None:
    terms = Terms()
    a, b, c, d = terms.fresh(2), terms.fresh(3), terms.fresh(2), terms.fresh(3)
    terms.unify(terms.product([a, b]), terms.product([c, d]))
    assert sets(terms, a) == sets(terms, c) and sets(terms, b) == sets(terms, d)


@given(st.data())
def test_unified_products_of_any_shape_are_equal(data: st.DataObject) -> None:
    shapes = st.sampled_from([(12,), (2, 6), (6, 2), (3, 4), (4, 3), (2, 2, 3), (1, 12), (3, 1, 4)])
    terms = Terms()
    axes = [terms.product([terms.fresh(n) for n in data.draw(shapes)]) for _ in range(3)]
    terms.unify(axes[0], axes[1])
    terms.unify(axes[1], axes[2])
    assert sets(terms, axes[0]) == sets(terms, axes[1]) == sets(terms, axes[2])


def test_a_product_unified_with_one_of_its_parts_ties_the_other() -> None:
    terms = Terms()
    row = terms.fresh(1)
    columns = terms.fresh(3)
    terms.unify(terms.product([row, columns]), columns)
    assert sets(terms, terms.product([row, columns])) == sets(terms, columns)


def test_pinning_a_product_pins_all_its_parts() -> None:
    terms = Terms()
    rows, columns = terms.fresh(2), terms.fresh(3)
    terms.pin(terms.product([rows, columns])[:1], "because")
    assert sets(terms, rows) == [frozenset(), frozenset({int(rows[1])})]
    assert sets(terms, columns)[0] == frozenset() and all(sets(terms, columns)[1:])


def test_an_axis_of_pinned_indices_splits_into_pinned_parts_with_its_reason() -> None:
    terms = Terms()
    parts = terms.split(terms.pinned_axis(6, "because"), (2, 3))
    assert all(terms.all_pinned(p) for p in parts)
    assert terms.reasons[int(terms.pinned[terms.root(int(parts[1][0]))])] == "because"


def test_a_mixed_axis_stays_mixed_when_it_is_split() -> None:
    terms = Terms()
    axis = terms.fresh(6)
    terms.mix(axis, "why")
    for part in terms.split(axis, (2, 3)):
        _, atoms = terms.members(part)
        assert len(atoms) and all(terms.mixed[atoms])


def test_members_lists_every_index_with_every_atom() -> None:
    terms = Terms()
    rows, columns, loose = terms.fresh(2), terms.fresh(2), terms.fresh(1)
    ids = np.concatenate([terms.product([rows, columns]), loose, terms.pinned_axis(1, "x")])
    found = {(int(i), int(a)) for i, a in zip(*terms.members(ids), strict=True)}
    expected = {(i, a) for i, atoms in enumerate(sets(terms, ids)) for a in atoms}
    assert found == expected and len(found) == 9


def test_growing_keeps_what_was_there() -> None:
    terms = Terms()
    a = terms.fresh(3)
    terms.pin(a[:1], "because")
    b = terms.fresh(5000)
    terms.unify(a, b[:3])
    assert sets(terms, b)[0] == frozenset() and len(set(sets(terms, b))) == 5000


@pytest.mark.parametrize("ids", [[], [3], [1, 2, 5], [2, 1, 5], [1, 1, 2], [4, 4]])
def test_distinct_ids_are_those_of_unique(ids: list[int]) -> None:
    array = np.array(ids, np.int64)
    assert distinct(array).tolist() == np.unique(array).tolist()
