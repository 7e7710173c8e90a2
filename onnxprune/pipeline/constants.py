"""What became of each constant of a model: cut, zeroed, given new numbers, gone or added.

A constant is known by its name and the body that it lies in, since bodies side by side may use one name twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.tensors import Array, read
from onnxprune.passes import Normalise
from onnxprune.passes.normalise import COPY_OF, WRITTEN_AS, one_name_each
from onnxprune.pipeline.rebuild import RecordedCut

State = Literal["unchanged", "rounded", "zeros", "numbers", "reordered", "reshaped", "gone", "new"]
_NAMED = 4  # constants in one sentence


@dataclass(frozen=True)
class Constant:
    """A constant before and after.

    Attributes:
        name: Its name in the file.
        scope: The body that it lies in, such as "then_branch of 'y'" (the output of the If); "" for the main graph.
        state: Of what is left: "unchanged" bit by bit, "rounded" to float16 and nothing else, new "zeros" only, other
            "numbers", the same numbers "reordered", or "reshaped" where nothing tells which indices are left or the
            type is another; "gone" and "new" where only one file has it.
        before, after: Its shapes; None where the file does not have it.
    """

    name: str
    scope: str
    state: State
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None

    @property
    def is_cut(self) -> bool:
        """Whether it lost indices."""
        pair = self.before, self.after
        return None not in pair and pair[0] != pair[1] and int(np.prod(pair[1] or ())) < int(np.prod(pair[0] or ()))

    @property
    def label(self) -> str:
        """Its name as a person reads it, with the body that it lies in."""
        return f"'{self.name}'" + (f" in {self.scope}" if self.scope else "")


@dataclass(frozen=True)
class _Stored:
    """A constant where it is stored, with its name in the normalised model, which records and cuts use."""

    name: str
    scope: str
    normal: str
    tensor: ir.TensorProtocol
    value: ir.Value


def compare_constants(
    before: ir.Model, after: ir.Model, kept: RecordedCut, sources: Mapping[str, str]
) -> tuple[Constant, ...]:
    """Say of each constant what became of it.

    Args:
        before, after: The models.
        kept: For each constant that was cut, by its name in the normalised model, the kept indices of each axis.
        sources: For constants of `after` that are copies, the names of what they are copies of.
    """
    normal, written = before.clone(), after.clone()
    Normalise()(normal)
    one_name_each(written)
    computed = _stored(normal)  # weights that were computed are stored now
    old = {(c.scope, c.name): c for c in (*_stored(before), *computed)}
    by_name = {c.normal: c for c in (*_stored(before), *computed)}
    matched: set[tuple[str, str]] = set()
    out = []
    for new in _stored(written):
        source = old.get((new.scope, new.name)) or by_name.get(new.normal) or by_name.get(sources.get(new.name, ""))
        if source is None:
            out.append(Constant(new.name, new.scope, "new", None, tuple(new.tensor.shape.numpy())))
            continue
        matched.add((source.scope, source.name))
        cut = kept.get(new.normal) or kept.get(source.normal) or {}
        state = _state(read(source.tensor), cut, read(new.tensor))
        shapes = tuple(source.tensor.shape.numpy()), tuple(new.tensor.shape.numpy())
        out.append(Constant(new.name, new.scope, state, *shapes))
    lost = [c for c in computed if (c.scope, c.name) not in matched and c.tensor.dtype.is_floating_point()]
    gone = [c for c in lost if COPY_OF not in c.value.metadata_props]
    return (*out, *(Constant(c.name, c.scope, "gone", tuple(c.tensor.shape.numpy()), None) for c in gone))


_WORDS: Mapping[State, str] = {
    "rounded": "rounded to float16",
    "zeros": "new zeros",
    "numbers": "new numbers",
    "reshaped": "not compared, since nothing tells what was cut or the type is another",
    "gone": "gone",
    "new": "new",
}


def sentences(unchanged: int, constants: Sequence[Constant]) -> list[str]:
    """Say what was cut and what changed: the counts, then the first constants by name.

    Args:
        unchanged: How many constants are bit by bit what they were, those that were cut included.
        constants: Those that are not as they were.
    """
    states = [constant.state for constant in constants]
    cut = [constant for constant in constants if constant.is_cut]
    both = unchanged + sum(state in ("rounded", "zeros", "numbers", "reshaped") for state in states)
    zeros, numbers = states.count("zeros"), states.count("numbers")
    rounded = f", {states.count('rounded')} rounded to float16" if "rounded" in states else ""
    left = f"{unchanged} unchanged{rounded}, {zeros} with new zeros only, {numbers} with new numbers"
    out = [f"weights: {len(cut)} of {both} constants cut; of what is left {left}"]
    out += _listed("cut", [f"{c.label} {_shape(c.before)} to {_shape(c.after)}" for c in cut])
    for state, words in _WORDS.items():
        out += _listed(words, [constant.label for constant in constants if constant.state == state])
    return out


def _listed(words: str, labels: Sequence[str]) -> list[str]:
    if not labels:
        return []
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return [f"{words}: {', '.join(labels[:_NAMED])}{more}"]


def _shape(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape or ())) or "one number"


def _cut(array: Array, cut: Mapping[str, Sequence[int]]) -> Array:
    for axis, indices in cut.items():
        if int(axis) < array.ndim and max(indices, default=0) < array.shape[int(axis)]:
            array = np.take(array, indices, axis=int(axis))
    return array


def _state(before: Array, cut: Mapping[str, Sequence[int]], actual: Array) -> State:
    expected = _cut(before, cut)
    if expected.dtype != actual.dtype or expected.ndim != actual.ndim:
        return "reshaped"
    if expected.shape != actual.shape:
        return "reordered" if _picks_in_another_order(expected, actual) else "reshaped"
    if expected.tobytes() == actual.tobytes():
        return "unchanged"
    if _same_numbers(expected, actual) or _picks_in_another_order(before, actual):
        return "reordered"
    half = _in_half(expected)
    if half is not None and half.tobytes() == actual.tobytes():
        return "rounded"
    left = (actual == expected) | (actual == (expected if half is None else half))
    return "zeros" if bool((left | (actual == np.zeros((), actual.dtype))).all()) else "numbers"


def _in_half(array: Array) -> Array | None:
    """Float32 numbers rounded to float16; None of other types."""
    if array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        return array.astype(np.float16).astype(np.float32)


def _same_numbers(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same numbers, most of them different from each other, in some order."""
    if a.dtype.kind != "f" or a.size < 2 or not np.isclose(_sum(a), _sum(b), rtol=1e-9):
        return False  # quick, before anything is sorted
    a, b = np.sort(a, axis=None), np.sort(b, axis=None)
    return a.tobytes() == b.tobytes() and len(np.unique(a)) > a.size // 2


