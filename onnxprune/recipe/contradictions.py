"""Settings that contradict each other, refused before any work is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.recipe.fields import TARGETS
from onnxprune.recipe.granularity import DEFAULT_UNIT_SHARE, NM, WEIGHTS

if TYPE_CHECKING:
    from onnxprune.recipe.recipe import Recipe


def check_amount(recipe: Recipe) -> None:
    """Refuse a recipe that says not or twice how much goes, or has a target that it cannot move.

    Raises:
        ValueError: See above.
    """
    given = recipe.model_fields_set
    asked = [name for name in ("quality", *TARGETS) if getattr(recipe, name) is not None]
    if "sparsity" in given and (recipe.sparsity > 0 or not asked):
        asked.insert(0, "sparsity")
    if not asked:
        others = ", ".join(map(_flag, TARGETS))
        raise ValueError(f"--sparsity: say which share of the weights goes, between 0 and 1 (or give one of {others})")
    if len(asked) > 1:
        raise ValueError(f"{_flag(asked[1])}: {_flag(asked[0])} says already how much goes: give one of them")
    if asked[0] in TARGETS:
        _check_target(recipe, asked[0])


def _check_target(recipe: Recipe, target: str) -> None:
    parts, flag = recipe.parts, _flag(target)
    if isinstance(parts.zeros, NM) and not parts.units:
        raise ValueError(f"{flag}: --structure {parts.text} sets how much goes, there is nothing to look for")
    if target in ("target_latency", "target_macs") and not parts.removes:
        raise ValueError(f"{flag}: zeros change neither multiply-adds nor latency: take --structure channels")
    stored = recipe.pack != "no" or recipe.sparse_initializers
    if target == "target_size" and not parts.removes and not stored:
        raise ValueError(f"{flag}: zeros alone make no file smaller: add --pack, or take --structure channels")


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


_SAME = 1e-9


_RANKED = ("auto", "global")


def check_structure(recipe: Recipe) -> None:
    """Refuse settings that contradict the structure of a recipe.

    Raises:
        ValueError: The sentence names the flag.
    """
    parts = recipe.parts
    if recipe.quality is not None:
        _check_threshold(recipe)
    elif recipe.target is None and recipe.initial_sparsity > recipe.sparsity:
        raise ValueError("--initial-sparsity is more than --sparsity")
    if isinstance(parts.zeros, NM):
        _check_pattern(recipe, parts.zeros)
    if recipe.unit_share != DEFAULT_UNIT_SHARE and (not parts.mixed or isinstance(parts.zeros, NM)):
        raise ValueError("--unit-share: only with --structure channels+weights or channels+block:RxC")
    if not parts.units and (recipe.kinds or recipe.allow_inexact):
        flag = "kinds" if recipe.kinds else "allow-inexact"
        raise ValueError(f"--{flag}: about whole units, which --structure {parts.text} does not remove")
    if parts.depth and recipe.allocation not in _RANKED:
        raise ValueError(f"--allocation: {recipe.allocation} is by layer, and residual blocks go whole: leave it out")


def _check_threshold(recipe: Recipe) -> None:
    if recipe.structure != WEIGHTS:
        raise ValueError(f"--quality: a threshold is for single weights, --structure {recipe.structure} is not")
    for field, default in (("criterion", "magnitude"), ("allocation", "auto")):
        if getattr(recipe, field) != default:
            raise ValueError(f"--{field}: --quality is a threshold on the magnitudes of each layer: leave it out")


def _check_pattern(recipe: Recipe, pattern: NM) -> None:
    text, units = recipe.structure, recipe.parts.units
    if not units and abs(recipe.sparsity - pattern.sparsity) > _SAME:
        raise ValueError(f"--sparsity: {text} makes it {pattern.sparsity:g}: leave it out")
    if recipe.target is None and recipe.sparsity < pattern.sparsity - _SAME:
        raise ValueError(f"--sparsity: {text} zeroes {pattern.sparsity:g} of the weights by itself: give more")
    if recipe.iterations > 1:
        raise ValueError(f"--iterations: {text} zeroes its share in one step")
    if not units and recipe.allocation not in _RANKED:
        raise ValueError(f"--allocation: {text} takes the same share of every layer: leave it out")


def check_training(recipe: Recipe) -> None:
    """Refuse settings of training that contradict each other or the structure of a recipe.

    Raises:
        ValueError: The sentence names the flag.
    """
    if recipe.parts.removes and recipe.alternate:
        raise ValueError("--alternate prunes single weights of one kind of layer at a time: --structure weights")
    if recipe.parts.removes and recipe.survivors == "rewind":
        raise ValueError("--survivors rewind goes back to weights of the original's shapes: --structure weights")
    if (recipe.survivors == "rewind") != (recipe.rewind_to is not None):
        raise ValueError("--survivors rewind and --rewind-to, the file with the weights, go together")
    if recipe.shrink != "no" and recipe.parts.mixed:
        raise ValueError("--shrink needs to know what goes in one step: not with a mix of structures")
    if recipe.prune_every is not None:
        _check_pruning_while_training(recipe)
    if recipe.recover not in (("auto",), ("no",)):
        _check_recovered(recipe)


def _check_pruning_while_training(recipe: Recipe) -> None:
    if recipe.parts.units or isinstance(recipe.parts.zeros, NM) or recipe.quality is not None:
        raise ValueError("--prune-every zeroes weights or blocks by share, neither units, N:M nor by --quality")
    if recipe.iterations > 1 or recipe.alternate or recipe.shrink != "no":
        raise ValueError("--prune-every prunes within one training: not with --iterations, --alternate or --shrink")
    if recipe.survivors in ("rewind", "reinit"):
        raise ValueError(f"--prune-every prunes while training, and --survivors {recipe.survivors} would undo that")


def _check_recovered(recipe: Recipe) -> None:
    if recipe.prune_every is not None:
        raise ValueError("--recover: with --prune-every the training itself is under way at each pruning: leave it out")
    if recipe.alternate:
        raise ValueError("--recover: --alternate goes on with the weights as the training left them: leave it out")
    if recipe.survivors in ("rewind", "reinit"):
        raise ValueError(f"--recover: --survivors {recipe.survivors} puts other weights in the place of recovered ones")
