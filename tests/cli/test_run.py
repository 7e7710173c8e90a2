"""``onnxprune run``, ``--save-recipe`` and ``--preset`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run
from small_models import conv_net

from onnxprune import model_io
from onnxprune.recipe.file import PRESETS

TRAINED = Path(__file__).resolve().parents[2] / "models" / "digits_mlp.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model_io.save(conv_net(64), tmp_path / "net.onnx")
    return tmp_path


def recipe_used(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)["recipe"]


def test_a_saved_recipe_gives_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-s", 0.5, "--structure", "channels", "--round-to", 8, "--kinds", "channels,neurons", "--exclude", "w3")
    recipe = folder / "r.toml"
    assert run(folder / "net.onnx", *flags, "-o", folder / "a.onnx", "--save-recipe", recipe) == 0
    first = (folder / "a.onnx").read_bytes()
    (folder / "a.onnx").unlink()
    assert run("run", recipe) == 0
    assert (folder / "a.onnx").read_bytes() == first
    assert 'model = "net.onnx"' in recipe.read_text() and "seed" not in recipe.read_text()


def test_flags_win_over_the_file_and_the_file_over_a_preset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder / "r.toml"
    recipe.write_text("model = 'net.onnx'\npreset = 'fastest'\nround-to = 4\nsparsity = 0.25\n")
    assert run("run", recipe, "--dry-run", "--json") == 0
    used = recipe_used(capsys)
    assert (used["structure"], used["round_to"], used["sparsity"]) == ("joint", 4, 0.25)
    assert run("run", recipe, folder / "net.onnx", "-s", 0.75, "--dry-run", "--json") == 0
    assert recipe_used(capsys)["sparsity"] == 0.75


def test_flags_may_stand_before_the_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder / "r.toml"
    recipe.write_text("model = 'net.onnx'\nsparsity = 0.25\n")
    assert run("run", "--dry-run", "-s", 0.75, recipe, "--json") == 0
    assert recipe_used(capsys)["sparsity"] == 0.75
    assert "RECIPE.toml is missing" in refused(capsys, folder, "run", "--dry-run", "-s", 0.75)


def test_tables_of_a_recipe_file_reach_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f"model = '{TRAINED}'\nsparsity = 0.5\ndata = '{TRAINED.with_name('digits_train.npz')}'\n"
        "[retrain]\nsteps = 2\n[retrain_last]\nsteps = 3\n[reading]\nlayout = 'NHWC'\n"
    )
    assert run("run", recipe, "--dry-run", "--json", "--lr", 0.01) == 0
    used = recipe_used(capsys)
    assert (used["retrain"]["steps"], used["retrain"]["learning_rate"]) == (2, 0.01)
    assert used["retrain_last"]["steps"] == 3 and used["reading"]["layout"] == "NHWC"


def test_a_target_wins_over_the_sparsity_of_a_preset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder / "net.onnx", "--preset", "fastest", "--target-macs", "0.6x", "--dry-run", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["recipe"]["target_macs"] == 0.6 and answer["target"]["reached"] <= 0.6
    recipe = folder / "r.toml"
    recipe.write_text("model = 'net.onnx'\nstructure = 'channels'\ntarget-size = '0.7x'\n")
    assert run("run", recipe, "--dry-run") == 0
    assert "--target-size 0.7x: reached 0." in capsys.readouterr().out
    assert "give one of them" in refused(capsys, folder, folder / "net.onnx", "-s", 0.5, "--target-macs", 0.5)
    assert "cannot be reached" in refused(
        capsys, folder, folder / "net.onnx", "--structure", "channels", "--target-macs", 0.001, status=1
    )


def test_a_preset_is_enough(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(TRAINED, "--preset", "smallest", "--json", "-o", folder / "small.onnx") == 0
    used = recipe_used(capsys)
    assert used["pack"] == PRESETS["smallest"]["pack"] and used["sparsity"] == PRESETS["smallest"]["sparsity"]
    assert "--eval-data" in refused(capsys, folder, folder / "net.onnx", "--preset", "safe", "--force")
    assert "choose from" in refused(capsys, folder, folder / "net.onnx", "--preset", "best")


def test_wrong_recipes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = folder / "r.toml"
    recipe.write_text("model = 'net.onnx'\nsparsity = 2\n")
    assert "line 2: sparsity" in refused(capsys, folder, "run", recipe)
    recipe.write_text("sparsity = 0.5\n")
    assert "MODEL" in refused(capsys, folder, "run", recipe)
    recipe.write_text("model = 'net.onnx'\n")
    assert "--sparsity" in refused(capsys, folder, "run", recipe)
    recipe.write_text("model = 'no.onnx'\nsparsity = 0.5\n")
    assert "does not exist" in refused(capsys, folder, "run", recipe)
    assert "cannot be read" in refused(capsys, folder, "run", folder / "no.toml")
    nowhere = folder / "nowhere" / "r.toml"
    assert "folder" in refused(capsys, folder, folder / "net.onnx", "-s", 0.5, "--save-recipe", nowhere)
