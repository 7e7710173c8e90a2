"""What a result tells a person beside the figures."""

from __future__ import annotations

import pytest
from small_models import random, two_layers

import onnxprune

WORDS = "give --calibration"


@pytest.mark.parametrize("sparsity", [0.05, 0.75])
def test_a_ruined_model_is_warned_of_with_what_helps(sparsity: float) -> None:
    settings = {"sparsity": sparsity, "structure": "channels", "round_to": "none", "latency": False}
    result = onnxprune.prune(two_layers(64), **settings)
    assert result.verdict is not None and (result.verdict.output_change >= 0.5) == (sparsity > 0.5)
    assert any(WORDS in note for note in result.notes) == (sparsity > 0.5)
    recovered = onnxprune.prune(two_layers(64), **settings, calibration={"x": random(128, 8)})
    assert not any(WORDS in note for note in recovered.notes)
