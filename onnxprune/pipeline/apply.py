"""From a plan to a smaller model: analyse, decide (choose.py), and do it. Nothing here trains or verifies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.passes import (
    MaskWeights,
    Normalise,
    RemoveBlocks,
    RemoveDeadUnits,
    RemoveUnits,
    Tidy,
)  # fmt: skip
from onnxprune.passes.normalise import renamed_copies
from onnxprune.pipeline.plan import Plan
from onnxprune.structure.rewrite import Kept


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
