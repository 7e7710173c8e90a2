"""Recipe files: what flags say, in TOML; what is wrong with one is told with its key and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from onnxprune.errors import ModelError, RecipeError
from onnxprune.recipe import file as recipe_file
from onnxprune.recipe.file import PRESETS
from onnxprune.recipe.recipe import make_recipe

FLAGS = {"model": FieldInfo(annotation=Path), "preset": FieldInfo(annotation=str)}


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_are_flags_with_or_without_dashes(tmp_path: Path) -> None:
    path = written(tmp_path, 'sparsity = 0.5\nround-to = 8\nremove_dead = true\nmodel = "net.onnx"\n')
    found = recipe_file.read(path, flags=FLAGS, paths={"model"})
    assert found.recipe() == make_recipe(sparsity=0.5, round_to=8, remove_dead=True)
    assert found.settings["model"] == str(tmp_path.resolve() / "net.onnx")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sparsity = 0.5\n\nfloor = 0\n", "line 3: floor: "),
        ('structure = "channels"\nsparsity = 1.5\n', "line 2: sparsity: it has to be less than 1"),
        ("sparsity = 'half'\n", r"line 1: sparsity: it has to be a number \(not 'half'\)"),
        ("structure = 'cubes'\nsparsity = 0.5\n", r"line 1: structure: there is no structure 'cubes': .*\+weights$"),
        ("sparsity = 0.5\nkinds = ['cubes']\n", "line 2: kinds: there are no units called 'cubes'"),
        ("sparsity = 0.5\nrequire = ['speed>2']\n", "line 2: require: there is no figure 'speed'"),
        ("sparsity = 0.5\nallow-inexact = 'perhaps'\n", "line 2: allow-inexact: "),
        ("# note\nsparsify = 0.5\n", "line 2: there is no setting 'sparsify'"),
        ("[[stages]]\nsparsity = 0.5\n", "line 1: there is no setting 'stages'"),
        ("sparsity = 0.5\npreset = 'tiny'\n", "line 2: --preset: there is no 'tiny'"),
        ("sparsity = 0.5\nmodel = 3\n", "line 2: model: it has to be the name of a file"),
        ("sparsity = \n", "no TOML: .*line 1"),
        ("sparsity = 0.5\nsparsity = 0.6\n", "no TOML: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told) as error:
        recipe_file.read(written(tmp_path, text), flags=FLAGS, paths={"model"})
    assert "recipe.toml" in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        recipe_file.read(tmp_path / "no.toml")
    (tmp_path / "model.onnx").write_bytes(b"\x08\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not a text file"):
        recipe_file.read(tmp_path / "model.onnx")


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3),
    number=st.floats(0, 0.99),
    flag=st.booleans(),
)
def test_what_is_saved_is_read_back(
    texts: list[str], number: float, flag: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("saved") / "r.toml"
    settings = {"sparsity": number, "exclude": texts, "remove_dead": flag, "model": str(path.parent / "a b.onnx")}
    recipe_file.save(path, settings, paths={"model"})
    assert recipe_file.read(path, flags=FLAGS, paths={"model"}).settings == settings


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        recipe_file.save(tmp_path / "nowhere" / "r.toml", {"sparsity": 0.5})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_recipes_and_files_win_over_them(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"preset = '{name}'\nsparsity = 0.25\n")
    recipe = recipe_file.read(path, flags=FLAGS).recipe()
    amounts = {"sparsity", "target_latency"}
    assert recipe == make_recipe(**{k: v for k, v in PRESETS[name].items() if k not in amounts}, sparsity=0.25)
    assert recipe_file.read(written(tmp_path, f"preset = '{name}'\n"), flags=FLAGS).recipe() == make_recipe(
        **PRESETS[name]
    )
