"""A Recipe becomes a list of passes and is run. The only place that knows the order.

load -> normalise -> analyse -> score -> select -> remove or mask -> tidy -> verify -> deliver (pack, limits) -> save
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import delivery, limits, model_io, runtime
from onnxprune.errors import NothingToPrune
from onnxprune.passes import MaskUnits, MaskWeights, Normalise, RemoveDeadUnits, RemoveUnits, Tidy
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.recipe import Recipe, make_recipe
from onnxprune.record import FileId, Record, renamed_copies
from onnxprune.scoring import find_criterion, prunable_weights, unit_scores
from onnxprune.scoring.weights import total_size
from onnxprune.selection import UnitBudget, select_units, select_weights
from onnxprune.selection.eligible import eligible_groups, eligible_weights, protected_size
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.verification import Verdict, verify

AnyModel = str | Path | onnx.ModelProto | ir.Model
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What goes, decided on a normalised model and not yet done.

    Attributes:
        structure: The analysis of the model.
        removed: Flags by atom id of the units to remove (none where single weights are zeroed).
        masks: Which single weights stay, by constant.
        prunable: Parameters that could go.
        gone: Parameters that go.
        note: Why the sparsity asked for is not reached, empty where it is.
    """

    structure: Structure
    removed: Bools
    masks: Mapping[ir.Value, Bools]
    prunable: int
    gone: int
    note: str = ""

    @property
    def sparsity(self) -> float:
        """The share of prunable parameters that go."""
        return self.gone / self.prunable if self.prunable else 0.0


@dataclass(frozen=True)
class Result:
    """A pruned model and what is known of it.

    Attributes:
        model: The pruned model.
        recipe: The settings of the run.
        sparsity: The share of prunable parameters that are zero or gone.
        prunable: The number of prunable parameters.
        gone: How many of them are zero or gone.
        kept: The kept indices, by constant and axis, of constants that were cut.
        renamed: Copies of constants that the output has, with the names of their sources.
        verdict: What was measured; None after a dry run.
        dead: How many dead units went beside what was asked for.
        notes: What the user should know: a sparsity that is not reached and why, dead units that had to stay.
        seconds: Time by stage.
        delivery: What was done to the pruned model before it is written: `model` is what came out.
    """

    model: ir.Model
    recipe: Recipe
    sparsity: float
    prunable: int
    gone: int
    kept: Kept
    renamed: Mapping[str, str]
    verdict: Verdict | None
    dead: int = 0
    notes: tuple[str, ...] = ()
    source: FileId = field(default_factory=FileId)
    seconds: Mapping[str, float] = field(default_factory=dict)
    delivery: delivery.Delivery | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """The figures as plain data."""
        own = {
            "sparsity": self.sparsity,
            "prunable_parameters": self.prunable,
            "gone_parameters": self.gone,
            "dead_units": self.dead,
            "notes": list(self.notes),
        }
        measured = {} if self.verdict is None else self.verdict.as_dict()
        return own | measured | ({} if self.delivery is None else self.delivery.as_dict())

    def record(self, output: FileId | None = None) -> Record:
        """Return the record of the run."""
        return Record(
            source=self.source,
            output=output or FileId(),
            recipe=self.recipe.model_dump(mode="json"),
            kept={n: {str(a): i.tolist() for a, i in axes.items()} for n, axes in self.kept.items()},
            renamed=dict(self.renamed),
            figures=self.figures,
        )


