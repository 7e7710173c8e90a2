"""Recipe: the whole run as validated data. Flags, TOML files and Python arguments all build this object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator, model_validator

from onnxprune.errors import RecipeError
from onnxprune.recipe import contradictions, requirements
from onnxprune.recipe.fields import AMOUNTS, Fields
from onnxprune.recipe.flag import flag_name
from onnxprune.recipe.granularity import parse_structure, read_kind
from onnxprune.recipe.training import DataSettings, TrainSettings


class Recipe(Fields):
    """Everything that decides what a run does to a model.

    The same model, recipe and seed give the same bytes, but for `target_latency`, which is measured.

    >>> import onnxprune
    >>> recipe = onnxprune.Recipe(sparsity="50%", structure="channels")
    >>> recipe.sparsity
    0.5
    """

    @field_validator("structure")
    @classmethod
    def _known_structure(cls, text: str) -> str:
        try:
            return parse_structure(text).text
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @field_validator("recover")
    @classmethod
    def _auto_and_no_stand_alone(cls, recover: tuple[str, ...]) -> tuple[str, ...]:
        if not recover or (len(recover) > 1 and {"auto", "no"} & set(recover)):
            raise ValueError("give auto, no, or methods")
        return recover

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(map(read_kind, kinds))
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @field_validator("require")
    @classmethod
    def _known_limits(cls, require: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(requirements.parse(text)) for text in require)
        except RecipeError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _set_by_pattern(cls, settings: Any) -> Any:
        """A pattern such as N:M sets the sparsity; a sparsity beside it has to be the same."""
        if not isinstance(settings, Mapping):
            return settings
        try:
            parts = parse_structure(str(settings.get("structure", "")))
        except RecipeError:
            return settings
        others = any(settings.get(name) is not None for name in AMOUNTS if name != "sparsity")
        if parts.removes or parts.sets is None or others:
            return settings
        return {"sparsity": parts.sets, **settings}

    @model_validator(mode="before")
    @classmethod
    def _set_by_engine(cls, settings: Any) -> Any:
        """An engine sets what its kernels need, where the user left it open."""
        if not isinstance(settings, Mapping) or settings.get("engine") is None:
            return settings
        from onnxprune.engines import ENGINES  # loads onnx_ir, which other recipes do without

        engine = ENGINES.get(str(settings["engine"]))
        if engine is None:
            return settings
        set_by_engine: dict[str, Any] = {"structure": engine.structure, "quantize": engine.quantize}
        try:
            parts = parse_structure(str(settings.get("structure", engine.structure)))
        except RecipeError:
            return settings
        if parts.zeros is not None and parts.zeros.ranks and not parts.mixed and settings.get("quality") is None:
            set_by_engine |= engine.settings
        if parts.mixed and engine.step is not None:
            set_by_engine["round_to"] = engine.step
        return {**set_by_engine, **settings}

    @model_validator(mode="after")
    def _belong_together(self) -> Recipe:
        contradictions.check(self)
        return self


def make_recipe(**settings: Any) -> Recipe:
    """Build a recipe.

    Raises:
        RecipeError: A setting is wrong; the message names it.
    """
    try:
        return Recipe(**settings)
    except ValidationError as error:
        raise RecipeError(sentence(error)) from None


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, under the name of its flag."""
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    value = first["input"]
    scalar = not isinstance(value, (Mapping, BaseModel))
    shown = repr(value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value) if scalar else ""
    return f"{_flag_at(first['loc'])}: {in_words(of_one_value(error.errors()), shown)}"


def of_one_value(problems: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first problem, and those that the other types of its setting have with the same value."""
    first = problems[0]
    return [p for p in problems if p["loc"][:1] == first["loc"][:1] and p["input"] is first["input"]]


def in_words(problems: Sequence[Mapping[str, Any]], shown: str) -> str:
    """What pydantic says of a value, in plain words, with the value where the words do not hold it.

    Args:
        problems: What each of the types that a setting may have says of the value.
        shown: The value.
    """
    first = problems[0]
    if first["type"] in _NO_VALUE:
        return _NO_VALUE[first["type"]]
    wanted = [_PLAIN[p["type"]].format(**p.get("ctx", {})) for p in problems if p["type"] in _PLAIN]
    plain = str(first["msg"]).removeprefix("Value error, ")
    plain = f"it has to be {', or '.join(dict.fromkeys(wanted))}" if wanted else plain
    value = f" (not {shown})" if shown and shown not in plain else ""
    return f"{plain[:1].lower()}{plain[1:]}{value}"


_PLAIN = {
    "float_parsing": "a number",
    "float_type": "a number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "path_type": "the name of a file",
    "tuple_type": "a list",
    "model_type": "true, false or a table",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
}
"""What a value has to be, by the type of the problem that pydantic has with it."""

_NO_VALUE = {"missing": "it has to be given", "extra_forbidden": "there is no such setting"}
"""What is told of a setting without its value."""


SECTIONS: Mapping[str, type[BaseModel]] = {
    "retrain": TrainSettings,
    "retrain_last": TrainSettings,
    "reading": DataSettings,
}
"""Fields that hold settings of their own."""


def _flag_at(place: Sequence[int | str]) -> str:
    """The flag of the setting at a place that pydantic names."""
    section, *inner = [part for part in place if isinstance(part, str)]
    model, setting = (SECTIONS[section], inner[0]) if section in SECTIONS and inner else (Recipe, section)
    return flag_name(model, setting) if setting in model.model_fields else f"--{setting.replace('_', '-')}"
