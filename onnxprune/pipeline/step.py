"""One step of a run: choose, remove or mask, check that removed == masked, recover.

    steps = Steps.of(structure, recipe, ...)
    state = steps.prune(State(model), 0.5, 1)      until half of the original's prunable parameters are gone
    state, _ = steps.clean(state)                  dead units as well

The loop (loop.py) calls a step for each sparsity of the schedule. Statistics are made anew from the model as it is at
each step; recovery always aims at the dense model that the run began with. The check that removed == masked comes
before any weight that stays is changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.data.calibration import Calibration
from onnxprune.graph.operators import operator_of
from onnxprune.model_io.journal import Journal
from onnxprune.passes import MaskUnits
from onnxprune.pipeline.apply import Applied, apply_plan, remove_dead
from onnxprune.pipeline.choose import choose
from onnxprune.pipeline.joint import Joint
from onnxprune.pipeline.plan import Plan
from onnxprune.pipeline.planned import divided_once, planned_once
from onnxprune.pipeline.prepare import masked_twin, prepare, without_contributions
from onnxprune.pipeline.prunable import prunable_size
from onnxprune.pipeline.task import cost_of, takes_of_cost
from onnxprune.pipeline.trace import STARVED, Trace
from onnxprune.recipe.granularity import UNITS, Weights
from onnxprune.recipe.recipe import Recipe
from onnxprune.recovery import recover
from onnxprune.recovery.resumed import Known
from onnxprune.scoring import prunable_weights
from onnxprune.scoring.cache import ScoreCache
from onnxprune.selection.eligible import eligible_weights, protected_weights
from onnxprune.selection.joint import Division
from onnxprune.selection.rounding import RoundTo, conv_block
from onnxprune.structure.bit_masks import BitMasks
from onnxprune.structure.costs import find_cost, total_cost
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import total_size
from onnxprune.verification.proof import Proof, prove
from onnxprune.verification.reach import Reach, reach_of

if TYPE_CHECKING:
    from onnxprune.training.task import TrainResult


@dataclass(frozen=True)
class Iteration:
    """One iteration of pruning and training.

    Attributes:
        iteration: Its number, from 1.
        wanted: The sparsity that it aimed at.
        sparsity: The share of the masked weights that was zero after it.
        trainings: How each of its trainings went.
    """

    iteration: int
    wanted: float
    sparsity: float
    trainings: tuple[TrainResult, ...]


@dataclass(frozen=True)
class State:
    """A model in the middle of a run.

    Attributes:
        model: The model as it is. It is never changed.
        trace: What was done to the original.
        masks: By name, which weights stay of those that the last step masked.
        done: How many steps of the schedule are done.
        structure: An analysis of a copy of the model, where there is one: the next step cuts that copy.
        cache: Scores of this very model that were found before; None where nothing was.
        rewind: By name, the weights that survivors go back to before each training.
        history: The iterations, where training follows each pruning.
        diverged: The sentence for the user where the loss of a training was no longer a number, else "".
    """

    model: ir.Model
    trace: Trace = field(default_factory=Trace)
    masks: Mapping[str, Bools] = field(default_factory=dict)
    done: int = 0
    structure: Structure | None = None
    cache: ScoreCache | None = None
    rewind: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    history: tuple[Iteration, ...] = ()
    diverged: str = ""


Choosing = Callable[[str, Structure, ScoreCache | None], Plan | None]
"""From a part of the structure, the model as it is and what is known of it to what goes; None where nothing does."""


@dataclass(frozen=True)
class Steps:
    """What every step of a run needs. Sparsities are shares of the original, however much is gone already.

    They are shares of the parameters that may go; of the cost of a budget where units are divided by that.

    Attributes:
        recipe: The recipe.
        prunable: How many parameters of the original may go.
        total: How many parameters all its weights have.
        whole: What all of it costs, where units are divided by a budget's cost.
        dense: The original, normalised, which recovery aims at; None where nothing is recovered.
        methods: The methods of recovery, in order.
        calibration: Samples, where some were given.
        verification: Whether removed == masked is checked.
        eval_data: An .npz with inputs, for the check where no random inputs work.
        progress: Called with the name of the layer that is being recovered.
        journal: What the run has found so far, to go on from when it is interrupted.
    """

    recipe: Recipe
    prunable: int
    total: int
    whole: float | None = None
    dense: ir.Model | None = None
    methods: tuple[str, ...] = ()
    calibration: Calibration | None = None
    verification: bool = True
    eval_data: str | Path | None = None
    progress: Callable[[str], None] | None = None
    journal: Journal = field(default_factory=Journal)

    @staticmethod
    def of(structure: Structure, recipe: Recipe, *, methods: tuple[str, ...] = (), **settings: Any) -> Steps:
        """The steps for an original.

        Args:
            structure: The analysis of the original.
            recipe: The recipe.
            methods: The methods of recovery, in order.
            **settings: Other attributes.

        Raises:
            NothingToPrune: No weight may be pruned.
        """
        total = total_size(prunable_weights(structure))
        dense = structure.model.clone() if methods else None
        steps = Steps(recipe, prunable_size(structure, recipe), total, None, dense, methods, **settings)
        return replace(steps, whole=max(_cost(structure, recipe), 1.0) if takes_of_cost(recipe) else None)

    def prune(self, state: State, sparsity: float, number: int) -> State:
        """Prune a copy of the model until `sparsity` of the original is gone.

        Args:
            state: The model, as the steps before left it.
            sparsity: The share of the original's prunable parameters.
            number: The number of the step, from 1.

        Raises:
            NothingToPrune: No weight may be pruned.
            VerificationError: Removed and masked differ.
        """
        model, structure, cache, masks = state.model, state.structure, state.cache, BitMasks[str](())
        trace, scans = replace(state.trace, untouched={}), list[dict[str, Any]]()
        choosing = self._choosing(sparsity, number)
        for part in self.recipe.parts.texts if self.competes or not self.recipe.parts.joint else (UNITS,):
            structure = structure or prepare(model.clone())
            gone_before = self.prunable - self.left(structure)
            plan = choosing(part, structure, cache)
            if plan is None:
                continue
            applied = apply_plan(plan)
            proof, reach = self._proof_of(model, plan, applied)
            trace = trace.after_cut(applied.kept, applied.renamed, proof, reach)
            trace = replace(
                trace,
                gone=gone_before + plan.gone,
                untouched={**trace.untouched, **plan.untouched},
                blocks=(*trace.blocks, *(block.name for block in plan.blocks)),
            )
            masks = plan.masks.renamed(lambda value: str(value.name))
            trace = replace(trace, starved=tuple(n for n, mask in masks.items() if mask.mean() < STARVED))
            scans += plan.sensitivity.rows() if plan.sensitivity is not None else []
            model, structure, cache = structure.model, None, None
        step: dict[str, Any] = {"step": number, "wanted": sparsity, "sparsity": trace.gone / self.prunable}
        step |= {"sensitivity": scans} if scans else {}
        step |= self._recovered(model, trace.kept, number)
        trace = replace(trace, steps=(*trace.steps, step))
        return replace(
            state,
            model=model,
            trace=trace,
            masks=masks if self.dense is None else _masks_now(model, masks),
            structure=None,
            cache=None,
        )

    def _choosing(self, sparsity: float, number: int) -> Choosing:
        """What decides on one part of the structure after the other."""
        if self.competes:
            assert self.calibration is not None
            return self._dividing(self.calibration, sparsity, number)
        again = number > 1 or self.recipe.alternate

        def chosen(part: str, structure: Structure, cache: ScoreCache | None) -> Plan | None:
            now, last = (self._of_part(part, structure, share) for share in (sparsity, self._most(sparsity, number)))
            decide = partial(choose, structure, now, self.calibration, most=last.sparsity, again=again, cache=cache)
            journal = self.journal if self.calibration is not None else Journal()  # without samples it is quick
            key = f"step {number}, {part}: what goes"
            return planned_once(journal, key, structure, partial(decide, progress=self.progress))

        return chosen

    def _dividing(self, calibration: Calibration, sparsity: float, number: int) -> Choosing:
        """The same where units, tiles and residual blocks compete: the first part divides among all."""
        division: Division | None = None

        def chosen(part: str, structure: Structure, cache: ScoreCache | None) -> Plan | None:
            nonlocal division
            joint = Joint(self.recipe, calibration, cache or ScoreCache(), self.progress)
            if division is None:
                now, most = (self._of_rest(structure, s) for s in (sparsity, self._most(sparsity, number)))
                of_step = replace(joint, recipe=self.recipe.model_copy(update={"sparsity": now}))
                key = f"step {number}: division"
                division = divided_once(self.journal, key, structure, lambda: of_step.divided(structure, most))
            decide = partial(joint.planned, structure, part, division)
            return planned_once(self.journal, f"step {number}, {part}: what goes", structure, decide)

        return chosen

    def _most(self, sparsity: float, number: int) -> float:
        """The share that may be gone after a step, where a cut that its units allow is larger than its own share."""
        return sparsity if number >= self.recipe.iterations else max(sparsity, self.recipe.sparsity)

    @property
    def competes(self) -> bool:
        """Whether units, tiles and residual blocks compete: what they lose is measured on calibration samples."""
        return self.recipe.parts.joint and self.calibration is not None

    def chosen(self, state: State, sparsity: float, number: int) -> Mapping[str, Bools]:
        """Which numbers `prune` would leave as they are, by the name of the constant; nothing is removed.

        All weights of a unit that would go count, those of the layers that read it too. For one structure, not a mix.
        """
        structure = prepare(state.model.clone())
        part, again = self.recipe.parts.texts[0], number > 1 or self.recipe.alternate
        now, last = (self._of_part(part, structure, share) for share in (sparsity, self._most(sparsity, number)))
        plan = choose(structure, now, self.calibration, most=last.sparsity, again=again)
        if plan.blocks:
            going = {str(v.name) for block in plan.blocks for v in block.weights}
            return {n: np.zeros(array.shape, bool) for n, array in _numbers(structure.model).items() if n in going}
        if not plan.removed.any():
            return {str(value.name): mask for value, mask in plan.masks.items()}
        twin = _numbers(masked_twin(state.model, plan.removed))
        return {name: (twin[name] != 0) | (array == 0) for name, array in _numbers(structure.model).items()}

    def clean(self, state: State) -> tuple[State, Kept]:
        """Remove the dead units of a copy of the model; also return what is kept of that copy, by constant and axis."""
        model = state.model.clone()
        done = remove_dead(model)
        proof = self._proof(state.model, state.model, model) if done.kept and self.verification else None
        trace = state.trace.after_cut(done.kept, done.renamed, proof)
        trace = replace(trace, dead=trace.dead + done.removed, left=tuple(done.left))
        return replace(state, model=model, trace=trace, structure=None, cache=None), done.kept

    def left(self, structure: Structure) -> int:
        """How many parameters of the model, as pruned so far, may still go (zeros among them)."""
        if self.recipe.parts.zeros is None:
            return self.prunable - (self.total - total_size(prunable_weights(structure)))
        return total_size([*eligible_weights(structure, self.recipe), *protected_weights(structure, self.recipe)])

    def saved(self, structure: Structure) -> float:
        """The share of the original's cost that is saved, where units are divided by a budget's cost."""
        return 0.0 if self.whole is None else 1 - _cost(structure, self.recipe) / self.whole

    def _of_part(self, part: str, structure: Structure, sparsity: float) -> Recipe:
        """The recipe of one part of the structure, with the share of the model as it is that goes in it."""
        recipe = self.recipe.model_copy(update={"structure": part})
        units, left = part in (self.recipe.parts.texts[0], UNITS), self.left(structure)
        if self.recipe.parts.mixed and units:
            recipe = recipe.model_copy(update={"round_to": self._rounding_of_units(structure)})
            sparsity = self._share_of_units(sparsity)
        if self.recipe.parts.mixed and units and self.whole is None:
            goal = sparsity * self.prunable - (self.prunable - left)
            share = min(1.0, max(0.0, goal) / prunable_size(structure, recipe))
        else:
            share = self._of_rest(structure, sparsity, of_cost=units)
        return recipe.model_copy(update={"sparsity": share})

    def _of_rest(self, structure: Structure, sparsity: float, *, of_cost: bool = True) -> float:
        """The share of the model as it is that goes where a share of the original should be gone."""
        if self.whole is not None and of_cost:
            return max(0.0, 1 - (1 - sparsity) / (1 - self.saved(structure)))
        return max(0.0, 1 - self.prunable * (1 - sparsity) / self.left(structure))

    def _share_of_units(self, sparsity: float) -> float:
        """Of a mix: the share of the original that goes with whole units. N:M takes its share of what they leave."""
        by_pattern = self.recipe.parts.sets
        if by_pattern is not None:
            return 1 - (1 - sparsity) / (1 - by_pattern)
        return sparsity if self.recipe.parts.joint else sparsity * self.recipe.unit_share

    def _rounding_of_units(self, structure: Structure) -> RoundTo:
        """Of a mix with N:M: kept counts are multiples of M, so that the pattern fits the layers that are left."""
        zeros = self.recipe.parts.zeros
        if self.recipe.round_to != "auto" or zeros is None or zeros.multiple == 1:
            return self.recipe.round_to
        conv = any(operator_of(node).kind == "conv" for node in structure.weights.values())
        return math.lcm(zeros.multiple, conv_block() if conv else 1)

    def _recovered(self, model: ir.Model, kept: Kept, number: int) -> dict[str, Any]:
        """Recover the model in place; what was done, as plain data."""
        if self.dense is None:
            return {}
        zeros, progress = self.recipe.parts.zeros, self.progress
        done = recover(
            self.dense,
            model,
            kept,
            {} if self.calibration is None else self.calibration.inputs,
            methods=self.methods,
            pattern=None if isinstance(zeros, Weights) else zeros,
            trained=self.recipe.retrain is not None,
            effort=self.recipe.effort,
            seed=self.recipe.seed,
            known=Known(self.journal, f"step {number}"),
            progress=None if progress is None else lambda layer: progress(f"recover {layer}"),
        )
        return {"recovery": asdict(done) | {"methods": list(self.methods)}}

    def _proof_of(self, before: ir.Model, plan: Plan, applied: Applied) -> tuple[Proof | None, Reach | None]:
        """Compare the model without units or blocks with the one before with these zeroed; None where nobody asks."""
        if not self.verification or not (plan.blocks or applied.kept):
            return None, None
        if plan.blocks:
            twin = without_contributions(before, {block.name for block in plan.blocks})
            return self._proof(before, twin, plan.structure.model), None
        structure = prepare(before.clone())
        plain = structure.model.clone()
        contents = {value: value.const_value for value in structure.sources}
        MaskUnits(structure, plan.removed)(structure.model)
        proof = self._proof(before, structure.model, plan.structure.model)
        for value, content in contents.items():  # the analysis is asked once more, of the numbers as they were
            value.const_value = content
        reach = reach_of(structure, plain, plan.removed, proof.batches or runtime.working_inputs(plain))
        return proof, reach

    def _proof(self, before: ir.Model, masked: ir.Model, after: ir.Model) -> Proof:
        """Prove removed == masked.

        Raises:
            VerificationError: They differ.
        """
        return prove(before, masked, after, seed=self.recipe.seed)


def _cost(structure: Structure, recipe: Recipe) -> float:
    """What a model costs, in what the recipe's target is of."""
    return total_cost(find_cost(cost_of(recipe), structure), structure)


def _masks_now(model: ir.Model, masks: Mapping[str, Bools]) -> Mapping[str, Bools]:
    """The masks after recovery, which may have put as many zeros at other places of a weight."""

    def now(name: str, mask: Bools) -> Bools:
        value = model.graph.initializers.get(name)
        array = None if value is None or value.const_value is None else value.const_value.numpy()
        moved = array is not None and array.dtype.kind == "f" and bool(np.any(array[~mask] != 0))
        return array != 0 if array is not None and moved else mask

    return BitMasks((name, now(name, mask)) for name, mask in masks.items())


def _numbers(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}
