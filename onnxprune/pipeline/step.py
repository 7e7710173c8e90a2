"""One step of a run after the other: choose, remove or mask, check that removed == masked, recover.

    steps = Steps.of(structure, recipe, ...)
    state = steps.prune(State(model), 0.5, 1)      until half of the original's prunable parameters are gone
    state = steps.clean(state)                     dead units as well

Without training these are all there is (`pipeline.py`); with training they are what happens before each
(`retraining.py`). Statistics are those of the model as it is at each step; recovery always aims at the first, dense
model. The check comes before any number is changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.data.calibration import Calibration
from onnxprune.passes.remove_dead import compose_kept
from onnxprune.pipeline.apply import Applied, apply_plan, remove_dead
from onnxprune.pipeline.choose import Plan, choose, prunable_size
from onnxprune.pipeline.prepare import masked_twin, prepare, without_contributions
from onnxprune.recipe.granularity import NM, UNITS, Weights
from onnxprune.recipe.recipe import Recipe
from onnxprune.recovery import recover
from onnxprune.scoring import prunable_weights
from onnxprune.scoring.remembered import Memory
from onnxprune.selection.eligible import eligible_weights, protected_weights
from onnxprune.selection.rounding import CONV_BLOCK, RoundTo
from onnxprune.selection.sensitivity import Sensitivity
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools
from onnxprune.structure.weights import total_size
from onnxprune.verify.verdict import compare_with_masked

_NAMED = 8  # names that a note lists for one reason


@dataclass(frozen=True)
class Trace:
    """What the steps so far did.

    Attributes:
        kept: The kept indices of the original, by constant and axis.
        names: Copies of constants, with the names of their sources.
        gone: Parameters that are zero or gone, of those that could go.
        dead: Dead units that went.
        left: Sentences on dead units that had to stay.
        untouched: Weights, or groups of units, that the pattern or the criterion did not fit, with the reason.
        difference: Largest difference between removed and masked, relative to the largest output.
        steps: Each step as plain data: what it aimed at and reached, what recovery and a scan found.
        blocks: Residual blocks that went, by the names of their sums.
    """

    kept: Kept = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    gone: int = 0
    dead: int = 0
    left: tuple[str, ...] = ()
    untouched: Mapping[str, str] = field(default_factory=dict)
    difference: float = 0.0
    steps: tuple[Mapping[str, Any], ...] = ()
    blocks: tuple[str, ...] = ()

    def notes(self, recipe: Recipe, sparsity: float) -> list[str]:
        """What a person should know, as sentences.

        Args:
            recipe: The recipe of the run.
            sparsity: What was reached.
        """
        short = shortfall(recipe, sparsity, untouched=bool(self.untouched))
        return [note for note in (short, self._untouched(recipe), *self.left, self._not_recovered()) if note]

    def _untouched(self, recipe: Recipe) -> str:
        if not self.untouched:
            return ""
        names: dict[str, list[str]] = {}
        for name, reason in self.untouched.items():
            names.setdefault(reason, []).append(name)
        listed = "; ".join(f"{_some(own)}: {reason}" for reason, own in names.items())
        return f"--structure {recipe.structure} and --criterion {recipe.criterion} left some as they were: {listed}"

    def _not_recovered(self) -> str:
        done = self.steps[-1].get("recovery") if self.steps else None
        if done is None or not (done["skipped"] or not done["steps"]):
            return ""
        if not done["skipped"]:
            return "recovery changed nothing: no Conv, Gemm or MatMul with float weights of its own comes after the cut"
        reasons = Counter(done["skipped"].values())
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        return f"recovery left {len(done['skipped'])} layers as they are: {listed}"

    def and_kept(self, kept: Kept, names: Mapping[str, str], difference: float) -> Trace:
        """This trace after another cut."""
        return replace(
            self,
            kept=compose_kept(self.kept, kept),
            names={**self.names, **names},
            difference=max(self.difference, difference),
        )


@dataclass(frozen=True)
class State:
    """A model in the middle of a run.

    Attributes:
        model: As it is. It is never changed.
        trace: What was done to the original.
        masks: By name, which weights stay of those that the last step masked.
    """

    model: ir.Model
    trace: Trace = field(default_factory=Trace)
    masks: Mapping[str, Bools] = field(default_factory=dict)


@dataclass(frozen=True)
class Steps:
    """What every step of a run needs. Sparsities are those of the original, however much is gone already.

    Attributes:
        recipe: The recipe.
        prunable: The original's parameters that could go.
        total: All its weights.
        dense: The original, normalised: what recovery aims at; None where nothing is recovered.
        methods: Of recovery, in order.
        calibration: Samples, where some were given.
        verification: Whether removed == masked is checked.
        eval_data: An .npz with inputs, for the check where no random inputs work.
        progress: Called with what is being recovered.
        memory: What was found of the original, by another run that began with it.
    """

    recipe: Recipe
    prunable: int
    total: int
    dense: ir.Model | None = None
    methods: tuple[str, ...] = ()
    calibration: Calibration | None = None
    verification: bool = True
    eval_data: str | Path | None = None
    progress: Callable[[str], None] | None = None
    memory: Memory = field(default_factory=Memory)

    @staticmethod
    def of(structure: Structure, recipe: Recipe, *, methods: tuple[str, ...] = (), **given: Any) -> Steps:
        """The steps for the original, analysed.

        Raises:
            NothingToPrune: No weight may be pruned.
        """
        total = total_size(prunable_weights(structure))
        dense = structure.model.clone() if methods else None
        return Steps(recipe, prunable_size(structure, recipe), total, dense, methods, **given)

    def prune(self, state: State, sparsity: float, number: int, structure: Structure | None = None) -> State:
        """Prune a copy of the model until `sparsity` of the original is gone.

        Args:
            state: The model, as the steps before left it.
            sparsity: The share of the original's prunable parameters.
            number: Of the step, from 1.
            structure: An analysis of a copy of the model, which is cut in place, to save making one.
        """
        masks: Mapping[str, Bools] = {}
        trace, model = replace(state.trace, untouched={}), state.model
        tables: list[Sensitivity] = []
        for part in self.recipe.parts.texts:
            structure = structure or prepare(model.clone())
            own = self._part(part, structure, sparsity)
            gone_before = self.prunable - self.left(structure)
            again, first = number > 1 or self.recipe.alternate, number == 1 and model is state.model
            plan = choose(structure, own, self.calibration, again=again, memory=self.memory if first else None)
            done = apply_plan(plan)
            difference = self._difference(model, plan, done)
            trace = trace.and_kept(done.kept, done.renamed, difference)
            trace = replace(trace, blocks=(*trace.blocks, *(block.name for block in plan.blocks)))
            trace = replace(trace, gone=gone_before + plan.gone, untouched={**trace.untouched, **plan.untouched})
            masks = {str(value.name): mask for value, mask in plan.masks.items()}
            tables += [plan.sensitivity] if plan.sensitivity is not None else []
            model, structure = structure.model, None
        told: dict[str, Any] = {"step": number, "wanted": sparsity, "sparsity": trace.gone / self.prunable}
        told |= {"sensitivity": [row for table in tables for row in table.rows()]} if tables else {}
        told |= self._recovered(model, trace.kept)
        return State(model, replace(trace, steps=(*trace.steps, told)), _masks_now(model, masks))

    def chosen(self, state: State, sparsity: float, number: int) -> Mapping[str, Bools]:
        """By name, which numbers `prune` would leave as they are; nothing is removed. For one structure, not for a mix.

        Of units that would go, all weights count, those that read them too.
        """
        structure = prepare(state.model.clone())
        own = self._part(self.recipe.parts.texts[0], structure, sparsity)
        plan = choose(structure, own, self.calibration, again=number > 1 or self.recipe.alternate)
        if plan.blocks:
            going = {str(v.name) for block in plan.blocks for v in block.weights}
            return {n: np.zeros(array.shape, bool) for n, array in _numbers(structure.model).items() if n in going}
        if not plan.removed.any():
            return {str(value.name): mask for value, mask in plan.masks.items()}
        twin = _numbers(masked_twin(state.model, plan.removed))
        return {name: (twin[name] != 0) | (array == 0) for name, array in _numbers(structure.model).items()}

    def _difference(self, before: ir.Model, plan: Plan, done: Applied) -> float:
        """How far the model without units or blocks is from the one before with these zeroed; 0 where nobody asks."""
        if not self.verification:
            return 0.0
        if plan.blocks:
            twin = without_contributions(before, {block.name for block in plan.blocks})
            return self._checked(plan.structure.model, twin)
        return self._checked(plan.structure.model, masked_twin(before, plan.removed)) if done.kept else 0.0

    def left(self, structure: Structure) -> int:
        """The parameters of the model, as pruned so far, that could still go (zeros among them)."""
        if self.recipe.parts.zeros is None:
            return self.prunable - (self.total - total_size(prunable_weights(structure)))
        return total_size([*eligible_weights(structure, self.recipe), *protected_weights(structure, self.recipe)])

    def _part(self, part: str, structure: Structure, sparsity: float) -> Recipe:
        """The recipe of one part of the structure: how much of the model as it is goes in it."""
        own = self.recipe.model_copy(update={"structure": part})
        left = self.left(structure)
        if self.recipe.parts.mixed and part == UNITS:
            own = own.model_copy(update={"round_to": self._step_of_units(structure)})
            goal = self._by_units(sparsity) * self.prunable - (self.prunable - left)
            share = max(0.0, goal) / prunable_size(structure, own)
        else:
            share = max(0.0, 1 - self.prunable * (1 - sparsity) / left)
        return own.model_copy(update={"sparsity": share})

    def _by_units(self, sparsity: float) -> float:
        """Of a mix: the share of the original that goes with whole units. N:M takes its share of what they leave."""
        zeros = self.recipe.parts.zeros
        if isinstance(zeros, NM):
            return 1 - (1 - sparsity) / (1 - zeros.sparsity)
        return sparsity * self.recipe.unit_share

    def _step_of_units(self, structure: Structure) -> RoundTo:
        """Of a mix with N:M: kept counts step by multiples of M, so that the pattern fits what is left."""
        zeros = self.recipe.parts.zeros
        if self.recipe.round_to != "auto" or not isinstance(zeros, NM):
            return self.recipe.round_to
        conv = any("Conv" in node.op_type for node in structure.weights.values())
        return math.lcm(zeros.m, CONV_BLOCK if conv else 1)

    def _recovered(self, model: ir.Model, kept: Kept) -> dict[str, Any]:
        """Recover the model in place; what was done, as plain data."""
        if self.dense is None:
            return {}
        inputs = {} if self.calibration is None else self.calibration.inputs
        zeros = self.recipe.parts.zeros
        pattern = None if isinstance(zeros, Weights) else zeros
        tell = self.progress
        told = None if tell is None else lambda layer: tell(f"recover {layer}")
        trained = self.recipe.retrain is not None
        done = recover(
            self.dense, model, kept, inputs, methods=self.methods, pattern=pattern, trained=trained, progress=told
        )
        return {"recovery": asdict(done) | {"methods": list(self.methods)}}

    def clean(self, state: State) -> tuple[State, Kept]:
        """Remove the dead units of a copy of the model; what is kept of that copy, by constant and axis."""
        model = state.model.clone()
        done = remove_dead(model)
        difference = self._checked(model, state.model) if done.kept and self.verification else 0.0
        trace = state.trace.and_kept(done.kept, done.renamed, difference)
        trace = replace(trace, dead=trace.dead + done.removed, left=tuple(done.left))
        return replace(state, model=model, trace=trace), done.kept

    def _checked(self, after: ir.Model, masked: ir.Model) -> float:
        """How far removed and masked are apart.

        Raises:
            VerificationError: Too far.
        """
        return compare_with_masked(after, masked, seed=self.recipe.seed, eval_data=self.eval_data)


def _masks_now(model: ir.Model, masks: Mapping[str, Bools]) -> Mapping[str, Bools]:
    """The masks after recovery, which may have put as many zeros elsewhere in a weight."""
    found = {}
    for name, mask in masks.items():
        value = model.graph.initializers.get(name)
        array = None if value is None or value.const_value is None else value.const_value.numpy()
        moved = array is not None and array.dtype.kind == "f" and bool(np.any(array[~mask] != 0))
        found[name] = array != 0 if array is not None and moved else mask
    return found


def _numbers(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items() if v.const_value is not None}


def _some(names: list[str]) -> str:
    """The first few names; all of them are in the JSON and the record."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def shortfall(recipe: Recipe, sparsity: float, *, untouched: bool = False) -> str:
    """Why the sparsity asked for is not reached, empty where it is.

    Args:
        recipe: The recipe.
        sparsity: What was reached.
        untouched: Whether the pattern or the criterion did not fit everything, which is then why.
    """
    searched = recipe.target is not None  # nobody asked for this sparsity
    if recipe.quality is not None or searched or abs(sparsity - recipe.sparsity) <= 0.01:
        return ""
    asked = f"asked for {recipe.sparsity:.1%}, got {sparsity:.1%}"
    if untouched:
        return f"{asked}: what was left as it was makes up the rest, and the others give no more for it"
    if not recipe.parts.units:
        what = "residual blocks" if recipe.parts.depth else "blocks"
        return f"{asked}: the nearest below that whole {what} allow"
    return (
        f"{asked}: the nearest below that whole units, floors and rounding allow (--round-to none and --allow-inexact "
        "allow more)"
    )
