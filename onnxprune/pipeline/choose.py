"""Decide what is removed or zeroed in one step: the one place where granularity, criterion and allocation meet.

A method of pruning is made of six parts, each found by its name:

    granularity   which shape goes as one           recipe/granularity.py; a chooser below for each
    criterion     what matters least                scoring/
    allocation    how layers compete                selection/allocation.py, selection/unit_allocation.py
    schedule      how much goes at each step        recipe/schedules.py, used by loop.py
    training      training after each step          training/, used by trainer.py
    recovery      bringing outputs back without it  recovery/, used by step.py

A chooser decides on the model as it is at one step: the criterion sees the statistics and gradients of that model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.errors import NothingToPrune, OnnxPruneError, RecipeError
from onnxprune.graph.narrowing import free_caches
from onnxprune.pipeline.plan import Plan
from onnxprune.pipeline.prunable import why_nothing
from onnxprune.pipeline.task import Task, allocations_of, cost_of, takes_of_cost, task_of
from onnxprune.recipe.granularity import NM, Block, Depth, Layers, Shape, Tiles, Units, Weights
from onnxprune.recipe.recipe import Recipe
from onnxprune.scoring import Criterion, find_criterion, prunable_weights
from onnxprune.scoring.cache import ScoreCache
from onnxprune.scoring.depth import score_blocks
from onnxprune.scoring.threshold import threshold_masks
from onnxprune.scoring.units import UnitScores, score_units
from onnxprune.selection import UnitBudget, select_weights
from onnxprune.selection.allocation import masks_of_shares
from onnxprune.selection.depth import select_blocks, select_layers
from onnxprune.selection.eligible import eligible_blocks, eligible_groups, eligible_weights, misfits, protected_weights
from onnxprune.selection.patterns import PatternMasks, pattern_masks
from onnxprune.selection.sensitivity import Sensitivity
from onnxprune.selection.tiles import tile_masks
from onnxprune.selection.unit_allocation import UnitContext
from onnxprune.selection.weights import relative_to_layers
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.blocks import layers_of
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import Weight

__all__ = ["Plan", "Task", "choose", "chooser", "scored_groups"]


def choose(
    structure: Structure, recipe: Recipe, calibration: Calibration | None = None, *, most: float = 0.0,
    again: bool = False, cache: ScoreCache | None = None, progress: Callable[[str], None] | None = None,
) -> Plan:  # fmt: skip
    """Decide what goes in one step.

    Args:
        structure: The analysis of the model as it is.
        recipe: How much goes, and by what; its structure is no mix.
        calibration: Samples, where some were given.
        most: The share that may be gone after this step, where units that do not fit its own share go with it.
        again: The model was pruned before: weights that are zero go first.
        cache: Scores of this very model under this criterion, from a run with another sparsity.
        progress: Called with a line while the calibration samples go through the model.

    Raises:
        NothingToPrune: There is nothing to decide on.
        DataError: The criterion or the allocation needs data that are not there.
    """
    task = task_of(structure, recipe, calibration, cache=cache, progress=progress)
    task = replace(task, most=most)
    if recipe.parts.zeros is not None:
        task = (replace(task, criterion=_of_survivors(task.criterion)) if again else task).without_unscored()
    return _chooser_of(recipe.parts.shape)(task)


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
    context = task.context()
    shares = task.allocation(task.weights, task.share, context)
    if shares is None:
        masks = select_weights(task.weights, relative_to_layers(task.criterion), task.share, seed=recipe.seed)
    else:
        masks = masks_of_shares(task.weights, task.criterion, shares, seed=recipe.seed)
    return task.plan(masks, context.table)


def _below_threshold(weights: Sequence[Weight], quality: float) -> Mapping[ir.Value, Bools]:
    def mask(numbers: npt.NDArray[np.float32]) -> Bools:
        return threshold_masks({"": numbers}, quality, {"": numbers != 0})[""]

    return BitMasks((weight.value, mask(weight.numbers())) for weight in weights)


@chooser(NM)
def _n_of_m(task: Task) -> Plan:
    """N:M, of every layer that it fits."""
    pattern = task.recipe.parts.zeros
    assert isinstance(pattern, NM)
    masks = pattern_masks(task.weights, task.criterion, pattern, pattern.sparsity, seed=task.recipe.seed)
    return _of_pattern(task, masks)


@chooser(Block)
def _blocks(task: Task) -> Plan:
    """Blocks, by share."""
    pattern = task.recipe.parts.zeros
    assert isinstance(pattern, Block)
    context = task.context()
    shares = task.allocation(task.weights, task.share, context)
    criterion = relative_to_layers(task.criterion)
    masks = pattern_masks(task.weights, criterion, pattern, task.share, shares=shares, seed=task.recipe.seed)
    return _of_pattern(task, masks, context.table)


@chooser(Tiles)
def _tiles(task: Task) -> Plan:
    """Tiles, by share; layers that cannot be divided are told."""
    recipe, context = task.recipe, task.context()
    assert isinstance(recipe.parts.zeros, Tiles)
    shares, criterion = task.allocation(task.weights, task.share, context), relative_to_layers(task.criterion)
    masks = tile_masks(
        task.weights, criterion, recipe.parts.zeros, task.share, shares=shares, seed=recipe.seed,
        round_to=recipe.round_to,
    )  # fmt: skip
    return _of_pattern(task, PatternMasks(masks, misfits(task.structure, recipe)), context.table)


def _of_pattern(task: Task, pattern: PatternMasks, table: Sensitivity | None = None) -> Plan:
    """The plan that the masks of a pattern make.

    Raises:
        NothingToPrune: The pattern fits no layer.
    """
    ends = protected_weights(task.structure, task.recipe)
    small = {w.name: "it is a small first or last layer (--ends prune takes it too)" for w in ends}
    if not pattern.masks:
        why = "; ".join(f"{name}: {reason}" for name, reason in {**small, **pattern.dense}.items())
        raise NothingToPrune(f"--structure {task.recipe.structure} fits no layer ({why})")
    return task.plan(pattern.masks, table, {**small, **pattern.dense})


@chooser(Units)
def _units(task: Task) -> Plan:
    """Whole units."""
    structure, recipe = task.structure, task.recipe
    groups, scored = scored_groups(task)
    counted = prunable_weights(structure)
    inputs = None if task.calibration is None else task.calibration.inputs
    cost = cost_of(recipe)
    evidence = task.criterion.evidence
    context = UnitContext(
        structure, counted, groups, scored.values, inputs, cost, task.cache, evidence=evidence, effort=recipe.effort
    )
    budget = UnitBudget(recipe.sparsity, recipe.round_to, recipe.floor, task.most, takes_of_cost(recipe))
    allocation, _ = allocations_of(recipe)
    assert allocation is not None
    chosen = allocation(context, budget)
    untouched = {f"{group.name} ({group.kind})": reason for group, reason in scored.unscored.items()}
    return Plan(structure, chosen.removed, BitMasks(()), chosen.prunable, chosen.gone, untouched, context.table)


def scored_groups(task: Task) -> tuple[list[Group], UnitScores]:
    """Return the groups whose units may go and can be scored, and the scores.

    Raises:
        NothingToPrune: There are no such groups.
        RecipeError: The criterion can score none.
    """
    structure, recipe = task.structure, task.recipe
    groups = eligible_groups(structure, task.weights, recipe)
    if not groups:
        raise NothingToPrune(why_nothing(structure, recipe))
    scored = score_units(structure, task.weights, groups, task.criterion, recipe.seed)
    known = task.criterion.evidence
    if task.auto and scored.unscored and known is not None:  # nothing is known of what they put out: by their weights
        read = {value.name for value in known.structure.weights}  # the others are of a branch that no sample takes
        rest = [g for g in scored.unscored if any(site.value.name in read for site in g.sites)]
        by_weights = score_units(structure, task.weights, rest, find_criterion("magnitude"), recipe.seed)
        scored = scored.or_else(by_weights, rest)
    able = [g for g in groups if g not in scored.unscored]
    if not able:
        group, reason = next(iter(scored.unscored.items()))
        raise RecipeError(f"--criterion {recipe.criterion} can score no units, as those of {group.name}: {reason}")
    return able, scored


@chooser(Layers)
@chooser(Depth)
def _depth(task: Task) -> Plan:
    """Whole residual blocks."""
    structure, recipe = task.structure, task.recipe
    blocks = eligible_blocks(structure, task.weights, recipe)
    if not blocks:
        why = "no Add has a side with prunable weights that nothing else reads"
        if any(node.op_type == "If" for node in structure.model.graph):
            why += "; in the branches of an If, none that both have"
        raise NothingToPrune(f"there is nothing to prune by depth: {why}")
    if isinstance(recipe.parts.removed, Layers) and not layers_of(blocks):
        why = "no residual block holds an attention"
        if recipe.interface != "narrow" and free_caches(structure.model.clone()):
            why = "attentions write their caches to outputs; with --resize-io layers go with their caches"
        raise NothingToPrune(f"there is nothing to prune in layers: {why}")
    task = task if task.criterion.weights is None else task.without_unscored()
    scores = score_blocks(structure, blocks, task.weights, task.criterion, recipe.seed)
    weights = eligible_weights(structure, recipe)
    if isinstance(recipe.parts.removed, Layers):
        chosen, gone = select_layers(blocks, scores, weights, recipe.sparsity, task.most)
    else:
        chosen, gone = select_blocks(blocks, scores, weights, recipe.sparsity, task.most)
    none = np.zeros(structure.terms.count, bool)
    return Plan(structure, none, BitMasks(()), task.prunable, gone, task.unscored, blocks=tuple(chosen))


def _of_survivors(criterion: Criterion) -> Criterion:
    """The criterion for a model that was pruned before: a weight that is zero matters less than any other."""
    saliency = criterion.weights
    if saliency is None:
        return criterion
    tiny = np.float32(np.finfo(np.float32).tiny)
    return replace(
        criterion, weights=lambda weight, at: np.where(weight.numbers() != 0, np.maximum(saliency(weight, at), tiny), 0)
    )
