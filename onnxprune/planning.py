"""From a plan to a smaller model: analyse, decide (`choosing.py`), and do it. Nothing here trains or verifies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune import runtime
from onnxprune.choosing import Plan
from onnxprune.errors import ModelError
from onnxprune.packing import is_packed
from onnxprune.passes import (
    MaskBlocks,
    MaskUnits,
    MaskWeights,
    Normalise,
    RemoveBlocks,
    RemoveDeadUnits,
    RemoveUnits,
    Tidy,
)  # fmt: skip
from onnxprune.recipe import Recipe
from onnxprune.record import renamed_copies
from onnxprune.structure.analysis import analyse
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.rewrite import Kept
from onnxprune.structure.structure import Structure
from onnxprune.structure.terms import Bools


def prepare(model: ir.Model) -> Structure:
    """Normalise a model in place and analyse it; shapes that onnx cannot infer are measured in ONNX Runtime.

    Raises:
        ModelError: Its weights are packed.
    """
    if is_packed(model):
        raise ModelError("the weights are packed: write the plain model first, with onnxprune unpack MODEL")
    Normalise()(model)
    return analyse(model, runtime.known_facts(model))


def masked_twin(original: ir.Model, removed: Bools) -> ir.Model:
    """Return a copy of the original with the removed units zeroed. Atom ids are the same in every analysis of it."""
    structure = prepare(original.clone())
    MaskUnits(structure, removed)(structure.model)
    return structure.model


def without_contributions(original: ir.Model, names: Collection[str]) -> ir.Model:
    """Return a copy of the original with what residual blocks of these names contribute zeroed."""
    structure = prepare(original.clone())
    MaskBlocks([b for b in residual_blocks(structure) if b.name in names])(structure.model)
    return structure.model


@dataclass(frozen=True)
class Applied:
    """What was done to the plan's model: kept indices, and copies of constants with the names of their sources."""

    kept: Kept
    renamed: Mapping[str, str]


def apply_plan(plan: Plan) -> Applied:
    """Do what was planned to the plan's model."""
    model = plan.structure.model
    kept: Kept = {}
    if plan.masks:
        MaskWeights(plan.structure, plan.masks)(model)
    elif plan.blocks:
        RemoveBlocks(plan.blocks)(model)
    else:
        remove = RemoveUnits(plan.structure, plan.removed)
        remove(model)
        kept = remove.kept
    return Applied(kept, _tidied(model))


@dataclass(frozen=True)
class Cleaned(Applied):
    """What removal of dead units did: `removed` of them went, `left` says which had to stay and why."""

    removed: int
    left: Sequence[str]


def remove_dead(model: ir.Model) -> Cleaned:
    """Remove the units of a model, in place, that its outputs do not depend on."""
    Normalise()(model)
    dead = RemoveDeadUnits()
    dead(model)
    return Cleaned(dead.kept, _tidied(model), dead.removed, dead.left)


def _tidied(model: ir.Model) -> Mapping[str, str]:
    """Tidy a model; return the copies of constants that were in it, with their sources."""
    copies = renamed_copies(model)
    Tidy()(model)
    return copies


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