def _sum(array: Array) -> float:
    """The sum of the magnitudes, which no order changes but for rounding."""
    return float(np.abs(array).sum(dtype=np.float64))


def _picks_in_another_order(before: Array, actual: Array) -> bool:
    """Whether each slice of an axis that lost some was there before, but not in this order."""
    axes = [axis for axis in range(actual.ndim) if before.shape[axis] != actual.shape[axis]]
    if len(axes) != 1 or actual.dtype.kind != "f":
        return False
    places = {piece.tobytes(): i for i, piece in enumerate(np.moveaxis(before, axes[0], 0))}
    if len(places) < before.shape[axes[0]]:
        return False  # equal slices have no order
    order = [places.get(piece.tobytes(), -1) for piece in np.moveaxis(actual, axes[0], 0)]
    return -1 not in order and order != sorted(order)


def _stored(model: ir.Model) -> list[_Stored]:
    """The constants of a model, initializers and Constant nodes, but for texts."""
    out = []
    for graph, scope in _bodies(model.graph, ""):
        values = [(v, v.const_value) for v in graph.initializers.values()]
        nodes = [node for node in graph if node.op_type == "Constant" and node.domain == ""]
        values += [(node.outputs[0], ir.convenience.get_const_tensor(node.outputs[0])) for node in nodes]
        for value, tensor in values:
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                name = str(value.metadata_props.get(WRITTEN_AS, value.name))
                out.append(_Stored(name, scope, str(value.name), tensor, value))
    return out


def _bodies(graph: ir.Graph, scope: str) -> list[tuple[ir.Graph, str]]:
    """A graph and the bodies in it, each with where it lies."""
    out = [(graph, scope)]
    for node in graph:
        for attribute in node.attributes.values():
            bodies = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
            bodies += attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []
            for body in bodies:
                inside = f"{attribute.name} of '{node.outputs[0].name}'"
                out += _bodies(body, inside + (f" in {scope}" if scope else ""))
    return out
