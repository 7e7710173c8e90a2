"""What was cut, found from two files alone: the original and what pruning made of it.

Constants keep their names and the order of what is left. So an axis that lost indices is matched slice by slice. What
is found on one axis tells the others, since units live and die together. Recovery and training change numbers, so
slices that are equal nowhere are matched by how alike they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.model_io.bodies import nodes_of
from onnxprune.passes import Normalise
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.rebuild import RecordedCut, without_blocks
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools

Floats = npt.NDArray[np.float32]
_MOST_PAIRS = 1 << 24  # of slices that are compared
_ORDERS = 19  # that are drawn at random, to tell two networks from one and its cut
_SIGMAS = 4.0  # by which the real order has to be better
_SURELY_ALIKE = 0.9  # a mean cosine that needs no such test


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known while axes are matched.

    Attributes:
        structure: Of the original.
        written: The pruned model's constants by name.
        lost: What stays of the original's constants by what was matched.
        matched: What stays along the axes that were.
    """

    structure: Structure
    written: Mapping[str, npt.NDArray[np.generic]]
    lost: Mapping[ir.Value, Mapping[int, Bools]]
    matched: Mapping[tuple[ir.Value, int], Bools]


def recovered(before: ir.Model, after: ir.Model) -> tuple[list[str], RecordedCut | None]:
    """Find what was cut from the two files alone.

    Args:
        before, after: The original and the pruned model.

    Returns:
        The residual blocks of which nothing is left, by the names of their sums, the outermost of nested ones; and
        what was kept of each constant, None where the files do not tell.
    """
    structure, pruned = prepare(before.clone()), after.clone()
    Normalise()(pruned)
    blocks = _blocks_gone(structure, pruned)
    return blocks, _kept(without_blocks(structure, blocks), pruned)


def _blocks_gone(structure: Structure, pruned: ir.Model) -> list[str]:
    left = {str(value.name) for value in model_io.all_initializers(pruned)}
    left |= {str(value.name) for node in nodes_of(pruned.graph) for value in node.outputs}
    gone = [
        block
        for block in residual_blocks(structure)
        if block.weights
        and not any(str(value.name) in left for value in block.weights)
        and not any(str(value.name) in left for node in block.nodes for value in node.outputs)
    ]
    return [block.name for block in gone if not any(block.nodes < other.nodes for other in gone)]


def _kept(structure: Structure, pruned: ir.Model) -> RecordedCut | None:
    """What was kept of each constant; None where the files do not tell."""
    written = {str(v.name): v.const_value.numpy() for v in model_io.all_initializers(pruned) if v.const_value}
    for value in structure.weights:
        array = written.get(str(value.name))
        if array is None or value.const_value is None or array.dtype != value.const_value.numpy().dtype:
            return None  # gone with its layer, or stored otherwise (quantised)
    matched: dict[tuple[ir.Value, int], Bools] = {}
    while True:
        lost = structure.keep(_removed(structure, matched, written)).lost()
        known = _Known(structure, written, lost, matched)
        newly_matched = _matches(known) or _likeliest(known)
        if not newly_matched:
            break
        matched.update(newly_matched)
    for value in structure.sources:
        array = written.get(str(value.name))
        if array is None or value.const_value is None:
            continue
        cut = lost.get(value, {})
        shape = tuple(int(cut[i].sum()) if i in cut else n for i, n in enumerate(value.const_value.shape.numpy()))
        if shape != array.shape:
            return None
    return {
        str(value.name): {str(axis): np.flatnonzero(flags).tolist() for axis, flags in axes.items()}
        for value, axes in lost.items()
    }


def _removed(
    structure: Structure, matched: Mapping[tuple[ir.Value, int], Bools], written: Mapping[str, npt.NDArray[np.generic]]
) -> Bools:
    """The atoms that are gone by what was matched, and that no axis of full extent holds."""
    gone = np.zeros(structure.terms.count, bool)
    stays = np.zeros(structure.terms.count, bool)
    for value in structure.sources:
        array = written.get(str(value.name))
        for axis in range(len(structure.axes[value])):
            ids = structure.ids(value, axis)
            if ids is None or array is None or array.ndim != len(structure.axes[value]):
                continue
            flags = matched.get((value, axis))
            if flags is None and array.shape[axis] == len(ids):
                flags = np.ones(len(ids), bool)
            if flags is not None:
                rows, atoms = structure.members(ids)
                gone[atoms[~flags[rows]]] = True
                stays[atoms[flags[rows]]] = True
    removed: Bools = gone & ~stays
    return removed


def _matches(known: _Known) -> dict[tuple[ir.Value, int], Bools]:
    """Axes that can be matched now: those of constants of which one cut axis is still open."""
    kept_by_axis: dict[tuple[ir.Value, int], Bools] = {}
    for value, axis, old, new in _open(known):
        flags = _subsequence(old, new, axis)
        last = _subsequence(np.flip(old, axis), np.flip(new, axis), axis)
        if flags is not None and last is not None and np.array_equal(flags, last[::-1]):  # equal slices tell nothing
            kept_by_axis[value, axis] = flags
    return kept_by_axis


