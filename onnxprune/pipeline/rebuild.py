"""The masked twin of a pruned file: the original with what went zeroed, made from a record or from the two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.errors import DataError
from onnxprune.graph.layers import matrix_axes
from onnxprune.graph.linear import set_numbers
from onnxprune.graph.tiles import Tile, mask_of
from onnxprune.passes import MaskBlocks, MaskUnits, RemoveBlocks, Tidy
from onnxprune.passes.normalise import COPY_OF
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.record import RecordedTile
from onnxprune.structure.blocks import ResidualBlock, residual_blocks
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools

RecordedCut = Mapping[str, Mapping[str, list[int]]]
"""For each constant that was cut, the kept indices of each axis, as a record has them."""


def masked_twin_of(before: ir.Model, kept: RecordedCut, blocks: Sequence[str]) -> ir.Model:
    """The original with recorded units zeroed, and what recorded blocks contribute.

    Raises:
        DataError: The record does not fit the model.
    """
    if not kept:
        structure = prepare(before.clone())
        MaskBlocks(_named_blocks(structure, blocks))(structure.model)
        return structure.model
    structure = without_blocks(before, blocks)
    MaskUnits(structure, removed_atoms(structure, kept))(structure.model)
    return structure.model


def without_blocks(before: ir.Model | Structure, blocks: Sequence[str]) -> Structure:
    """The structure of the original without these residual blocks, which is what its units were cut from.

    Dead units that went with a block are those of the model without it.

    Args:
        before: The original, of which a copy is prepared, or such a copy, prepared, which is then used up.
        blocks: The blocks, by the names of their sums.

    Raises:
        DataError: The original has no such block.
    """
    structure = prepare(before.clone()) if isinstance(before, ir.Model) else before
    if not blocks:
        return structure
    RemoveBlocks(_named_blocks(structure, blocks))(structure.model)
    Tidy()(structure.model)
    return prepare(structure.model)


def _named_blocks(structure: Structure, names: Sequence[str]) -> list[ResidualBlock]:
    removed = [block for block in residual_blocks(structure) if block.name in names]
    if missing := set(names) - {block.name for block in removed}:
        raise DataError(f"the record names the residual block {sorted(missing)[0]!r}, which the model does not have")
    return removed


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
            rows, atoms = structure.members(ids)
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
