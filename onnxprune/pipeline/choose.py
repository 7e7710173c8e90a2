"""What goes: a method of pruning, composed. The one place where structure, criterion and allocation meet.

A method is structure x criterion x allocation x schedule x fine-tuning x recovery, each found by its name:

    structure     what shape goes                   recipe/granularity.py; a chooser below for each
    criterion     what matters least                scoring/
    allocation    how layers compete                selection/allocation.py, selection/unit_allocation.py
    schedule      how much goes at each step        recipe/schedules.py, used by loop.py
    fine-tuning   training between the steps        training/, used by trainer.py
    recovery      bringing outputs back without it  recovery/, used by step.py

A chooser decides on the model as it is at one step; the criterion sees that model's own statistics and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.errors import NothingToPrune, OnnxPruneError, RecipeError
from onnxprune.graph.size import holders_of_numbers
from onnxprune.recipe.granularity import NM, Block, Depth, Shape, Units, Weights
from onnxprune.recipe.recipe import Recipe
from onnxprune.scoring import Criterion, find_criterion, prunable_weights
from onnxprune.scoring.depth import score_blocks
from onnxprune.scoring.evidence import Evidence
from onnxprune.scoring.remembered import Memory, remembered
from onnxprune.scoring.threshold import threshold_masks
from onnxprune.scoring.units import score_units
from onnxprune.selection import UnitBudget, select_weights
from onnxprune.selection.allocation import Look, allocation_of, masks_of_shares
from onnxprune.selection.depth import select_blocks
from onnxprune.selection.eligible import eligible_blocks, eligible_groups, eligible_weights, protected_weights
from onnxprune.selection.patterns import PatternMasks, pattern_masks
from onnxprune.selection.sensitivity import Sensitivity
from onnxprune.selection.unit_allocation import UNIT_ALLOCATIONS, UnitLook
from onnxprune.selection.weights import relative_to_layers
from onnxprune.structure.blocks import ResidualBlock
from onnxprune.structure.costs import CostName
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight, total_size


@dataclass(frozen=True)
class Plan:
    """What goes, decided on a normalised model and not yet done.

    Attributes:
        structure: The analysis of the model.
        removed: Flags by atom id of the units to remove (none where weights become zero).
        masks: Which weights stay, by constant (none where units go).
        prunable: Parameters that could go.
        gone: Parameters that go.
        untouched: Weights, or groups of units, that the pattern or the criterion does not fit, with the reason.
        sensitivity: What a scan found, where the allocation made one.
        blocks: The residual blocks to remove.
    """

    structure: Structure
    removed: Bools
    masks: Mapping[ir.Value, Bools]
    prunable: int
    gone: int
    untouched: Mapping[str, str] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    blocks: tuple[ResidualBlock, ...] = ()

    @property
    def sparsity(self) -> float:
        """The share of prunable parameters that go."""
        return self.gone / self.prunable if self.prunable else 0.0


def choose(
    structure: Structure, recipe: Recipe, calibration: Calibration | None = None, *, again: bool = False,
    memory: Memory | None = None,
) -> Plan:  # fmt: skip
    """Decide what goes in one step.

    Args:
        structure: The analysis of the model as it is.
        recipe: How much goes, and by what; its structure is no mix.
        calibration: Samples, where some were given.
        again: The model was pruned before: weights that are zero go first.
        memory: What was found of this very model under this criterion, for another sparsity.

    Raises:
        NothingToPrune: There is nothing to decide on.
        DataError: The criterion or the allocation needs data that are not there.
    """
    weights = eligible_weights(structure, recipe)
    if not weights:
        raise NothingToPrune(_nothing(structure, recipe))
    memory = memory or Memory()
    task = Task(structure, recipe, calibration, weights, _criterion(structure, recipe, calibration, memory), memory)
    if recipe.parts.zeros is not None:
        task = _able(replace(task, criterion=_of_survivors(task.criterion)) if again else task)
    return _chooser_of(recipe.parts.shape)(task)


def prunable_size(structure: Structure, recipe: Recipe) -> int:
    """Return how many parameters could go, of which a sparsity is a share.

    Raises:
        NothingToPrune: None.
    """
    weights = eligible_weights(structure, recipe)
    if not recipe.parts.units or recipe.parts.mixed:
        size = total_size([*weights, *protected_weights(structure, recipe)]) if weights else 0
    else:
        groups = eligible_groups(structure, weights, recipe)
        size = Ledger(structure, prunable_weights(structure), groups, recipe.floor).prunable
    if not size:
        raise NothingToPrune(_nothing(structure, recipe))
    return size


@dataclass(frozen=True, eq=False)
class Task:
    """What a chooser decides on.

    Attributes:
        structure: The analysis of the model as it is.
        recipe: How much goes, and by what.
        calibration: Samples, where some were given.
        weights: The weights that may go.
        criterion: What goes first, with the data it looks at.
        memory: What was found of this very model, for when it is asked for again.
        unable: Why other weights may not go, by name.
    """

    structure: Structure
    recipe: Recipe
    calibration: Calibration | None
    weights: list[Weight]
    criterion: Criterion
    memory: Memory
    unable: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of `weights` that becomes zero: larger where small first and last layers stay, which count."""
        counted = total_size([*self.weights, *protected_weights(self.structure, self.recipe)])
        return min(1.0, self.recipe.sparsity * counted / total_size(self.weights))

    @property
    def prunable(self) -> int:
        """The parameters that count."""
        return prunable_size(self.structure, self.recipe)

    def look(self) -> Look:
        """What an allocation of single weights may look at."""
        inputs = None if self.calibration is None else self.calibration.inputs
        return Look(self.criterion, inputs, self.recipe.seed, self.memory)

    def plan(
        self,
        masks: Mapping[ir.Value, Bools],
        sensitivity: Sensitivity | None = None,
        misfits: Mapping[str, str] = MappingProxyType({}),
    ) -> Plan:
        """The plan that these masks make."""
        gone = sum(int(np.count_nonzero(~m)) for m in masks.values())
        none = np.zeros(self.structure.terms.count, bool)
        return Plan(self.structure, none, masks, self.prunable, gone, {**self.unable, **misfits}, sensitivity)