def _likeliest(known: _Known) -> dict[tuple[ir.Value, int], Bools]:
    """The axis whose slices are most alike before and after, matched by likeness; none where all are matched.

    An axis whose slices are no more alike than in an order drawn at random tells nothing: these are two networks.
    """
    candidates = []
    for value, axis, old, new in _open(known):
        together = _together(known.structure, value, axis, new.shape[axis])
        likeness = _likeness(old, new, axis, together)
        if likeness is None or not np.isfinite(likeness).all():
            continue
        flags, mean = _in_order(likeness)
        candidates.append((mean, likeness, {(value, axis): np.repeat(flags, together)}))
    for mean, likeness, best in sorted(candidates, key=lambda candidate: candidate[0], reverse=True):
        if not _by_chance(likeness, mean):
            return best
    return {}


def _by_chance(likeness: Floats, mean: float) -> bool:
    """Whether slices in orders drawn at random are about as alike as in the order that they stand in."""
    if mean > _SURELY_ALIKE:
        return False
    rng = np.random.default_rng(0)
    drawn = [_in_order(likeness[:, rng.permutation(likeness.shape[1])])[1] for _ in range(_ORDERS)]
    return mean < float(np.mean(drawn)) + _SIGMAS * float(np.std(drawn))


def _open(known: _Known) -> Iterator[tuple[ir.Value, int, npt.NDArray[np.generic], npt.NDArray[np.generic]]]:
    """Constants with one cut axis that is not matched: the constant, the axis, what it held, and what it holds now."""
    for value in known.structure.sources:
        new = known.written.get(str(value.name))
        if new is None or value.const_value is None or len(value.const_value.shape) != new.ndim:
            continue
        old = value.const_value.numpy()
        for axis, flags in known.lost.get(value, {}).items():
            if int(flags.sum()) == new.shape[axis]:
                old = np.compress(flags, old, axis=axis)
        open_axes = [axis for axis in range(new.ndim) if old.shape[axis] != new.shape[axis]]
        shorter = len(open_axes) == 1 and old.shape[open_axes[0]] > new.shape[open_axes[0]]
        if shorter and (value, open_axes[0]) not in known.matched:
            yield value, open_axes[0], old, new


def _subsequence(old: npt.NDArray[np.generic], new: npt.NDArray[np.generic], axis: int) -> Bools | None:
    """Which slices of the old array the new one has, in order; None where it has another."""
    flags = np.zeros(old.shape[axis], bool)
    place = 0
    for piece in np.moveaxis(new, axis, 0):
        while place < len(flags) and np.take(old, place, axis=axis).tobytes() != np.ascontiguousarray(piece).tobytes():
            place += 1
        if place == len(flags):
            return None
        flags[place] = True
        place += 1
    return flags


def _together(structure: Structure, value: ir.Value, axis: int, left: int) -> int:
    """How many neighbours on an axis go together, such as those of a head: the most of which `left` is a multiple."""
    ids = structure.ids(value, axis)
    if ids is None:
        return 1
    rows, atoms = structure.members(ids)
    sizes = {1}
    for atom in np.unique(atoms).tolist():
        of_atom = rows[atoms == atom]
        if len(of_atom) == of_atom.max() - of_atom.min() + 1 and of_atom.min() % len(of_atom) == 0:
            sizes.add(len(of_atom))
    return max(size for size in sizes if len(ids) % size == 0 and left % size == 0)


def _likeness(old: npt.NDArray[np.generic], new: npt.NDArray[np.generic], axis: int, together: int) -> Floats | None:
    """How alike each slice now is to each slice before, shape (now, before); None where they are too many.

    Of slices of several numbers it is their cosine. Single numbers come last: they are less than 0 by their distance.
    """
    a, b = (np.moveaxis(array, axis, 0).astype(np.float32) for array in (new, old))
    a, b = (array.reshape(array.shape[0] // together, -1) for array in (a, b))
    if len(a) * len(b) > _MOST_PAIRS or a.shape[1] != b.shape[1] or not len(a):
        return None
    if a.shape[1] == 1:
        scale = max(float(np.std(b)), 1e-12)
        return (-1 - np.abs(a - b.T) / scale).astype(np.float32)
    a, b = (array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12) for array in (a, b))
    product: Floats = a @ b.T
    return product


def _in_order(likeness: Floats) -> tuple[Bools, float]:
    """Choose a column for each row, in rising order, so that the sum is the largest; also return the mean."""
    count, of = likeness.shape
    spare = of - count
    total, steps = likeness[0, : spare + 1].astype(np.float64), []
    for row in range(1, count):  # the row may take the columns from `row` to `row + spare`
        best = np.maximum.accumulate(total)
        place = np.maximum.accumulate(np.where(total == best, np.arange(spare + 1), 0))
        steps.append(place)
        total = best + likeness[row, row : row + spare + 1]
    column = int(np.argmax(total))
    mean = float(total[column]) / count
    flags = np.zeros(of, bool)
    for row in range(count - 1, -1, -1):
        flags[row + column] = True
        column = int(steps[row - 1][column]) if row else column
    return flags, mean
