"""How much of a model could go under a recipe, and why nothing could."""

from __future__ import annotations

from onnxprune.errors import NothingToPrune
from onnxprune.graph.narrowing import caches
from onnxprune.graph.size import holders_of_numbers
from onnxprune.recipe.granularity import KV_GROUPS
from onnxprune.recipe.recipe import Recipe
from onnxprune.scoring import prunable_weights
from onnxprune.selection.eligible import eligible_groups, eligible_weights, misfits, protected_weights
from onnxprune.structure.ledger import prunable_parameters
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import total_size


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
        size = prunable_parameters(structure, prunable_weights(structure), groups)
    if not size:
        raise NothingToPrune(why_nothing(structure, recipe))
    return size


def why_nothing(structure: Structure, recipe: Recipe) -> str:
    """Return the sentence on a model of which nothing may be pruned."""
    if not structure.weights:
        names = {*structure.unruled, *holders_of_numbers(structure.model)}
        why = f"the numbers of {', '.join(sorted(names))} are not pruned" if names else "no operator has weights"
        return f"there is nothing to prune: no Conv, Gemm, MatMul or recurrent weights were found ({why})"
    if recipe.parts.zeros and structure.packed and len(structure.packed) == len(prunable_weights(structure)):
        return (
            "there is nothing to prune: all weights are packed in a few bits, of which no single one is set to zero; "
            "take --structure channels, which removes whole blocks with their scales"
        )
    if set(recipe.kinds) == {KV_GROUPS} and recipe.interface == "keep" and any(caches(structure.model)):
        return "there is nothing to prune: KV groups are heads of the caches, which keep them without --resize-io"
    if recipe.parts.units and not any(not g.inexact for g in structure.groups):
        return "there is nothing to prune: no unit can be removed exactly; onnxprune inspect tells why"
    if unfit := misfits(structure, recipe):
        why = "; ".join(f"{name}: {reason}" for name, reason in unfit.items())
        flag = f"--structure {recipe.structure}" if recipe.engine is None else f"--engine {recipe.engine}"
        return f"there is nothing to prune: {flag} fits no layer ({why})"
    return "there is nothing to prune: the patterns and kinds given leave no weights"