Chooser = Callable[[Task], Plan]
_CHOOSERS: dict[type[Shape], Chooser] = {}


def chooser(shape: type[Shape]) -> Callable[[Chooser], Chooser]:
    """Register how what goes is chosen, for a shape of recipe/granularity.py."""

    def register(function: Chooser) -> Chooser:
        _CHOOSERS[shape] = function
        return function

    return register


def _chooser_of(shape: Shape) -> Chooser:
    if type(shape) not in _CHOOSERS:
        raise OnnxPruneError(f"nothing chooses what goes of --structure {shape}: its package registers no chooser")
    return _CHOOSERS[type(shape)]


@chooser(Weights)
def _single_weights(task: Task) -> Plan:
    """Single weights, by share; or by Han's threshold, where the recipe has a quality."""
    recipe = task.recipe
    if recipe.quality is not None:
        return task.plan(_below_threshold(task.weights, recipe.quality))
    look = task.look()
    shares = allocation_of(recipe.allocation, task.criterion)(task.weights, task.share, look)
    if shares is None:
        masks = select_weights(task.weights, relative_to_layers(task.criterion), task.share, seed=recipe.seed)
    else:
        masks = masks_of_shares(task.weights, task.criterion, shares, seed=recipe.seed)
    return task.plan(masks, look.table)


def _below_threshold(weights: Sequence[Weight], quality: float) -> Mapping[ir.Value, Bools]:
    masks: dict[ir.Value, Bools] = {}
    for weight in weights:
        numbers = weight.numbers()
        masks[weight.value] = threshold_masks({"": numbers}, quality, {"": numbers != 0})[""]
    return masks


@chooser(NM)
def _n_of_m(task: Task) -> Plan:
    """N:M, of every layer that it fits."""
    pattern = task.recipe.parts.zeros
    assert isinstance(pattern, NM)
    found = pattern_masks(task.weights, task.criterion, pattern, pattern.sparsity, seed=task.recipe.seed)
    return _of_pattern(task, found)


@chooser(Block)
def _blocks(task: Task) -> Plan:
    """Blocks, by share."""
    pattern = task.recipe.parts.zeros
    assert isinstance(pattern, Block)
    look = task.look()
    shares = allocation_of(task.recipe.allocation, task.criterion)(task.weights, task.share, look)
    criterion = relative_to_layers(task.criterion)
    found = pattern_masks(task.weights, criterion, pattern, task.share, shares=shares, seed=task.recipe.seed)
    return _of_pattern(task, found, look.table)


def _of_pattern(task: Task, found: PatternMasks, table: Sensitivity | None = None) -> Plan:
    ends = protected_weights(task.structure, task.recipe)
    small = {w.name: "it is a small first or last layer (--ends prune takes it too)" for w in ends}
    if not found.masks:
        why = "; ".join(f"{name}: {reason}" for name, reason in {**small, **found.dense}.items())
        raise NothingToPrune(f"--structure {task.recipe.structure} fits no layer ({why})")
    return task.plan(found.masks, table, {**small, **found.dense})


