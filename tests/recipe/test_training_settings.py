"""Settings are validated data: flags are generated from them, so every field explains itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from onnxprune.recipe.training import DataSettings, IterateSettings, TrainSettings


@pytest.mark.parametrize("settings", [DataSettings, TrainSettings, IterateSettings])
def test_every_field_has_a_description(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        assert field.description and field.description.endswith((".", ")")), name


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (TrainSettings, {"epochs": 3, "steps": 5}, "epochs or steps, not both"),
        (TrainSettings, {"learning_rte": 0.1}, "learning_rte"),
        (TrainSettings, {"learning_rate": 0}, "greater than 0"),
        (TrainSettings, {"optimizer": "lion"}, "'sgd', 'adam' or 'adamw'"),
        (TrainSettings, {"dropout": 1.0}, "less than 1"),
        (DataSettings, {"std": [0.0]}, "greater than 0"),
        (IterateSettings, {"sparsity": 1.5}, "less than or equal to 1"),
        (IterateSettings, {"sparsity": 0.3, "initial_sparsity": 0.5}, "below initial_sparsity"),
        (IterateSettings, {"sparsity": 0.3, "weights": "forget"}, "'continue', 'lr-rewind', 'rewind' or 'reinit'"),
    ],
)
def test_wrong_settings_are_refused(settings: type[BaseModel], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**given)


def test_settings_are_frozen_and_survive_json() -> None:
    settings = IterateSettings(sparsity=0.9, train=TrainSettings(epochs=2))
    with pytest.raises(ValidationError, match="frozen"):
        settings.sparsity = 0.5  # type: ignore[misc]
    assert IterateSettings.model_validate_json(settings.model_dump_json()) == settings
