"""One step of ``--structure joint``: what goes of units, tiles and whole residual blocks, divided among them first.

    division = divided(structure, recipe, calibration, 0.4, cache)
    plans = (planned(part, ...) for part in JOINT_PARTS)        each on the model that the part before it left

What the options lose is measured on the calibration samples (selection/joint_effects.py) and what they save is the
cost of the target, so that the walk of selection/joint.py can compare them. Blocks go first, then units, then tiles:
each part is scored again on the model that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.errors import NothingToPrune
from onnxprune.pipeline.choose import scored_groups
from onnxprune.pipeline.plan import Plan
from onnxprune.pipeline.task import Task, cost_of, takes_of_cost, task_of
from onnxprune.recipe.granularity import Tiles
from onnxprune.recipe.recipe import Recipe
from onnxprune.runtime.stream.effects import Effects
from onnxprune.scoring.cache import ScoreCache
from onnxprune.scoring.evidence import Evidence
from onnxprune.selection import UnitBudget
from onnxprune.selection.eligible import eligible_blocks, eligible_weights, protected_weights
from onnxprune.selection.joint import Division, Offers, TileOffer, divide, group_keys
from onnxprune.selection.joint_effects import TileMeasure, block_effects
from onnxprune.selection.measured import Measured, effect_samples, measure_effects
from onnxprune.selection.tiles import tile_masks
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.costs import find_cost
from onnxprune.structure.groups import Group
from onnxprune.structure.ledger import Ledger
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Joint:
    """What all parts of a step know.

    Attributes:
        recipe: The recipe of the run, with the sparsity of this step.
        calibration: Samples that effects are measured on.
        cache: What was found of this very model before.
        tell: Called with a line for what is measured next.
    """

    recipe: Recipe
    calibration: Calibration
    cache: ScoreCache
    tell: Tell | None = None

    def of_part(self, part: str) -> Recipe:
        """The recipe of one part."""
        return self.recipe.model_copy(update={"structure": part})

    def task(self, structure: Structure, part: str) -> Task | None:
        """What a part decides on; None where the model has nothing for it."""
        try:
            return task_of(structure, self.of_part(part), self.calibration, cache=self.cache, progress=self.tell)
        except NothingToPrune:
            return None

    def divided(self, structure: Structure, most: float) -> Division:
        """Say what goes of each granularity.

        Args:
            structure: The analysis of the model as it is.
            most: The share that a single step may bring what is gone to, where that is more than the recipe's.

        Raises:
            NothingToPrune: There is nothing on offer.
        """
        offers = self._offers(structure)
        if not (offers.groups or offers.tiles or offers.blocks):
            raise NothingToPrune("there is nothing to prune: no units, tiles or residual blocks were found")
        recipe = self.recipe
        budget = UnitBudget(recipe.sparsity, recipe.round_to, recipe.floor, most, takes_of_cost(recipe))
        return divide(structure, counted(structure, recipe), offers, budget, find_cost(cost_of(recipe), structure))

    def _offers(self, structure: Structure) -> Offers:
        units = self.task(structure, "channels")
        groups, scores, measured = list[Group](), np.zeros(structure.terms.count), Measured(())
        evidence = Evidence.of(structure, self.calibration, self.recipe.seed, self.tell)
        if units is not None:
            evidence = units.criterion.evidence or evidence
            try:
                groups, scored = scored_groups(units)
            except NothingToPrune:
                groups = []
            else:
                scores = scored.values
                parts = (structure, groups, scores, evidence, self.recipe.effort)
                measured = self.cache.recall("effects", lambda: measure_effects(*parts))
        samples = effect_samples(structure, len(groups), evidence, self.recipe.effort)
        known = eligible_blocks(structure, counted(structure, self.recipe), self.of_part("blocks"))
        power = measured.power
        effects = self.cache.recall("block effects", lambda: block_effects(structure, known, samples, power))
        blocks = list(zip(known, effects, strict=True))
        tiles = self._tiles(structure, evidence, lambda: Effects(structure.model, samples), power)
        return Offers(groups, scores, measured.losses(groups), tiles, blocks)

    def _tiles(
        self, structure: Structure, evidence: Evidence, effects: Callable[[], Effects], power: float
    ) -> list[TileOffer]:
        task = self.task(structure, "tiles")
        if task is None:
            return []
        weights = {weight.name: weight for weight in task.weights if not task.criterion.obstacle(weight)}
        if not weights:
            return []
        measure = self.cache.recall(
            "tile effects",
            lambda: [
                ([w.name for w in offer.weights], offer)
                for offer in TileMeasure(
                    structure, task.criterion, evidence, effects(), power, cost_of(self.recipe), task.recipe
                ).offers(list(weights.values()))
            ],
        )
        return [replace(offer, weights=[weights[name] for name in names]) for names, offer in measure]

    def planned(self, structure: Structure, part: str, division: Division) -> Plan | None:
        """Return the plan of one part, on the model that the parts before it left; None where nothing goes."""
        return _PLANS[part](self, structure, division)

    def _blocks(self, structure: Structure, division: Division) -> Plan | None:
        weights = counted(structure, self.recipe)
        blocks = [b for b in eligible_blocks(structure, weights, self.of_part("blocks")) if b.name in division.blocks]
        sizes = {weight.value: weight.size for weight in weights}
        gone = {value: sizes[value] for block in blocks for value in block.weights if value in sizes}
        outer = [b for b in blocks if not any(b.add in other.nodes for other in blocks)]
        if not outer:
            return None
        return self._plan(structure, sum(gone.values()), blocks=tuple(outer))

    def _units(self, structure: Structure, division: Division) -> Plan | None:
        task = self.task(structure, "channels") if division.units else None
        if task is None:
            return None
        groups, scored = scored_groups(task)
        ledger = Ledger(structure, counted(structure, self.recipe), groups, self.recipe.floor)
        for group, key in zip(groups, group_keys(groups), strict=True):
            left = division.units.get(key, len(group))
            order = group.atoms[np.argsort(scored.values[group.atoms], kind="stable")]
            if left < len(group):
                ledger.remove(order[: len(group) - left], limit=np.inf)
        if not ledger.removed.any():
            return None
        plan = self._plan(structure, int(ledger.gone))
        untouched = {f"{group.name} ({group.kind})": reason for group, reason in scored.unscored.items()}
        return replace(plan, removed=ledger.removed, untouched=untouched)

    def _tiled(self, structure: Structure, division: Division) -> Plan | None:
        task = self.task(structure, "tiles") if division.tiles else None
        weights = [] if task is None else [w for w in task.weights if w.name in division.tiles]
        if task is None or not weights:
            return None
        shares = {weight.value: division.tiles[weight.name] for weight in weights}
        masks = tile_masks(
            weights, task.criterion, Tiles(), 0.0, shares=shares, seed=self.recipe.seed, round_to=self.recipe.round_to
        )
        gone = sum(mask.size - int(np.count_nonzero(mask)) for mask in masks.values())
        return replace(self._plan(structure, gone), masks=BitMasks(masks.items()))

    def _plan(self, structure: Structure, gone: int, **what: object) -> Plan:
        none, masks = np.zeros(structure.terms.count, bool), BitMasks[ir.Value](())
        prunable = sum(weight.size for weight in counted(structure, self.recipe))
        return replace(Plan(structure, none, masks, prunable, gone), **what)  # type: ignore[arg-type]


_PLANS: Mapping[str, Callable[[Joint, Structure, Division], Plan | None]] = {
    "blocks": Joint._blocks, "channels": Joint._units, "tiles": Joint._tiled,
}  # fmt: skip


def counted(structure: Structure, recipe: Recipe) -> list[Weight]:
    """Return the weights that a sparsity of this recipe is a share of."""
    return [*eligible_weights(structure, recipe), *protected_weights(structure, recipe)]
