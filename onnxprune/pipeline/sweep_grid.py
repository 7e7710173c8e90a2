"""The settings of a sweep: every combination of the values that its fields are given, as recipes.

possible, left_out = combinations({"sparsity": "0.3,0.5", "structure": ["channels", "2:4"]}, refuse)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import RecipeError
from onnxprune.recipe.fields import AMOUNTS
from onnxprune.recipe.flag import flag_name
from onnxprune.recipe.granularity import parse_structure
from onnxprune.recipe.recipe import Recipe, make_recipe

VARIED = (*AMOUNTS, "structure", "criterion", "allocation", "recover", "effort", "quantize", "pack")
"""Fields of a recipe that a sweep takes several values of."""

TOGETHER = "+"
"""Between methods of recovery that are one value: ``least-squares+batchnorm``."""


@dataclass(frozen=True)
class Combination:
    """One combination.

    Attributes:
        varied: The values of the fields that have several, by field.
        recipe: All settings.
    """

    varied: Mapping[str, Any]
    recipe: Recipe

    @property
    def label(self) -> str:
        """The values in one text: ``channels 0.5 no``."""
        return label_of(self.varied)


def label_of(varied: Mapping[str, Any]) -> str:
    """Return values in one text."""
    return " ".join(shown_value(value) for value in varied.values())


def shown_value(value: Any) -> str:
    """Return a value as it is written on the command line of a sweep."""
    if isinstance(value, (list, tuple)):
        return TOGETHER.join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def combinations(
    settings: Mapping[str, Any], refuse: Callable[[Recipe], None]
) -> tuple[tuple[Combination, ...], dict[str, str]]:
    """Return all combinations that can run, and why the others cannot, by label.

    A structure such as 2:4 says itself how much goes: it gets one combination instead of one for each sparsity.

    Args:
        settings: Fields of a recipe; those of `VARIED` may have several values, in a sequence or with commas.
        refuse: Raises a RecipeError for a recipe that the data of the run do not allow.

    Raises:
        RecipeError: A value fits no combination, so it is wrong by itself; the sentence names its flag.
    """
    values = {name: _values(name, settings[name]) for name in VARIED if name in settings}
    several = [name for name, listed in values.items() if len(listed) > 1] or list(values)
    fixed = {name: value for name, value in settings.items() if name not in values}
    possible: dict[str, Combination] = {}
    reasons: dict[str, RecipeError] = {}
    tried: list[tuple[Mapping[str, Any], RecipeError | None]] = []
    for chosen in _product(values):
        try:
            recipe = make_recipe(**fixed, **_without_amount_that_is_set(chosen))
            refuse(recipe)
        except RecipeError as error:
            reasons[label_of({name: chosen[name] for name in several})] = error
            tried.append((chosen, error))
            continue
        varied = {name: getattr(recipe, name) for name in several if getattr(recipe, name) is not None}
        possible.setdefault(recipe.model_dump_json(), Combination(varied, recipe))
        tried.append((chosen, None))
    _ensure_each_value_fits(values, tried)
    return tuple(possible.values()), {label: str(error) for label, error in reasons.items()}


def _values(name: str, value: Any) -> tuple[Any, ...]:
    """The values of a field.

    Raises:
        RecipeError: There are none.
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if not values:
        raise RecipeError(f"{flag_name(Recipe, name)}: give a value, or several with commas")
    if name == "recover":
        values = tuple(tuple(v.split(TOGETHER)) if isinstance(v, str) else v for v in values)
    return tuple(dict.fromkeys(values))


def _product(values: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _without_amount_that_is_set(chosen: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parts = parse_structure(str(chosen.get("structure", "")))
    except RecipeError:
        return dict(chosen)
    if parts.sets is None or parts.removes:
        return dict(chosen)
    return {name: value for name, value in chosen.items() if name not in AMOUNTS}


def _ensure_each_value_fits(
    values: Mapping[str, tuple[Any, ...]], tried: Sequence[tuple[Mapping[str, Any], RecipeError | None]]
) -> None:
    for name, listed in values.items():
        for value in listed:
            outcomes = [error for chosen, error in tried if chosen[name] == value]
            errors = [error for error in outcomes if error is not None]
            if errors and len(errors) == len(outcomes):
                raise errors[0]