_COSTS: Mapping[str, CostName] = {
    "target_latency": "latency", "target_macs": "macs", "target_size": "parameters",
}  # fmt: skip
"""What units should save where a target is looked for."""


@chooser(Units)
def _units(task: Task) -> Plan:
    """Whole units."""
    structure, recipe = task.structure, task.recipe
    groups = eligible_groups(structure, task.weights, recipe)
    if not groups:
        raise NothingToPrune(_nothing(structure, recipe))
    found = score_units(structure, task.weights, groups, task.criterion, recipe.seed)
    scores, groups = found.values, [g for g in groups if g not in found.unscored]
    if not groups:
        group, reason = next(iter(found.unscored.items()))
        raise RecipeError(f"--criterion {recipe.criterion} can score no units, as those of {group.name}: {reason}")
    counted = prunable_weights(structure)
    inputs = None if task.calibration is None else task.calibration.inputs
    cost = _COSTS.get(recipe.target or "", "balanced")
    look = UnitLook(structure, counted, groups, scores, inputs, cost, task.memory)
    budget = UnitBudget(recipe.sparsity, recipe.round_to, recipe.floor)
    chosen = UNIT_ALLOCATIONS.find(_allocation(recipe, "cost"))(look, budget)
    whole = {f"{group.name} ({group.kind})": reason for group, reason in found.unscored.items()}
    return Plan(structure, chosen.removed, {}, chosen.prunable, chosen.gone, whole, look.table)


@chooser(Depth)
def _depth(task: Task) -> Plan:
    """Whole residual blocks."""
    structure, recipe = task.structure, task.recipe
    blocks = eligible_blocks(structure, task.weights, recipe)
    if not blocks:
        raise NothingToPrune(
            "there is nothing to prune by depth: no Add has a side with prunable weights that nothing else reads"
        )
    task = task if task.criterion.weights is None else _able(task)
    scores = score_blocks(structure, blocks, task.weights, task.criterion, recipe.seed)
    chosen, gone = select_blocks(blocks, scores, eligible_weights(structure, recipe), recipe.sparsity)
    none = np.zeros(structure.terms.count, bool)
    return Plan(structure, none, {}, task.prunable, gone, task.unable, blocks=tuple(chosen))


def _allocation(recipe: Recipe, usual: str) -> str:
    return usual if recipe.allocation == "auto" else recipe.allocation


def _criterion(structure: Structure, recipe: Recipe, calibration: Calibration | None, memory: Memory) -> Criterion:
    """The criterion with what it may look at of this model.

    Raises:
        DataError: It needs data or labels that are not there.
    """
    samples = Calibration({}) if calibration is None else calibration
    return remembered(find_criterion(recipe.criterion).on(Evidence.of(structure, samples, recipe.seed)), memory)


def _able(task: Task) -> Task:
    """The task without the weights that the criterion has no saliency for.

    Raises:
        RecipeError: It has none for any.
    """
    unable = {w.name: reason for w in task.weights if (reason := task.criterion.obstacle(w))}
    able = [w for w in task.weights if w.name not in unable]
    if not able:
        name, reason = next(iter(unable.items()))
        raise RecipeError(f"--criterion {task.criterion.name} can score no weight, as '{name}': {reason}")
    return replace(task, weights=able, unable=unable)


def _of_survivors(criterion: Criterion) -> Criterion:
    """The criterion for a model that was pruned before: a weight that is zero matters less than any other."""
    saliency = criterion.weights
    if saliency is None:
        return criterion
    tiny = np.float32(np.finfo(np.float32).tiny)
    return replace(
        criterion, weights=lambda weight, at: np.where(weight.numbers() != 0, np.maximum(saliency(weight, at), tiny), 0)
    )


def _nothing(structure: Structure, recipe: Recipe) -> str:
    if not structure.weights:
        names = {*structure.unruled, *holders_of_numbers(structure.model)}
        why = f"the numbers of {', '.join(sorted(names))} are not pruned" if names else "no operator has weights"
        return f"there is nothing to prune: no Conv, Gemm, MatMul or recurrent weights were found ({why})"
    if recipe.parts.units and not any(not g.inexact for g in structure.groups):
        return "there is nothing to prune: no unit can be removed exactly; onnxprune inspect tells why"
    return "there is nothing to prune: the patterns and kinds given leave no weights"
