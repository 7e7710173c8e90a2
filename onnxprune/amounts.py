"""How much goes: a sparsity, a threshold, or a target that a sparsity is looked for. One of them, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from onnxprune.structures import NM

if TYPE_CHECKING:
    from onnxprune.recipe import Recipe

TARGETS = ("target_latency", "target_macs", "target_size", "max_drop")
"""Fields of a recipe that decide the sparsity by a search (targets.py)."""


def _without_x(ratio: Any) -> Any:
    """``0.5x`` is 0.5."""
    return ratio.strip().removesuffix("x") if isinstance(ratio, str) else ratio


Ratio = Annotated[float, BeforeValidator(_without_x), Field(gt=0, lt=1)]
"""A figure after / before: 0.5 or ``0.5x``."""


def target_of(recipe: Recipe) -> str | None:
    """Return which of `TARGETS` the recipe has."""
    return next((name for name in TARGETS if getattr(recipe, name) is not None), None)


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
