"""What --structure says, and what contradicts it."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import RecipeError
from onnxprune.recipe.granularity import NM, Block, Parts, Units, Weights, parse_structure
from onnxprune.recipe.recipe import make_recipe


@pytest.mark.parametrize(
    ("text", "units", "zeros"),
    [
        ("weights", False, Weights()),
        ("channels", True, None),
        ("2:4", False, NM(2, 4)),
        ("block:1x4", False, Block(1, 4)),
        ("channels+weights", True, Weights()),
        ("channels+2:4", True, NM(2, 4)),
        ("channels+block:4x1", True, Block(4, 1)),
    ],
)
def test_structures_are_read_as_written(text: str, units: bool, zeros: Any) -> None:
    parts = parse_structure(text)
    assert parts == Parts(text, Units() if units else None, zeros)
    assert "+".join(parts.texts) == text
    assert parts.mixed == ("+" in text)


@pytest.mark.parametrize("text", ["", "channel", "2:2", "weights+channels", "channels+", "2:4+channels", "block:0x1"])
def test_what_is_no_structure_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="structure"):
        parse_structure(text)
    with pytest.raises(RecipeError, match="--structure"):
        make_recipe(structure=text, sparsity=0.5)


def test_n_of_m_sets_the_sparsity() -> None:
    assert make_recipe(structure="1:4").sparsity == 0.75
    assert make_recipe(structure="2:4", sparsity=0.5).sparsity == 0.5
    recipe = make_recipe(structure="2:4")
    assert make_recipe(**recipe.model_dump()) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "2:4", "sparsity": 0.6}, "--sparsity: 2:4 makes it 0.5: leave it out"),
        ({"structure": "channels+2:4", "sparsity": 0.4}, "--sparsity: channels.2:4 zeroes 0.5 .* give more"),
        ({"structure": "channels+2:4"}, "--sparsity: say which share"),
        ({"structure": "2:4", "iterations": 2}, "--iterations"),
        ({"structure": "2:4", "allocation": "erk"}, "--allocation"),
        ({"structure": "2:4", "quality": 1}, "--quality"),
        ({"structure": "weights", "unit_share": 0.3, "sparsity": 0.5}, "--unit-share"),
        ({"structure": "channels+2:4", "unit_share": 0.3, "sparsity": 0.7}, "--unit-share"),
        ({"structure": "weights", "kinds": ("heads",), "sparsity": 0.5}, "--kinds"),
        ({"structure": "block:1x4", "allow_inexact": True, "sparsity": 0.5}, "--allow-inexact"),
        ({"quality": 1, "criterion": "l1"}, "--criterion: --quality"),
        ({"quality": 1, "allocation": "uniform"}, "--allocation: --quality"),
        ({"sparsity": 0.5, "initial_sparsity": 0.6}, "--initial-sparsity is more than --sparsity"),
        ({"sparsity": 0.5, "recover": ""}, "--recover"),
        ({"sparsity": 0.5, "recover": "auto,bias"}, "--recover: give auto, no, or methods"),
    ],
    ids=str,
)
def test_contradictions_are_refused_in_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        make_recipe(**settings)
    assert "\n" not in str(refused.value)
