"""Check a pruned file against its original, later and by somebody else: ``onnxprune verify``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.readers import AnyData
from onnxprune.data.working import give_inputs
from onnxprune.errors import DataError, ModelError, VerificationError
from onnxprune.graph.narrowing import free_caches, widen_caches
from onnxprune.packing import is_packed, unpack
from onnxprune.passes import JoinTiles, Normalise
from onnxprune.passes.join_tiles import in_tiles
from onnxprune.pipeline.constants import Constant, compare_constants, sentences
from onnxprune.pipeline.matching import recovered
from onnxprune.pipeline.real_numbers import RealNumbers, cut_off, is_half, is_quantised, over_real_numbers, store_as
from onnxprune.pipeline.rebuild import RecordedCut, masked_twin_of, recorded_masks, take_numbers, without_blocks
from onnxprune.pipeline.record import Record, load_record
from onnxprune.runtime.in_blocks import checked_by, outputs_of
from onnxprune.runtime.libraries import custom_operators
from onnxprune.verification.candidates import working
from onnxprune.verification.change import changes_of, sentence, worst
from onnxprune.verification.comparable import seeded
from onnxprune.verification.notebook import in_notebook
from onnxprune.verification.proof import Differs, Proof, other_inputs, prove

_NO_TWIN = "only inputs, outputs and weights of equal shape were compared. Give --record to prove removed == masked"
_FLOAT = "Verify the pruned float model to prove removed == masked"
_ROUNDED = (
    "the proof is of the file over real numbers: without its rounding, and with its ranges of activations as they are. "
    "Of the rounding"
)


@dataclass(frozen=True)
class Check:
    """What was found equal, and how far the outputs are apart.

    Attributes:
        identical: Constants whose numbers are bit by bit what they were (after cutting, where some went).
        zeroed: Constants that differ from the original only by zeros.
        changed: Constants with other numbers (after retraining or recovery).
        cut: Constants that lost indices, whether what is left is as it was or has other numbers.
        constants: All constants that are not as they were, with what became of each.
        removed_vs_masked: Largest difference to the original with the removed units zeroed; None where nothing was
            proved.
        output_change: Largest difference to the original, relative to the largest value of the part of an output.
        proved: Whether the cut was proved.
        unproved: Why not, and what was compared instead; "" where it was.
        notes: Outputs that say nothing, and what was compared in their place.
    """

    identical: int
    zeroed: int
    changed: int
    cut: int
    constants: tuple[Constant, ...]
    removed_vs_masked: float | None
    output_change: float
    proved: bool = True
    unproved: str = ""
    notes: tuple[str, ...] = ()

    @staticmethod
    def of(constants: Sequence[Constant], proof: Proof | None, unproved: str, change: float) -> Check:
        """Count what became of the constants, and say what was proved."""
        states = [constant.state for constant in constants]
        why = unproved if proof is None else proof.unproved
        return Check(
            identical=states.count("unchanged"),
            zeroed=states.count("zeros"),
            changed=states.count("numbers"),
            cut=sum(constant.is_cut for constant in constants),
            constants=tuple(c for c in constants if c.state != "unchanged" or c.is_cut),
            removed_vs_masked=None if proof is None or proof.unproved else proof.difference,
            output_change=change,
            proved=not why,
            unproved=why,
            notes=() if proof is None or proof.unproved or not proof.note else (proof.note,),
        )

    def __repr__(self) -> str:
        return f"<Check: {self.lines()[-1]}>"

    def _repr_html_(self) -> str:
        first, *others = self.lines()
        return in_notebook(first, notes=others)

    def lines(self) -> list[str]:
        """Return the findings as sentences."""
        out = [
            "the pruned model loads and runs, with the inputs and outputs of the original",
            *sentences(self.identical, self.constants),
            f"against the original as it was, {sentence(self.output_change)}",
        ]
        if self.removed_vs_masked is not None:
            out.append(f"removed == masked: largest relative difference {self.removed_vs_masked:.1e}")
        if self.unproved:
            out.append(f"nothing was proved of the cut: {self.unproved}")
        return [*out, *self.notes]


def verify(
    original: str | Path,
    pruned: str | Path,
    record: str | Path | None = None,
    *,
    seed: int = 0,
    inputs: AnyData | None = None,
    custom_ops: Sequence[str | Path] = (),
    verify_by: str = "auto",
) -> Check:
    """Check a pruned model.

    Args:
        original, pruned: Both files.
        record: The record of the run.
        seed: Of random inputs.
        inputs: Inputs that the original runs with; they take the place of random ones.
        custom_ops: Libraries of custom operators that the models need.
        verify_by: How the models are run: blocks (a few layers at a time), whole, or auto: blocks above 512 MiB.

    Raises:
        ModelError: A model cannot be read.
        DataError: The record cannot be read or belongs to other models.
        VerificationError: The pruned model does not run, has other inputs or outputs, or is not what the record says.

    >>> import onnxprune
    >>> result = onnxprune.prune("models/digits_mlp.onnx", sparsity=0.5, structure="channels", latency=False)
    >>> file = onnxprune.save(result, "half.onnx", record="half.json")
    >>> onnxprune.verify("models/digits_mlp.onnx", "half.onnx", "half.json").removed_vs_masked < 1e-4
    True
    """
    with custom_operators(custom_ops), checked_by(verify_by):
        files = Path(original), Path(pruned), None if record is None else Path(record)
        return _checked(*files, seed, inputs)


def _checked(original: Path, pruned: Path, record: Path | None, seed: int, inputs: AnyData | None) -> Check:
    before, after = model_io.load(original), model_io.load(pruned)
    after = unpack(after) if is_packed(after) else after
    give_inputs(before, inputs)
    _widen(before, after, record)
    _same_interface(before, after)
    plain = after.clone() if in_tiles(after) else after
    JoinTiles()(plain)
    if record is not None:
        _same_files(load_record(record), original, pruned)
    real = _over_real_numbers(before, plain)
    compared = plain if real is None or isinstance(real, str) else real.model
    kept, sources, twin = _twin(before, compared, record)
    if record is not None:
        _ensure_tiles(plain, load_record(record), pruned)
    constants = compare_constants(before, compared, kept or {}, sources)
    if compared is not plain:  # what it holds beside the weights are scales and ranges of the rounding
        constants = tuple(constant for constant in constants if constant.state != "new")
    _ensure_order(constants, pruned)
    if twin is not None and any(constant.state in ("rounded", "zeros", "numbers") for constant in constants):
        take_numbers(twin, compared, kept or {}, sources)
    change = _change_of_outputs(before, after, seed)
    differs = f"'{pruned}' differs from '{original}' with " + (
        "the recorded units zeroed" if record is not None else "the units that it lacks zeroed"
    )
    proof, unproved = _proof(before, after, twin, real, seed, differs)
    for model in (before, after):
        model_io.ensure_unchanged(model)
    check = Check.of(constants, proof, unproved, change)
    if proof is None or not isinstance(real, RealNumbers):
        return check
    rounding = _change_of_outputs(real.model, after, seed)
    return replace(check, notes=(*check.notes, f"{_ROUNDED}: {sentence(rounding)}"))


def _over_real_numbers(before: ir.Model, after: ir.Model) -> RealNumbers | str | None:
    """The pruned model without its rounding, where that came by pruning; or why there is none."""
    if is_half(before) and not is_half(after) and is_quantised(after):
        return "the original is in float16, which rounds as well"
    if is_quantised(before) or not is_quantised(after):
        return None
    try:
        real = over_real_numbers(after)
    except ModelError as error:
        return str(error).rstrip(". ")
    normal = before.clone()
    Normalise()(normal)
    names = {str(v.name) for v in model_io.all_initializers(real.model)}
    for value in model_io.all_initializers(normal):
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.size > 1 and value.name not in names:
            return f"'{value.name}' of the original went into other constants"
    store_as(real.model, normal)
    return real


def _widen(before: ir.Model, after: ir.Model, record: Path | None) -> None:
    """Give a model with narrow caches the interface of its original, for the same inputs have to run through both.

    Raises:
        VerificationError: The caches are narrower, and no record says which heads they kept.
    """
    known = None if record is None else load_record(record)
    if known is not None and known.recipe.get("interface") == "narrow":
        free_caches(before)
        without = without_blocks(before, known.blocks).model if known.blocks else None
        widen_caches(after, before, known.kept, without)
        return
    for a, b in zip(before.graph.inputs, after.graph.inputs, strict=False):
        pairs = zip(a.shape or (), b.shape or (), strict=False)
        if a.name == b.name and any(isinstance(m, int) and isinstance(n, int) and m != n for m, n in pairs):
            raise VerificationError(
                f"input '{a.name}' has other extents than in the original: where its caches were narrowed "
                "(--resize-io), give --record, which says what they kept"
            )


def _ensure_tiles(plain: ir.Model, record: Record, pruned: Path) -> None:
    """Check that weights are zero wherever no recorded tile reads them.

    Raises:
        DataError: The record has tiles of a weight that the model does not have.
        VerificationError: A weight is not zero there.
    """
    quantised = record.recipe.get("quantize", "no") != "no"
    for name, mask in ({} if quantised else recorded_masks(plain, record.tiles)).items():
        tensor = plain.graph.initializers[name].const_value
        if tensor is not None and np.any(tensor.numpy()[~mask] != 0):
            raise VerificationError(f"'{pruned}' has weights of '{name}' that no tile of the record reads")


def _twin(
    before: ir.Model, after: ir.Model, record: Path | None
) -> tuple[RecordedCut | None, Mapping[str, str], ir.Model | None]:
    """What was kept, which constants are copies, and the masked twin; no twin where nothing tells what was cut.

    Raises:
        DataError: The record does not fit the model.
    """
    if record is None:
        blocks, kept = recovered(before, after)
        return kept, {}, None if kept is None else masked_twin_of(before, kept, blocks)
    known = load_record(record)
    return known.kept, known.renamed, masked_twin_of(before, known.kept, known.blocks)


def _same_interface(before: ir.Model, after: ir.Model) -> None:
    for what, a, b in (
        ("inputs", before.graph.inputs, after.graph.inputs),
        ("outputs", before.graph.outputs, after.graph.outputs),
    ):
        ours, theirs = [(v.name, v.dtype) for v in a], [(v.name, v.dtype) for v in b]
        if ours != theirs:
            names = [[str(name) for name, _ in side] for side in (ours, theirs)]
            if names[0] == names[1]:  # then it is their types
                names = [
                    [f"{name} ({'unknown' if t is None else t.name})" for name, t in side] for side in (ours, theirs)
                ]
            raise VerificationError(f"the {what} differ: {names[0]} in the original, {names[1]} in the pruned model")


def _same_files(record: Record, original: Path, pruned: Path) -> None:
    for path, known in ((original, record.source.sha256), (pruned, record.output.sha256)):
        if known is not None and model_io.sha256(path) != known:
            raise DataError(f"the record is of another file than '{path}': their hashes differ")


def _ensure_order(constants: Sequence[Constant], pruned: Path) -> None:
    """Check that no constant holds the numbers of the original in another order, which nothing of ours ever does.

    Raises:
        VerificationError: One does.
    """
    moved = [constant.label for constant in constants if constant.state == "reordered"]
    if moved:
        raise VerificationError(
            f"'{pruned}' holds numbers of the original in another order, which no pruning does: {moved[0]}"
            + (f" and {len(moved) - 1} more constants" if len(moved) > 1 else "")
        )


def _change_of_outputs(before: ir.Model, after: ir.Model, seed: int) -> float:
    """How far the pruned model is from the original.

    Raises:
        VerificationError: It does not run, or its outputs do not depend on the input though those of the original do.
    """
    before, after = seeded(before), seeded(after)
    ran = working(before, seed=seed, error=ModelError)
    batches, expected = [feeds for feeds, _ in ran], [outputs for _, outputs in ran]
    actual = outputs_of(after, batches)
    others = [outputs_of(model, [other_inputs(f) for f in batches]) for model in (before, after)]
    if _reacts(expected, others[0]) and not _reacts(actual, others[1]):
        raise VerificationError(
            "the outputs of the pruned model are constant: they do not depend on the input, as those of the original do"
        )
    return worst(changes_of(before, after, batches, expected, actual, seed=seed))


def _proof(
    before: ir.Model, after: ir.Model, twin: ir.Model | None, real: RealNumbers | str | None, seed: int, differs: str
) -> tuple[Proof | None, str]:
    """Prove that the pruned model computes what its masked twin computes; or say why nothing can be proved.

    Raises:
        VerificationError: It computes something else.
    """
    if isinstance(real, str):
        return None, f"the file is quantised, and rounded numbers are those of no masked twin; {real}. {_FLOAT}"
    if twin is None:
        return None, _NO_TWIN
    if real is not None and not cut_off(twin, real.ranges):
        return None, f"the file is quantised, and values that it rounds have other names in the original. {_FLOAT}"
    try:
        return prove(before, twin, after if real is None else real.model, seed=seed), ""
    except Differs as error:
        raise VerificationError(f"{differs} by {error.difference:.2g} of the largest output") from None


def _reacts(outputs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any output differs for other inputs."""
    pairs = zip(outputs, others, strict=True)
    return any(runtime.relative_difference(a[name], b[name]) > 0 for a, b in pairs for name in a)
