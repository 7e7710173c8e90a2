"""The masked twin of a pruned file: the original with what went zeroed, made from a record or from the two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.errors import DataError
from onnxprune.graph.layers import matrix_axes
from onnxprune.graph.linear import set_numbers
from onnxprune.graph.tiles import Tile, mask_of
from onnxprune.passes import MaskBlocks, MaskUnits, Normalise, RemoveBlocks, Tidy
from onnxprune.passes.normalise import COPY_OF
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.record import RecordedTile
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools

RecordedCut = Mapping[str, Mapping[str, list[int]]]
"""For each constant that was cut, the kept indices of each axis, as a record has them."""


def masked_twin_of(before: ir.Model, kept: RecordedCut, blocks: list[str]) -> ir.Model:
    """The original with recorded units zeroed, and what recorded blocks contribute.

    Raises:
        DataError: The record does not fit the model.
    """
    structure = prepare(before.clone())
    removed_blocks = [b for b in residual_blocks(structure) if b.name in blocks]
    if missing := set(blocks) - {b.name for b in removed_blocks}:
        raise DataError(f"the record names the residual block {sorted(missing)[0]!r}, which the model does not have")
    if not kept:
        MaskBlocks(removed_blocks)(structure.model)
        return structure.model
    if removed_blocks:  # dead units that went as well are those of the model without the blocks
        RemoveBlocks(removed_blocks)(structure.model)
        Tidy()(structure.model)
        structure = prepare(structure.model)
    MaskUnits(structure, removed_atoms(structure, kept))(structure.model)
    return structure.model


def recorded_masks(model: ir.Model, tiles: Mapping[str, Sequence[RecordedTile]]) -> dict[str, Bools]:
    """Return which weights recorded tiles read, by the name of the weight. Shapes are those of the weights.

    Raises:
        DataError: The record does not fit the model.
    """
    masks = {}
    for name, recorded in tiles.items():
        value = model.graph.initializers.get(name)
        nodes = [] if value is None else [node for node, _ in value.uses()]
        axes = matrix_axes(value, nodes[0]) if value is not None and nodes else None
        if value is None or value.const_value is None or axes is None:
            raise DataError(f"the record has tiles of the weight {name!r}, which the model does not have")
        indices = [Tile(np.array(t.outputs, np.int64), np.array(t.inputs, np.int64)) for t in recorded]
        try:
            masks[name] = mask_of(indices, value.const_value.shape.numpy(), axes)
        except IndexError:
            raise DataError(f"the record has tiles of {name!r} beyond its extents") from None
    return masks


def take_numbers(twin: ir.Model, after: ir.Model, kept: RecordedCut, sources: Mapping[str, str]) -> None:
    """Write the numbers of the pruned model into its masked twin, in place, where both have them.

    Zeros, training and recovery change numbers. With the same numbers on both sides, what is left to differ is the
    graph itself.

    Args:
        twin: The masked twin.
        after: The pruned model.
        kept: What was kept of each constant.
        sources: Copies of constants in the pruned model, with the names of their sources.
    """
    written = {str(value.name): value for value in model_io.all_initializers(after)}
    for value in model_io.all_initializers(twin):
        name = str(value.name)
        of = written.get(name) or written.get(value.metadata_props.get(COPY_OF, ""))
        if of is None or of.const_value is None or value.const_value is None or not value.uses():
            continue
        array, numbers = value.const_value.numpy(), of.const_value.numpy()
        cut = kept.get(name) or kept.get(sources.get(name, ""), {})
        axes = {int(axis): indices for axis, indices in cut.items()}
        if array.ndim == 0 or array.dtype != numbers.dtype or array.dtype.kind != "f":
            continue
        place = np.ix_(*(axes.get(axis, range(extent)) for axis, extent in enumerate(array.shape)))
        if array[place].shape == numbers.shape:
            changed = array.copy()
            changed[place] = numbers
            set_numbers(value, changed)


def recovered_cut(before: ir.Model, after: ir.Model) -> RecordedCut | None:
    """Find what was kept of each constant from the two files alone; None where they do not tell.

    Constants keep their names and the order of what is left. So an axis that lost indices is matched slice by slice;
    what is found on one axis tells the others, since units live and die together.
    """
    structure, pruned = prepare(before.clone()), after.clone()
    Normalise()(pruned)
    written = {str(v.name): v.const_value.numpy() for v in model_io.all_initializers(pruned) if v.const_value}
    for value in structure.weights:
        array = written.get(str(value.name))
        if array is None or value.const_value is None or array.dtype != value.const_value.numpy().dtype:
            return None  # gone with its layer, or stored otherwise (quantised)
    matched: dict[tuple[ir.Value, int], Bools] = {}
    while True:
        lost = structure.keep(_removed(structure, matched, written)).lost()
        newly_matched = _matches(structure, written, lost, matched)
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
                rows, atoms = structure.terms.members(ids)
                gone[atoms[~flags[rows]]] = True
                stays[atoms[flags[rows]]] = True
    removed: Bools = gone & ~stays
    return removed


def _matches(
    structure: Structure,
    written: Mapping[str, npt.NDArray[np.generic]],
    lost: Mapping[ir.Value, Mapping[int, Bools]],
    matched: Mapping[tuple[ir.Value, int], Bools],
) -> dict[tuple[ir.Value, int], Bools]:
    """Axes that can be matched now: those of constants of which one cut axis is still open."""
    kept_by_axis: dict[tuple[ir.Value, int], Bools] = {}
    for value in structure.sources:
        new = written.get(str(value.name))
        if new is None or value.const_value is None or len(value.const_value.shape) != new.ndim:
            continue
        old = value.const_value.numpy()
        for axis, flags in lost.get(value, {}).items():
            if int(flags.sum()) == new.shape[axis]:
                old = np.compress(flags, old, axis=axis)
        open_axes = [axis for axis in range(new.ndim) if old.shape[axis] != new.shape[axis]]
        if len(open_axes) == 1 and (value, open_axes[0]) not in matched:
            flags_of = _subsequence(old, new, open_axes[0])
            if flags_of is not None:
                kept_by_axis[value, open_axes[0]] = flags_of
    return kept_by_axis


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


def removed_atoms(structure: Structure, kept: Mapping[str, Mapping[str, list[int]]]) -> Bools:
    """Return which atoms must go so that exactly the recorded indices are kept. Shape (number of ids,).

    Raises:
        DataError: The record does not fit the model.
    """
    by_name = {str(v.name): v for v in structure.sources}
    gone = np.zeros(structure.terms.count, bool)
    stays = np.zeros(structure.terms.count, bool)
    for value in structure.sources:
        axes = kept.get(str(value.name), {})
        if not axes and COPY_OF in value.metadata_props:
            continue  # a copy that was joined with its source again, and says nothing of its own
        for axis in range(len(structure.axes[value])):
            ids = structure.ids(value, axis)
            if ids is None:
                continue
            rows, atoms = structure.terms.members(ids)
            flags = np.ones(len(ids), bool)
            if str(axis) in axes:
                flags[:] = False
                flags[_indices(axes[str(axis)], len(ids), str(value.name))] = True
            gone[atoms[~flags[rows]]] = True
            stays[atoms[flags[rows]]] = True
    removed: Bools = gone & ~stays
    lost_by_value = structure.keep(removed).lost()
    for name, recorded in kept.items():
        if name not in by_name:
            raise DataError(f"the record names the weight {name!r}, which the model does not have")
        for place, indices in recorded.items():
            cut = lost_by_value.get(by_name[name], {}).get(int(place))
            if cut is None or not np.array_equal(np.flatnonzero(cut), indices):
                raise DataError(f"the record keeps indices of {name!r} that this model cannot be cut to")
    return removed


def _indices(indices: list[int], extent: int, name: str) -> list[int]:
    if any(not 0 <= i < extent for i in indices):
        raise DataError(f"the record keeps indices of {name!r} beyond its extent {extent}")
    return indices
