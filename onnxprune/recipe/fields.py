"""How much goes: a sparsity, a threshold, or a target that a sparsity is looked for. One of them, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

if TYPE_CHECKING:
    from onnxprune.recipe.recipe import Recipe

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