def prune(
    model: AnyModel,
    recipe: Recipe | None = None,
    *,
    verification: bool = True,
    latency: bool = True,
    eval_data: str | Path | None = None,
    metric: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Prune a model.

    Args:
        model: A path, an onnx.ModelProto or an onnx_ir.Model. It is never changed.
        recipe: All settings; or give them by keyword: ``prune(model, sparsity=0.9, structure="channels")``.
        verification: Measure the result in ONNX Runtime; without it nothing is known of it.
        latency: Measure the latency ratio as part of the verification.
        eval_data: An .npz of labelled inputs, to measure a metric before and after.
        metric: ``accuracy``, ``top5`` or ``mse``; by default the first that fits the data.
        progress: Called with the name of each stage.
        **settings: Fields of `Recipe`.

    Returns:
        The pruned model with its record and figures.

    Raises:
        ModelError: The model cannot be read.
        RecipeError: A setting is wrong.
        NothingToPrune: No weight of the model may be pruned under this recipe.
        VerificationError: The result is not what was promised.
    """
    recipe = recipe or make_recipe(**settings)
    find_criterion(recipe.criterion)
    limits.ensure_measured(recipe.require, verification=verification, latency=latency, metric=eval_data is not None)
    clock = _Clock(progress)
    original = clock("load", lambda: model_io.load_any(model))
    structure = clock("analyse", lambda: prepare(original.clone()))
    plan = clock("select", lambda: make_plan(structure, recipe))
    pruned = structure.model
    done = clock("prune", lambda: _apply(plan, recipe))
    verdict = None
    if verification:
        masked = clock("mask", lambda: masked_twin(original, plan.removed)) if plan.removed.any() else done.masked
        verdict = clock(
            "verify",
            lambda: verify(
                original, pruned, masked, seed=recipe.seed, latency=latency, eval_data=eval_data, metric=metric
            ),
        )
    result = Result(
        model=pruned,
        recipe=recipe,
        sparsity=plan.sparsity,
        prunable=plan.prunable,
        gone=plan.gone,
        kept=done.kept,
        renamed=done.renamed,
        verdict=verdict,
        dead=done.dead,
        notes=tuple(note for note in (plan.note, *done.left) if note),
        source=_file_id(original),
        seconds=clock.seconds,
    )
    finish = partial(delivery.deliver, original, result, latency=latency, eval_data=eval_data, metric=metric)
    delivered: Result = clock("deliver", finish)
    return delivered


def prepare(model: ir.Model) -> Structure:
    """Normalise a model in place and analyse it; shapes that onnx cannot infer are measured in ONNX Runtime."""
    Normalise()(model)
    return analyse(model, runtime.known_facts(model))


def make_plan(structure: Structure, recipe: Recipe) -> Plan:
    """Decide what goes.

    Raises:
        NothingToPrune: There is nothing to decide on.
    """
    criterion = find_criterion(recipe.criterion)
    weights = eligible_weights(structure, recipe)
    if recipe.structure == "weights":
        if not weights:
            raise NothingToPrune(_nothing(structure, recipe))
        prunable = total_size(weights) + protected_size(structure, recipe)
        share = min(1.0, recipe.sparsity * prunable / total_size(weights))
        masks = select_weights(weights, criterion, share, scope=recipe.scope, seed=recipe.seed)
        gone = sum(int(np.count_nonzero(~m)) for m in masks.values())
        return _with_note(Plan(structure, np.zeros(structure.terms.count, bool), masks, prunable, gone), recipe)
    groups = eligible_groups(structure, weights, recipe)
    if not groups:
        raise NothingToPrune(_nothing(structure, recipe))
    scores = unit_scores(structure, weights, groups, criterion, recipe.seed)
    budget = UnitBudget(recipe.sparsity, recipe.scope, recipe.round_to, recipe.floor)
    chosen = select_units(structure, prunable_weights(structure), groups, scores, budget)
    return _with_note(Plan(structure, chosen.removed, {}, chosen.prunable, chosen.gone), recipe)


def masked_twin(original: ir.Model, removed: Bools) -> ir.Model:
    """Return a copy of the original with the removed units zeroed. Atom ids are the same in every analysis of it."""
    structure = prepare(original.clone())
    MaskUnits(structure, removed)(structure.model)
    return structure.model


def save(result: Result, path: str | Path, *, force: bool = False, record: str | Path | None = None) -> FileId:
    """Write the pruned model, and its record where a path for it is given; each appears whole or not at all.

    Raises:
        ModelError: The output is the input, exists (without ``force``), or cannot be written.
    """
    delivery.write(result, path, force=force)
    output = FileId(file=str(path), sha256=model_io.sha256(path))
    if record is not None:
        result.record(output).save(record)
    return output


@dataclass(frozen=True)
class _Applied:
    """What was done to the plan's model."""

    kept: Kept
    renamed: Mapping[str, str]
    masked: ir.Model | None
    dead: int
    left: Sequence[str]


def _apply(plan: Plan, recipe: Recipe) -> _Applied:
    """Do what was planned to the plan's model; keep a masked twin of what only removal of dead units changed."""
    model = plan.structure.model
    kept: Kept = {}
    if recipe.structure == "channels":
        remove = RemoveUnits(plan.structure, plan.removed)
        remove(model)
        kept = remove.kept
    else:
        MaskWeights(plan.structure, plan.masks)(model)
    renamed = renamed_copies(model)
    masked, dead = None, RemoveDeadUnits()
    if recipe.remove_dead:
        masked = model.clone() if recipe.structure == "weights" else None
        dead(model)
        kept = compose_kept(kept, dead.kept)
    Tidy()(model)
    left_over = renamed_copies(model)
    renamed = {copy: source for copy, source in renamed.items() if copy in kept or copy in left_over}
    return _Applied(kept, renamed, masked, dead.removed, dead.left)


def _with_note(plan: Plan, recipe: Recipe) -> Plan:
    if abs(plan.sparsity - recipe.sparsity) <= 0.01:
        return plan
    note = (
        f"asked for {recipe.sparsity:.1%}, got {plan.sparsity:.1%}: the nearest below that whole units, floors and "
        "rounding allow (--round-to none and --allow-inexact allow more)"
    )
    return Plan(plan.structure, plan.removed, plan.masks, plan.prunable, plan.gone, note)


def _nothing(structure: Structure, recipe: Recipe) -> str:
    if not structure.weights:
        listed = ", ".join(sorted(structure.unruled)) or "no operator has weights"
        return f"there is nothing to prune: no Conv, Gemm, MatMul or recurrent weights were found ({listed})"
    if recipe.structure == "channels" and not any(not g.inexact for g in structure.groups):
        return "there is nothing to prune: no unit can be removed exactly; onnxprune inspect tells why"
    return "there is nothing to prune: the patterns and kinds given leave no weights"


def _file_id(model: ir.Model) -> FileId:
    source = model_io.source_of(model)
    if source is None:
        return FileId()
    return FileId(file=str(source.path), sha256=model_io.sha256(source.path))


class _Clock:
    """Runs stages, notes how long each took, tells who listens."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, stage: Callable[[], Any]) -> Any:
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        result = stage()
        self.seconds[name] = time.perf_counter() - start
        return result
