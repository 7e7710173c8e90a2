"""From a model and a recipe to what goes: analyse, score, select, and do it. Nothing here trains or verifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import NothingToPrune
from onnxprune.passes import MaskUnits, MaskWeights, Normalise, RemoveDeadUnits, RemoveUnits, Tidy
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.recipe import Recipe
from onnxprune.record import renamed_copies
from onnxprune.scoring import Criterion, find_criterion, prunable_weights, unit_scores
from onnxprune.scoring.threshold import threshold_masks
from onnxprune.scoring.weights import Weight, total_size
from onnxprune.selection import UnitBudget, select_units, select_weights
from onnxprune.selection.eligible import eligible_groups, eligible_weights, protected_size
from onnxprune.structure.analysis import analyse
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


@dataclass(frozen=True)
class Plan:
    """What goes, decided on a normalised model and not yet done.

    Attributes:
        structure: The analysis of the model.
        removed: Flags by atom id of the units to remove (none where single weights are zeroed).
        masks: Which single weights stay, by constant.
        prunable: Parameters that could go.
        gone: Parameters that go.
    """

    structure: Structure
    removed: Bools
    masks: Mapping[ir.Value, Bools]
    prunable: int
    gone: int

    @property
    def sparsity(self) -> float:
        """The share of prunable parameters that go."""
        return self.gone / self.prunable if self.prunable else 0.0


def prepare(model: ir.Model) -> Structure:
    """Normalise a model in place and analyse it; shapes that onnx cannot infer are measured in ONNX Runtime."""
    Normalise()(model)
    return analyse(model, runtime.known_facts(model))


def make_plan(structure: Structure, recipe: Recipe, *, again: bool = False) -> Plan:
    """Decide what goes.

    Args:
        structure: The analysis of the model.
        recipe: How much goes, and by what.
        again: The model was pruned before: weights that are zero go first.

    Raises:
        NothingToPrune: There is nothing to decide on.
    """
    criterion = find_criterion(recipe.criterion)
    weights = eligible_weights(structure, recipe)
    if recipe.structure == "weights":
        if not weights:
            raise NothingToPrune(_nothing(structure, recipe))
        masks = _masks(structure, weights, recipe, _of_survivors(criterion) if again else criterion)
        gone = sum(int(np.count_nonzero(~m)) for m in masks.values())
        prunable = total_size(weights) + protected_size(structure, recipe)
        return Plan(structure, np.zeros(structure.terms.count, bool), masks, prunable, gone)
    groups = eligible_groups(structure, weights, recipe)
    if not groups:
        raise NothingToPrune(_nothing(structure, recipe))
    scores = unit_scores(structure, weights, groups, criterion, recipe.seed)
    budget = UnitBudget(recipe.sparsity, recipe.scope, recipe.round_to, recipe.floor)
    chosen = select_units(structure, prunable_weights(structure), groups, scores, budget)
    return Plan(structure, chosen.removed, {}, chosen.prunable, chosen.gone)


def _masks(
    structure: Structure, weights: Sequence[Weight], recipe: Recipe, criterion: Criterion
) -> Mapping[ir.Value, Bools]:
    """Which single weights stay: by share, or by Han's threshold."""
    if recipe.quality is None:
        prunable = total_size(weights) + protected_size(structure, recipe)
        share = min(1.0, recipe.sparsity * prunable / total_size(weights))
        return select_weights(weights, criterion, share, scope=recipe.scope, seed=recipe.seed)
    masks: dict[ir.Value, Bools] = {}
    for weight in weights:
        numbers = weight.numbers()
        masks[weight.value] = threshold_masks({"": numbers}, recipe.quality, {"": numbers != 0})[""]
    return masks


def _of_survivors(criterion: Criterion) -> Criterion:
    """The criterion for a model that was pruned before: a weight that is zero matters less than any other."""
    saliency = criterion.weights
    if saliency is None:
        return criterion
    tiny = np.float32(np.finfo(np.float32).tiny)
    return replace(
        criterion, weights=lambda weight, at: np.where(weight.numbers() != 0, np.maximum(saliency(weight, at), tiny), 0)
    )


def masked_twin(original: ir.Model, removed: Bools) -> ir.Model:
    """Return a copy of the original with the removed units zeroed. Atom ids are the same in every analysis of it."""
    structure = prepare(original.clone())
    MaskUnits(structure, removed)(structure.model)
    return structure.model


@dataclass(frozen=True)
class Applied:
    """What was done to the plan's model."""

    kept: Kept
    renamed: Mapping[str, str]
    masked: ir.Model | None
    dead: int
    left: Sequence[str]


def apply_plan(plan: Plan, recipe: Recipe) -> Applied:
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
    return Applied(kept, renamed, masked, dead.removed, dead.left)


def shortfall(recipe: Recipe, sparsity: float) -> str:
    """Why the sparsity asked for is not reached, empty where it is."""
    if recipe.quality is not None or abs(sparsity - recipe.sparsity) <= 0.01:
        return ""
    return (
        f"asked for {recipe.sparsity:.1%}, got {sparsity:.1%}: the nearest below that whole units, floors and "
        "rounding allow (--round-to none and --allow-inexact allow more)"
    )


def _nothing(structure: Structure, recipe: Recipe) -> str:
    if not structure.weights:
        listed = ", ".join(sorted(structure.unruled)) or "no operator has weights"
        return f"there is nothing to prune: no Conv, Gemm, MatMul or recurrent weights were found ({listed})"
    if recipe.structure == "channels" and not any(not g.inexact for g in structure.groups):
        return "there is nothing to prune: no unit can be removed exactly; onnxprune inspect tells why"
    return "there is nothing to prune: the patterns and kinds given leave no weights"
