"""The typed keywords are those of the recipe: a field exists once, and the file that editors read is made from it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from generated import script

import onnxprune
from onnxprune.pipeline.sweep_grid import VARIED
from onnxprune.recipe import settings
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import DataSettings, TrainSettings

ROOT = Path(__file__).resolve().parents[2]


def test_the_file_is_made_from_the_fields() -> None:
    written = (ROOT / "onnxprune" / "recipe" / "settings.py").read_text(encoding="utf-8")
    assert written == script("generate_settings").text(), "write it again: python docs/generate_settings.py"


@pytest.mark.parametrize(
    ("typed", "fields"),
    [
        (settings.Settings, Recipe.model_fields),
        (settings.SweepSettings, Recipe.model_fields),
        (settings.TrainingSettings, TrainSettings.model_fields),
        (settings.ReadingSettings, DataSettings.model_fields),
    ],
)
def test_every_field_is_a_keyword(typed: Any, fields: dict[str, Any]) -> None:
    assert set(typed.__annotations__) == set(fields)


def test_what_varies_may_be_several_in_a_sweep_only() -> None:
    for name in VARIED:
        assert "Sequence[" in str(settings.SweepSettings.__annotations__[name])
    assert "Sequence" not in str(settings.Settings.__annotations__["structure"])


@pytest.mark.parametrize("name", ["prune", "sensitivity", "sweep"])
def test_functions_take_the_typed_keywords(name: str) -> None:
    typed = "SweepSettings" if name == "sweep" else "Settings"
    assert inspect.signature(getattr(onnxprune, name)).parameters["settings"].annotation == f"Unpack[{typed}]"
