"""Caches narrowed with the heads behind them: ``free_caches(model)`` before a run, ``narrow_caches(model)`` at its end.

A cache is an input that a layer reads, and the output that hands it on: [batch, heads, positions, size]. As inputs and
outputs keep their extents, the heads behind them could not go. So while a run cuts, a product with an identity matrix
stands between each of them and the graph:

    past [.., H, .., D]  -- Einsum(past, heads [H, h], sizes [D, d]) -->  [.., h, .., d] layer [.., h, .., d]
                         -- Einsum(present, heads, sizes) -->  present [.., H, .., D]

A decoder for the first tokens only hands its caches out, and one behind an encoder reads those of the encoder without
handing them on: such an end stands alone.

Columns of the matrices go like units of any weight, and all caches of one shape share them: the same heads go in every
layer, since the runtimes that feed caches know one number for all. Inputs and outputs keep their extents meanwhile, so
both networks of every comparison run on the same inputs. At the end the products go, and what they kept becomes the
new interface.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.branches import result_outside
from onnxprune.graph.caches import (
    GONE,
    LINK,
    PAST,
    are_alike,
    cache_lengths,
    is_link,
    is_link_matrix,
    is_way_out,
)
from onnxprune.graph.dims import dim_name, graph_inputs
from onnxprune.graph.edit import Editor
from onnxprune.graph.inference import known_extents, states

_FREE_DIMS = "onnxprune.free_dims"


_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, eq=False)
class Cache:
    """An input and the output that hands it on, or one of both, with the axes of heads and of positions in a head."""

    past: ir.Value | None
    present: ir.Value | None
    heads: int
    size: int

    @property
    def end(self) -> ir.Value:
        """The input, or the output where there is no input: both have the same heads of the same size."""
        value = self.past if self.past is not None else self.present
        assert value is not None
        return value


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What a narrowed interface keeps.

    Attributes:
        kept: By name of an input or output, the kept indices of each axis that lost any.
        heads: Heads of each cache that are left, in the order of the inputs, then of outputs without one.
        size: Extents of the head axis that are left, in the same order.
        gone: Inputs and outputs of caches whose layers went.
        renamed: New names of those whose number changed, by the old ones.
        layers: How many layers have caches.
    """

    kept: dict[str, dict[int, npt.NDArray[np.int64]]]
    heads: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    gone: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    layers: int = 0

    def cut(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return arrays of the wide interface as the narrow one has them: of inputs, or of outputs."""
        out = dict(feeds)
        for name in out.keys() & self.kept.keys():
            for axis, indices in self.kept[name].items():
                out[name] = np.take(out[name], indices, axis=axis)
        return {self.renamed.get(name, name): array for name, array in out.items() if name not in self.gone}


def caches(model: ir.Model) -> Iterator[Cache]:
    """Yield the caches: inputs that a Concat, perhaps in a branch, extends or an attention reads, and hands on.

    After them come the ends that stand alone.
    """
    inputs, done = graph_inputs(model), set[ir.Value]()
    pairs: list[tuple[ir.Value, ir.Value, int | None]]
    lengths = cache_lengths(model).items()
    pairs = [(past, result_outside(model, _concat(past).outputs[0]), axis) for past, axis in lengths]
    pairs += [(past, present, None) for past, present, axes, _ in states(model) if len(axes) == 2]
    for past, present, grows in sorted(pairs, key=lambda pair: inputs.index(pair[0])):
        rank = len(past.shape or ())
        if past in done or not present.is_graph_output() or len(present.shape or ()) != rank:
            continue
        done |= {past, present}
        if rank == 5:  # keys and values side by side
            yield Cache(past, present, 2, 4)
        elif rank == 4:
            heads, size = [axis for axis in (1, 2, 3) if axis != (2 if grows is None else grows)]
            yield Cache(past, present, heads, size)
    yield from _single_ends(model, done)


def _single_ends(model: ir.Model, done: set[ir.Value]) -> Iterator[Cache]:
    """Yield inputs and outputs that are caches by their names, with two fixed extents behind the batch."""
    for values, word in ((graph_inputs(model), "past"), (model.graph.outputs, "present")):
        for value in values:
            fixed = [axis for axis in (1, 2, 3) if isinstance((value.shape or ())[axis], int)] if (
                len(value.shape or ()) == 4) else []  # fmt: skip
            if value in done or word not in str(value.name).lower() or len(fixed) != 2 or value.dtype is None:
                continue
            if value.dtype.is_floating_point() and (value.is_graph_input() or value.producer() is not None):
                past, present = (value, None) if word == "past" else (None, value)
                yield Cache(past, present, *fixed)


def has_caches(model: ir.Model) -> bool:
    """Whether there are caches among inputs and outputs."""
    return any(True for _ in caches(model))


def _concat(past: ir.Value) -> ir.Node:
    return next(node for node, index in past.uses() if node.op_type == "Concat" and index == 0)


def free_caches(model: ir.Model) -> int:
    """Let the heads of caches go with the layers that read them, in place; return how many caches there are.

    A model whose caches are given by their sums with others, or that hands out what it does not take, keeps them.
    """
    edit, settled = Editor(model), known_extents(model).settled
    matrices: dict[tuple[str, int], ir.Value] = {}
    count = 0
    for cache in list(caches(model)):
        extents, dtype = [_extent(cache.end, axis, settled) for axis in (cache.heads, cache.size)], cache.end.dtype
        if None in extents or dtype is None:
            continue
        pair = [_identity(edit, matrices, kind, int(n or 0), dtype)
                for kind, n in zip(("heads", "sizes"), extents, strict=True)]  # fmt: skip
        _link(edit, cache, pair, settled)
        count += 1
    return count


def _extent(value: ir.Value, axis: int, settled: Mapping[str, int]) -> int | None:
    assert value.shape is not None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else settled.get(dim_name(value, axis))


def _identity(
    edit: Editor, matrices: dict[tuple[str, int], ir.Value], kind: str, n: int, dtype: ir.DataType
) -> ir.Value:
    key = (f"{kind} {dtype}", n)
    if key not in matrices:
        matrices[key] = edit.constant(np.eye(n, dtype=dtype.numpy()), f"cache_{kind}")
        matrices[key].metadata_props[LINK] = kind
    return matrices[key]


def _link(edit: Editor, cache: Cache, matrices: list[ir.Value], settled: Mapping[str, int]) -> None:
    """Put the products between one cache and the graph."""
    letters = "abcde"[: len(cache.end.shape or ())]
    inner = letters.replace(letters[cache.heads], "x").replace(letters[cache.size], "y")
    pairs = f"{letters[cache.heads]}x,{letters[cache.size]}y"
    past, present, ends = cache.past, cache.present, list[tuple[ir.Value, ir.Value]]()
    if past is not None:
        readers, graph = list(past.uses()), past.graph
        assert isinstance(graph, ir.Graph)
        linked = edit.before(graph[0], "Einsum", [past, *matrices], {"equation": f"{letters},{pairs}->{inner}"})
        for node, index in readers:
            node.replace_input_with(index, linked)
        linked.type = past.type
        if present is None:
            past.metadata_props[PAST] = str(past.name)  # stays where the link goes with its layer
        ends.append((past, linked))
    if present is not None:
        maker, shape = present.producer(), present.shape
        assert maker is not None
        back = edit.after(maker, "Einsum", [present, *matrices], {"equation": f"{inner},{pairs}->{letters}"})
        edit.take_place(present, back, readers=[])
        back.shape = back.shape if past is not None else shape
        ends.append((back, back))
    for value, end in ends:
        end_node = end.producer()
        assert end_node is not None
        end_node.metadata_props[LINK] = f"{cache.heads},{cache.size}"
        end_node.metadata_props[PAST] = "" if past is None else str(past.name)
        _settle(value, (cache.heads, cache.size), settled, end_node)
    if present is not None:
        present.shape = None


def _settle(value: ir.Value, axes: tuple[int, int], settled: Mapping[str, int], node: ir.Node) -> None:
    """Write the one extent that fits for a free dimension, and keep its name."""
    assert value.shape is not None
    dims = list(value.shape)
    names = {axis: dims[axis].value for axis in axes if isinstance(dims[axis], ir.SymbolicDim)}  # type: ignore[union-attr]
    for axis in names:
        dims[axis] = _extent(value, axis, settled) or dims[axis]
    value.shape = ir.Shape(dims)
    node.metadata_props[_FREE_DIMS] = ",".join(f"{axis}={name}" for axis, name in names.items() if name)


def narrow_caches(model: ir.Model) -> Narrowed:
    """Take the products away again, in place: inputs and outputs get the extents that are left."""
    narrowed, edit = Narrowed({}), Editor(model)
    gone = _drop_caches(model)
    heads, sizes, touched = [], [], set[str]()
    for node in [node for node in model.graph if is_link(node)]:
        axes = [int(axis) for axis in node.metadata_props[LINK].split(",")]
        kept = [_kept(matrix) for matrix in node.inputs[1:]]
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        outside = result if result.is_graph_output() else source
        if outside is source or not node.metadata_props[PAST]:
            heads.append(len(kept[0][0]))
            sizes.append(len(kept[1][0]))
        if outside is source:
            result.replace_all_uses_with(source)
        else:
            name, shape = result.name, result.shape
            edit.take_place(result, source, readers=[])
            source.shape, source.name, outside = shape, name, source
        touched.add(str(outside.name))
        _narrow(outside, axes, kept, node.metadata_props.get(_FREE_DIMS, ""), narrowed)
        model.graph.remove(node, safe=True)
    for value in list(model.graph.initializers.values()):
        if is_link_matrix(value):
            del model.graph.initializers[str(value.name)]
    for value in [value for value in model.graph.inputs if value.metadata_props.pop(PAST, None)]:
        if not value.uses():  # its layer went
            gone.add(str(value.name))
    _drop_inputs(model, gone)
    names = [str(value.name) for value in (*model.graph.inputs, *model.graph.outputs)]
    caches_left = [name for name in names if name in touched]
    renamed = _renumbered(caches_left) if gone else {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = renamed.get(str(value.name), value.name)
    layers = len({_NUMBER.search(name).group() for name in caches_left if _NUMBER.search(name)})  # type: ignore[union-attr]
    return Narrowed(narrowed.kept, tuple(heads), tuple(sizes), frozenset(gone), renamed, layers)


def _drop_caches(model: ir.Model) -> set[str]:
    """Take the inputs and outputs away of caches whose layers went; return their names."""
    gone: set[str] = set()
    for node in [node for node in model.graph if GONE in node.metadata_props]:
        output, past = node.outputs[0], node.metadata_props[GONE]
        gone |= {str(output.name), past}
        model.graph.outputs.remove(output)
        model.graph.remove(node, safe=True)
    _read_another(model, gone)
    _drop_inputs(model, gone)
    return gone - {""}


def _drop_inputs(model: ir.Model, gone: set[str]) -> None:
    for value in [value for value in model.graph.inputs if value.name in gone]:
        model.graph.inputs.remove(value)


def _read_another(model: ir.Model, gone: set[str]) -> None:
    """Let what still reads the length of a cache that goes read that of one that stays: all are equally long."""
    ways_in = [node for node in model.graph if is_link(node) and not is_way_out(node)]
    going = [node for node in ways_in if _first_name(node) in gone]
    for node in going:
        fitting = [n for n in ways_in if n not in going and n.inputs[1:] == node.inputs[1:]]
        alike = (n for n in fitting if _alike(n.inputs[0], node.inputs[0]))
        other = next(alike, next(iter(fitting), None))
        if other is not None:
            node.outputs[0].replace_all_uses_with(other.outputs[0])
            model.graph.remove(node, safe=True)


def _alike(one: ir.Value | None, other: ir.Value | None) -> bool:
    return one is not None and other is not None and are_alike(one, other)


def _first_name(node: ir.Node) -> str:
    value = node.inputs[0]
    return "" if value is None else str(value.name)


def _renumbered(names: list[str]) -> dict[str, str]:
    """Return new names where the numbers in the names of caches have gaps: 0, 2, 3 become 0, 1, 2.

    Names that are alike but for their first number belong together.
    """
    by_form: dict[tuple[str, str], list[str]] = {}
    for name in names:
        number = _NUMBER.search(name)
        if number is not None:
            by_form.setdefault((name[: number.start()], name[number.end() :]), []).append(name)
    renamed: dict[str, str] = {}
    for (front, back), alike in by_form.items():
        ordered = sorted(alike, key=lambda name: int(_NUMBER.search(name).group()))  # type: ignore[union-attr]
        renamed |= {old: f"{front}{i}{back}" for i, old in enumerate(ordered) if old != f"{front}{i}{back}"}
    return renamed


def widen_caches(
    model: ir.Model, original: ir.Model, kept: Mapping[str, Mapping[str, list[int]]], without: ir.Model | None = None
) -> None:
    """Give a narrowed model the wide interface again, in place, so that it runs on the inputs of its original.

    Inputs of layers that went are there then, and nothing reads them; outputs repeat those of another layer, as they
    did while the run cut.

    Args:
        model: The narrowed model.
        original: The original, whose caches are free.
        kept: What a record says of each constant that was cut, the matrices of the caches among them.
        without: The original without the layers that went, its interface wide; None where none went.
    """
    if without is not None:
        old_names = {new: old for old, new in narrow_caches(without.clone()).renamed.items()}
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.name = old_names.get(str(value.name), value.name)
    free_caches(model)
    wide = {str(value.name): value for value in (*original.graph.inputs, *original.graph.outputs)}
    for name, matrix in original.graph.initializers.items():
        ours = model.graph.initializers.get(name)
        if is_link_matrix(matrix) and ours is not None and matrix.const_value is not None:
            array = matrix.const_value.numpy()[:, kept.get(name, {}).get("1", slice(None))]
            ours.const_value, ours.shape = ir.Tensor(array, name=name), ir.Shape(array.shape)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if str(value.name) in wide:
            value.shape = wide[str(value.name)].shape
    if without is not None:
        _give_back(model, original, without)


def _give_back(model: ir.Model, original: ir.Model, without: ir.Model) -> None:
    """Add the inputs and outputs of caches whose layers went, in the order of the original."""
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    for node in without.graph:
        stand_in = outputs.get(_first_name(node)) if GONE in node.metadata_props else None
        if stand_in is not None:
            repeated = ir.node("Identity", [stand_in])
            model.graph.append(repeated)
            end = repeated.outputs[0]
            end.name, end.type, end.shape = node.outputs[0].name, stand_in.type, stand_in.shape
            outputs[end.name] = end
    for value in original.graph.inputs:
        inputs.setdefault(value.name, ir.Value(name=value.name, type=value.type, shape=value.shape))
    for ends, ours, wanted in (
        (model.graph.inputs, inputs, original.graph.inputs), (model.graph.outputs, outputs, original.graph.outputs),
    ):  # fmt: skip
        ends.clear()
        ends.extend(ours[value.name] for value in wanted if value.name in ours)


def _kept(matrix: ir.Value | None) -> tuple[npt.NDArray[np.int64], int]:
    """The rows of an identity matrix that have a column left, and how many there were."""
    assert matrix is not None and matrix.const_value is not None
    array = matrix.const_value.numpy().astype(np.float32)
    return array.argmax(axis=0).astype(np.int64), array.shape[0]


def _narrow(
    value: ir.Value, axes: list[int], kept: list[tuple[npt.NDArray[np.int64], int]], free: str, narrowed: Narrowed
) -> None:
    assert value.shape is not None
    dims, names = list(value.shape), dict(part.split("=", 1) for part in free.split(",") if part)
    for axis, (indices, extent) in zip(axes, kept, strict=True):
        if len(indices) < extent:
            narrowed.kept.setdefault(str(value.name), {})[axis] = indices
        dims[axis] = ir.SymbolicDim(names[str(axis)]) if str(axis) in names else len(indices)
    value.shape = ir.Shape(dims)
