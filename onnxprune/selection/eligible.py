"""What a recipe allows to be pruned: name patterns, kinds of units, first and last layers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from onnxprune.errors import RecipeError
from onnxprune.recipe.granularity import Tiles
from onnxprune.recipe.recipe import Recipe
from onnxprune.selection.engines import engine_misfits
from onnxprune.selection.tiles import misfit
from onnxprune.structure.architecture import attentions, is_picked
from onnxprune.structure.blocks import ResidualBlock, residual_blocks
from onnxprune.structure.groups import Group
from onnxprune.structure.structure import Structure
from onnxprune.structure.weights import Weight, prunable_weights, total_size

_SMALL_END = 0.01  # share of all weights under which a first or last layer is left alone by default


def eligible_weights(structure: Structure, recipe: Recipe) -> list[Weight]:
    """Return the weights that name patterns, the treatment of first and last layers and the structure leave to prune.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    return _suited(_chosen(structure, recipe), recipe)


def misfits(structure: Structure, recipe: Recipe) -> dict[str, str]:
    """Return why weights that the recipe would let go do not suit its structure or its engine, by name."""
    return _misfits(_chosen(structure, recipe), recipe)


def _misfits(weights: Sequence[Weight], recipe: Recipe) -> dict[str, str]:
    """Why weights do not suit the structure or the engine and do not count in the sparsity, by name.

    The sparsity of tiles is a share of the weights of those layers that can be divided, and with an engine it is one of
    the weights of those layers whose zeros it can use.
    """
    if isinstance(recipe.parts.zeros, Tiles) and not recipe.parts.joint:
        return {w.name: why for w in weights if (why := misfit(w, recipe.round_to))}
    return engine_misfits(weights, recipe)


def _suited(weights: Sequence[Weight], recipe: Recipe) -> list[Weight]:
    unfit = _misfits(weights, recipe)
    return [w for w in weights if w.name not in unfit]


def _chosen(structure: Structure, recipe: Recipe) -> list[Weight]:
    """The weights that name patterns and the treatment of first and last layers leave."""
    zeros = recipe.parts.zeros
    weights = [w for w in prunable_weights(structure) if not (zeros and w.is_packed)]
    for flag, patterns in (("--exclude", recipe.exclude), ("--only", recipe.only)):
        for pattern in patterns:
            if not any(_matches(w, [pattern]) for w in weights):
                raise RecipeError(f"{flag} {pattern!r} matches no weight or node; onnxprune inspect lists their names")
    chosen = [w for w in weights if not _matches(w, recipe.exclude)]
    if recipe.only:
        chosen = [w for w in chosen if _matches(w, recipe.only)]
    kept = _ends(weights, recipe)
    return [w for w in chosen if w not in kept]


def protected_weights(structure: Structure, recipe: Recipe) -> list[Weight]:
    """Return the weights that stay only because their layer is small and first or last.

    They count as prunable, so that the sparsity asked for is that of the model.
    """
    if recipe.ends != "auto" or recipe.parts.zeros is None or recipe.exclude or recipe.only:
        return []
    return _suited(_ends([w for w in prunable_weights(structure) if not w.is_packed], recipe), recipe)


def eligible_groups(structure: Structure, weights: Sequence[Weight], recipe: Recipe) -> list[Group]:
    """Return the groups whose units may go: of the right kind, exact unless allowed, all their weights eligible."""
    allowed = {w.value for w in weights}
    attending = attentions(structure) if recipe.kinds else ()
    groups = []
    for group in structure.groups:
        if group.inexact and not recipe.allow_inexact:
            continue
        if recipe.kinds and not is_picked(group, recipe.kinds, attending):
            continue
        of_weights = [s.value for s in group.sites if s.value in structure.weights]
        if recipe.only:
            fits = any(v in allowed for v in of_weights)
        else:
            fits = all(v in allowed for v in of_weights)
        if fits:
            groups.append(group)
    return groups


def eligible_blocks(structure: Structure, weights: Sequence[Weight], recipe: Recipe) -> list[ResidualBlock]:
    """Return the residual blocks that may go: all their weights eligible, or one of them where some are picked out."""
    allowed = {w.value for w in weights}
    fits = any if recipe.only else all
    return [block for block in residual_blocks(structure) if fits(v in allowed for v in block.weights)]


def _matches(weight: Weight, patterns: Sequence[str]) -> bool:
    names = (weight.name, weight.node.name or "", weight.node.op_type)
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _ends(weights: Sequence[Weight], recipe: Recipe) -> list[Weight]:
    """Return the first and the last layer where the recipe leaves them alone."""
    if recipe.ends == "prune" or len(weights) < 3:
        return []
    if recipe.ends == "keep":
        return [weights[0], weights[-1]]
    if recipe.parts.zeros is None:
        return []
    total = total_size(weights)
    return [w for w in (weights[0], weights[-1]) if w.size < _SMALL_END * total]
