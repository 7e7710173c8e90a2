"""Operators that only move data, against an independent oracle: run them on labels of elements.

Every element of the inputs gets a label of its own, and ONNX Runtime says where it ends up. An output element must go
exactly when the element goes that it is a copy of: the atoms on its axes, taken together, must be those of its source.
Atoms that no input has (of a padded, expanded or repeated index) may come on top.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxprune.structure.axes import Dynamic
from onnxprune.structure.structure import Structure

from .twins import Array, analyse_open, node_model, normalised, run

Atoms = dict[tuple[int, ...], frozenset[int]]


def check(
    op_type: str,
    data: list[tuple[int, ...]],
    constants: Mapping[str, Array],
    outputs: int = 1,
    free: bool = True,
    free_axes: tuple[int, ...] = (),
    **attributes: Any,
) -> None:
    """Label the data inputs of a node, run it, and compare with the terms of its rule."""
    names = [f"x{i}" for i in range(len(data))]
    node = helper.make_node(op_type, [*names, *constants], [f"y{i}" for i in range(outputs)], **attributes)
    start, labels = 1, {}
    for name, shape in zip(names, data, strict=True):
        size = int(np.prod(shape))
        labels[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    proto = node_model(node, {**labels, **constants}, {"": 13 if op_type in ("Split", "Pad") else 23})
    model = normalised(proto)
    structure = analyse_open(model)
    values = {v.name: v for v in structure.axes}
    source = {0: frozenset[int]()}
    for name, array in labels.items():
        atoms = atoms_of(structure, values[name])
        source.update({int(label): atoms[place] for place, label in np.ndenumerate(array)})
    known = frozenset().union(*source.values())
    assert bool(known) == free
    for axis in free_axes:
        ids = structure.ids(values["x0"], axis)
        assert ids is not None and all(structure.terms.atoms(int(i)) for i in ids), f"axis {axis} is pinned"
    for out, moved in zip(model.graph.outputs, run(model, {}), strict=True):
        producer = out.producer()
        assert producer is not None and producer.inputs[0] is not None
        atoms = atoms_of(structure, producer.inputs[0])
        for place, label in np.ndenumerate(moved):
            if label:
                assert atoms[place] & known == source[int(label)], (place, label)


def atoms_of(structure: Structure, value: ir.Value) -> Atoms:
    """Return the removable atoms of every element of a value: those of its index on each axis."""
    axes = structure.axes[value]
    per_axis = []
    for i, axis in enumerate(axes):
        assert not isinstance(axis, Dynamic), f"axis {i} is static here"
        per_axis.append([frozenset(structure.terms.atoms(int(t))) for t in axis])
    shape = tuple(len(a) for a in per_axis)
    return {place: frozenset().union(*(per_axis[i][k] for i, k in enumerate(place))) for place in np.ndindex(shape)}


# -- every operator, some settings ----------------------------------------------------------------------------------

_INT = np.int64


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 1, 0), (1, 2, 0)])
def test_transpose(perm: tuple[int, ...]) -> None:
    check("Transpose", [(2, 3, 4)], {}, free_axes=(0, 1, 2), perm=perm)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((2, 12), (2, 3, 4)),
        ((2, 3, 4), (2, 12)),
        ((2, 3, 4), (6, 4)),
        ((6, 4), (3, 8)),
        ((2, 3, 4), (24,)),
        ((24,), (2, 3, 4)),
        ((2, 6, 5), (2, 2, 3, 5)),
        ((2, 3, 4, 5), (6, 20)),
        ((3, 8), (6, 4)),
        ((1, 6), (6,)),
        ((6,), (1, 6, 1)),
    ],
)
def test_reshape(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    check("Reshape", [old], {"shape": np.array(new, _INT)})


def test_reshape_without_a_common_refinement_pins() -> None:
    check("Reshape", [(4, 6)], {"shape": np.array([6, 4], _INT)}, free=False)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_flatten(axis: int) -> None:
    check("Flatten", [(2, 3, 4)], {}, free_axes=(0, 1, 2), axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    check("Concat", [(2, 3, 4), (2, 3, 4)], {}, axis=axis)


def test_concat_of_unequal_pieces() -> None:
    check("Concat", [(2, 3), (2, 5), (2, 1)], {}, axis=1)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 2)])
def test_split(sizes: tuple[int, ...]) -> None:
    check("Split", [(3, 6)], {"sizes": np.array(sizes, _INT)}, outputs=3, axis=1)


@pytest.mark.parametrize(
    ("start", "end", "step"), [(1, 5, 1), (0, 6, 2), (5, 0, -1), (-1, -7, -2), (1, 99, 3), (-3, 99, 1), (99, -99, -1)]
)
def test_slice(start: int, end: int, step: int) -> None:
    bounds = {"a": start, "b": end, "c": 1, "d": step}
    check("Slice", [(2, 6, 3)], {k: np.array([v], _INT) for k, v in bounds.items()})


@pytest.mark.parametrize("indices", [[3, 0, 2], [0, 0, 5], [-1, 1], [4]])
@pytest.mark.parametrize("axis", [0, 1])
def test_gather(indices: list[int], axis: int) -> None:
    check("Gather", [(6, 6)], {"i": np.array(indices, _INT)}, axis=axis)


def test_gather_of_a_table() -> None:
    check("Gather", [(5, 4)], {"i": np.array([[0, 2], [1, 1]], _INT)}, axis=1)


@pytest.mark.parametrize("pads", [(0, 1, 0, 2), (1, 0, 1, 0), (0, 3, 0, 0)])
def test_pad(pads: tuple[int, ...]) -> None:
    check("Pad", [(3, 4)], {"pads": np.array(pads, _INT)})


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pad_that_repeats(mode: str) -> None:
    check("Pad", [(3, 4)], {"pads": np.array([0, 2, 0, 1], _INT)}, mode=mode)  # rows are free, columns pinned


@pytest.mark.parametrize(("old", "new"), [((1, 4), (3, 4)), ((4, 1), (2, 4, 5)), ((4,), (3, 4))])
def test_expand(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    check("Expand", [old], {"shape": np.array(new, _INT)})


@pytest.mark.parametrize("repeats", [(1, 3), (2, 1), (2, 2)])
def test_tile(repeats: tuple[int, ...]) -> None:
    check("Tile", [(3, 4)], {"repeats": np.array(repeats, _INT)})


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    check("DepthToSpace", [(2, 12, 2, 3)], {}, free_axes=(0, 1, 2, 3), blocksize=2, mode=mode)


def test_space_to_depth() -> None:
    check("SpaceToDepth", [(2, 3, 4, 6)], {}, free_axes=(0, 1, 2, 3), blocksize=2)


def test_squeeze_and_unsqueeze() -> None:
    check("Squeeze", [(1, 3, 1, 4)], {"axes": np.array([0, 2], _INT)})
    check("Unsqueeze", [(3, 4)], {"axes": np.array([0, 2], _INT)})


# -- shapes nobody thought of ---------------------------------------------------------------------------------------


@st.composite
def two_shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two ways to cut the same number of elements into axes."""
    factors = draw(st.lists(st.sampled_from([1, 2, 2, 3, 4, 5]), min_size=1, max_size=4))
    return draw(cut(factors)), draw(cut(draw(st.permutations(factors))))


