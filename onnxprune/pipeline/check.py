"""Check a pruned file against its original, later and by somebody else: ``onnxprune verify``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.readers import AnyData
from onnxprune.data.working import give_inputs
from onnxprune.errors import DataError, VerificationError
from onnxprune.graph.linear import set_numbers
from onnxprune.passes import MaskBlocks, MaskUnits, Normalise, RemoveBlocks, Tidy
from onnxprune.passes.normalise import COPY_OF, one_name_each
from onnxprune.pipeline.prepare import prepare
from onnxprune.pipeline.record import Record, load_record
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.verify.proof import difference_to_masked, tolerance_of


@dataclass(frozen=True)
class Check:
    """What was found equal, and how far the outputs are apart.

    Attributes:
        identical: Constants that are bit by bit what they were (after cutting, where a record tells the indices).
        zeroed: Constants that differ from the original only by zeros.
        changed: Constants with other numbers (after retraining or recovery).
        cut: Constants that lost indices and cannot be compared without a record.
        removed_vs_masked: Largest difference to the original with the recorded units zeroed; None without a record
            of removed units.
        output_change: Largest difference to the original, relative to its largest output.
    """

    identical: int
    zeroed: int
    changed: int
    cut: int
    removed_vs_masked: float | None
    output_change: float

    def lines(self) -> list[str]:
        """Return the findings as sentences."""
        out = [
            "the pruned model loads and runs, with the inputs and outputs of the original",
            f"weights: {self.identical} unchanged, {self.zeroed} with new zeros only, {self.changed} with new numbers, "
            f"{self.cut} cut",
            f"outputs differ from the original's by {self.output_change:.2g} of their largest value",
        ]
        if self.removed_vs_masked is not None:
            out.append(f"removed == masked: largest relative difference {self.removed_vs_masked:.1e}")
        elif self.cut:
            out.append("give --record to compare cut weights and to prove removed == masked")
        return out


def check(
    original: Path, pruned: Path, record: Path | None = None, *, seed: int = 0, inputs: AnyData | None = None
) -> Check:
    """Check a pruned model.

    Args:
        original, pruned: Both files.
        record: The record of the run.
        seed: Of random inputs.
        inputs: Inputs that the original runs with; they take the place of random ones.

    Raises:
        ModelError: A model cannot be read.
        DataError: The record cannot be read or belongs to other models.
        VerificationError: The pruned model does not run, has other inputs or outputs, or is not what the record says.
    """
    before, after = model_io.load(original), model_io.load(pruned)
    give_inputs(before, inputs)
    _same_interface(before, after)
    kept: dict[str, dict[str, list[int]]] = {}
    sources: dict[str, str] = {}
    twin = None
    trained = False
    if record is not None:
        known = load_record(record)
        _same_files(known, original, pruned)
        kept, sources = known.kept, known.renamed
        if kept or known.blocks:
            twin = _masked(before, kept, known.blocks)
    counts = _compare_constants(before, after, kept, sources)
    trained = counts["changed"] > 0
    if twin is not None and counts["zeroed"]:
        _zero_likewise(twin, after, kept)
    difference, change = _compare_outputs(before, after, None if trained else twin, seed)
    if difference is not None and not difference <= tolerance_of(before):
        raise VerificationError(
            f"'{pruned}' differs from '{original}' with the recorded units zeroed by {difference:.2g} of the "
            "largest output"
        )
    return Check(counts["identical"], counts["zeroed"], counts["changed"], counts["cut"], difference, change)


def _same_interface(before: ir.Model, after: ir.Model) -> None:
    for what, a, b in (
        ("inputs", before.graph.inputs, after.graph.inputs),
        ("outputs", before.graph.outputs, after.graph.outputs),
    ):
        ours, theirs = [(v.name, v.dtype) for v in a], [(v.name, v.dtype) for v in b]
        if ours != theirs:
            raise VerificationError(
                f"the {what} differ: {[n for n, _ in ours]} in the original, {[n for n, _ in theirs]} in the pruned "
                "model"
            )


def _same_files(record: Record, original: Path, pruned: Path) -> None:
    for path, known in ((original, record.source.sha256), (pruned, record.output.sha256)):
        if known is not None and model_io.sha256(path) != known:
            raise DataError(f"the record is of another file than '{path}': their hashes differ")


def _masked(before: ir.Model, kept: dict[str, dict[str, list[int]]], blocks: list[str]) -> ir.Model:
    """The original with recorded units zeroed, and what recorded blocks contribute.

    Raises:
        DataError: The record does not fit the model.
    """
    structure = prepare(before.clone())
    found = [b for b in residual_blocks(structure) if b.name in blocks]
    if missing := set(blocks) - {b.name for b in found}:
        raise DataError(f"the record names the residual block {sorted(missing)[0]!r}, which the model does not have")
    if not kept:
        MaskBlocks(found)(structure.model)
        return structure.model
    if found:  # dead units that went as well are those of the model without the blocks
        RemoveBlocks(found)(structure.model)
        Tidy()(structure.model)
        structure = prepare(structure.model)
    MaskUnits(structure, removed_atoms(structure, kept))(structure.model)
    return structure.model


def _zero_likewise(twin: ir.Model, after: ir.Model, kept: dict[str, dict[str, list[int]]]) -> None:
    """Zero in the masked twin, in place, what a mix zeroed beside its units."""
    for name, value in twin.graph.initializers.items():
        left = after.graph.initializers.get(name)
        if left is None or left.const_value is None or value.const_value is None or not value.uses():
            continue
        array, found = value.const_value.numpy().copy(), left.const_value.numpy()
        axes = {int(axis): indices for axis, indices in kept.get(name, {}).items()}
        place = np.ix_(*(axes.get(axis, range(extent)) for axis, extent in enumerate(array.shape)))
        if array.ndim and array[place].shape == found.shape and array.dtype.kind == "f":
            array[place] = np.where(found == 0, 0, array[place])
            set_numbers(value, array)


def _compare_constants(
    before: ir.Model, after: ir.Model, kept: dict[str, dict[str, list[int]]], sources: dict[str, str]
) -> dict[str, int]:
    counts = {"identical": 0, "zeroed": 0, "changed": 0, "cut": 0}
    normal = before.clone()
    Normalise()(normal)
    old = {**dict(_constants(normal)), **dict(_constants(before))}  # weights that were computed are stored now
    written = after.clone()
    one_name_each(written)
    for name, tensor in _constants(written):
        source = old.get(name, old.get(sources.get(name, "")))
        if source is None:
            continue
        expected, found = source.numpy(), tensor.numpy()
        for axis, indices in kept.get(name, {}).items():
            if int(axis) < expected.ndim and max(indices, default=0) < expected.shape[int(axis)]:
                expected = np.take(expected, indices, axis=int(axis))
        counts[_verdict_on(expected, found)] += 1
    return counts


def _verdict_on(expected: np.ndarray, found: np.ndarray) -> str:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return "cut"
    if expected.tobytes() == found.tobytes():
        return "identical"
    return "zeroed" if bool(((expected == found) | (found == np.zeros((), found.dtype))).all()) else "changed"


def _constants(model: ir.Model) -> list[tuple[str, ir.TensorProtocol]]:
    out = []
    for graph in (model.graph, *model.graph.subgraphs()):
        out += [(str(v.name), v.const_value) for v in graph.initializers.values() if v.const_value is not None]
        for node in graph:
            if node.op_type == "Constant":
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                if tensor is not None:
                    out.append((str(node.outputs[0].name), tensor))
    return [(name, tensor) for name, tensor in out if tensor.dtype != ir.DataType.STRING]


def _compare_outputs(before: ir.Model, after: ir.Model, twin: ir.Model | None, seed: int) -> tuple[float | None, float]:
    batches = runtime.working_inputs(before, seed=seed, count=2)
    session = runtime.make_session(before)
    pruned = runtime.make_session(after, error=VerificationError)
    masked = None if twin is None else runtime.make_session(twin)
    got = [runtime.run(pruned, feeds, error=VerificationError) for feeds in batches]
    change = max(runtime.compare_outputs(runtime.run(session, x), y).max_rel for x, y in zip(batches, got, strict=True))
    if twin is None or masked is None:
        return None, change
    return difference_to_masked(twin, [runtime.run(masked, feeds) for feeds in batches], got), change


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
    found = structure.keep(removed).lost()
    for name, recorded in kept.items():
        if name not in by_name:
            raise DataError(f"the record names the weight {name!r}, which the model does not have")
        for place, indices in recorded.items():
            cut = found.get(by_name[name], {}).get(int(place))
            if cut is None or not np.array_equal(np.flatnonzero(cut), indices):
                raise DataError(f"the record keeps indices of {name!r} that this model cannot be cut to")
    return removed


def _indices(indices: list[int], extent: int, name: str) -> list[int]:
    if any(not 0 <= i < extent for i in indices):
        raise DataError(f"the record keeps indices of {name!r} beyond its extent {extent}")
    return indices
