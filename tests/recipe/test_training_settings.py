"""Settings are validated data: flags are generated from them, so every field explains itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.training import DataSettings, TrainSettings


@pytest.mark.parametrize("settings", [DataSettings, TrainSettings])
def test_every_field_has_a_description(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description and field.description.endswith((".", ")")), name


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (TrainSettings, {"epochs": 3, "steps": 5}, "epochs or steps, not both"),
        (TrainSettings, {"learning_rte": 0.1}, "learning_rte"),
        (TrainSettings, {"learning_rate": 0}, "greater than 0"),
        (TrainSettings, {"dropout": 1.0}, "less than 1"),
        (TrainSettings, {"loss": "distillation", "distill": 0.5}, "distill 0.5 asks for a share of it"),
        (DataSettings, {"std": [0.0]}, "greater than 0"),
        (Recipe, {"sparsity": 0.3, "retrain": {}, "survivors": "forget"}, "'continue', 'lr-rewind', 'rewind' or"),
        (Recipe, {"sparsity": 0.3, "retrain": {}, "prune_every": 2, "alternate": True}, "prunes within one training"),
        (Recipe, {"sparsity": 0.3, "retrain": {}, "recover": "bias", "alternate": True}, "--recover: --alternate"),
    ],
)
def test_wrong_settings_are_refused(settings: type[BaseModel], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**given)


def test_settings_are_frozen_and_survive_json() -> None:
    settings = TrainSettings(epochs=2, freeze=("conv",))
    with pytest.raises(ValidationError, match="frozen"):
        settings.epochs = 5  # type: ignore[misc]
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