@st.composite
def cut(draw: st.DrawFn, factors: list[int]) -> tuple[int, ...]:
    shape = [1]
    for factor in factors:
        if draw(st.booleans()):
            shape.append(factor)
        else:
            shape[-1] *= factor
    return tuple(shape)


@given(two_shapes())
def test_reshape_of_any_shape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    old, new = shapes
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    labels = np.arange(1, int(np.prod(old)) + 1, dtype=np.float32).reshape(old)
    model = normalised(node_model(node, {"x": labels, "s": np.array(new, _INT)}))
    structure = analyse_open(model)
    x, y = (next(v for v in structure.axes if v.name == name) for name in "xy")
    source, moved = atoms_of(structure, x), atoms_of(structure, y)
    assert [source[p] for p in np.ndindex(old)] == [moved[p] for p in np.ndindex(new)]


@given(st.lists(st.integers(-6, 5), min_size=1, max_size=8))
def test_gather_of_any_indices(indices: list[int]) -> None:
    check("Gather", [(2, 6)], {"i": np.array(indices, _INT)}, axis=1)


@given(st.integers(-6, 8), st.integers(-8, 8), st.sampled_from([-3, -2, -1, 1, 2, 3]))
def test_slice_of_any_bounds(start: int, end: int, step: int) -> None:
    stop = None if step < 0 and end < -6 else end  # ONNX's "before the front"
    if not len(range(6)[start:stop:step]):
        return
    bounds = {"a": start, "b": end, "c": 0, "d": step}
    check("Slice", [(6, 2)], {k: np.array([v], _INT) for k, v in bounds.items()})


def test_the_oracle_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.structure import registry

    def identity(view: Any) -> None:
        x = view.need(0)
        view.give(view.out(), view.axes(x), view.zero(x))

    registry.find_rule("Transpose")
    monkeypatch.setitem(registry.RULES._entries, "Transpose", identity)
    with pytest.raises(AssertionError):
        check("Transpose", [(3, 3)], {}, perm=(1, 0))
