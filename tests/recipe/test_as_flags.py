"""Settings as flags: what the command line reads from them is the same recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from onnxprune.cli.app import app, register
from onnxprune.cli.flags import SETTINGS, with_flags
from onnxprune.cli.invocation import Invocation
from onnxprune.recipe.as_flags import flags_of
from onnxprune.recipe.recipe import Recipe, make_recipe

SETTINGS_OF_RECIPES: dict[str, dict[str, Any]] = {
    "nothing": {"sparsity": 0.0},
    "numbers": {"sparsity": 0.123456789, "seed": 7, "round_to": 8, "floor": 2, "iterations": 3, "schedule": "cubic"},
    "switches": {"sparsity": 0.5, "structure": "channels", "allow_inexact": True, "interface": "narrow"},
    "lists": {
        "sparsity": 0.5,
        "structure": "channels",
        "kinds": ("channels", "heads"),
        "exclude": ("a*", "b c"),
        "recover": ("least-squares", "statistics"),
        "require": ("latency<=0.5", "size<=0.3"),
    },
    "target": {"target_macs": 0.5, "structure": "channels", "quantize": "int8"},
    "training": {
        "sparsity": 0.5,
        "retrain": {
            "epochs": 2,
            "learning_rate": 0.01,
            "keep_best": False,
            "freeze": ("conv",),
            "augment": ("crop", "flip"),
        },
        "survivors": "rewind",
        "rewind_to": Path("early.onnx"),
    },
    "reading": {"sparsity": 0.5, "reading": {"mean": (0.5, 0.25), "size": (32, 48), "sample_axis": ("x:1",)}},
}


def read_back(flags: list[str]) -> Recipe:
    """The recipe that the command line makes of flags."""
    told: dict[str, Any] = {}

    def command(ctx: typer.Context, settings: dict[str, Any], invocation: Invocation) -> None:
        told.update(settings)

    reader = typer.Typer()
    reader.command()(with_flags(command))
    reader(["net.onnx", *flags], standalone_mode=False)
    return make_recipe(**told)


@pytest.mark.parametrize("name", SETTINGS_OF_RECIPES)
def test_the_command_line_reads_the_same_recipe(name: str) -> None:
    recipe = make_recipe(**SETTINGS_OF_RECIPES[name])
    flags = flags_of(recipe)
    assert flags is not None
    given = flags if name != "nothing" else ["--sparsity", "0"]
    assert read_back(shlex.split(shlex.join(given))) == recipe


def test_settings_at_their_defaults_are_not_said() -> None:
    assert flags_of(make_recipe(sparsity=0.5, seed=0)) == ["--sparsity", "0.5"]


def test_what_has_no_flag_cannot_be_said() -> None:
    assert flags_of(make_recipe(sparsity=0.5, retrain={}, retrain_last={"epochs": 9})) is None
    assert flags_of(make_recipe(sparsity=0.5, retrain={"metric": "top5"})) is None


def test_a_command_may_leave_flags_out() -> None:
    register()
    group: Any = typer.main.get_command(app)
    names = {p.name for p in group.commands["sweep"].params}
    made = {setting.parameter for setting in SETTINGS}
    assert "record" not in names and "require" not in names and made - names and "sparsity" in names
