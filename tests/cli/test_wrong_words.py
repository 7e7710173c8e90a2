"""Every flag with wrong words, and every key of a recipe file with wrong values: one plain sentence, nothing written.

The cases are made from the settings and from what the commands take, so that a new flag is tried as well.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import typer
from command_line import refused, run
from small_models import two_layers

from onnxprune import model_io
from onnxprune.cli.app import app, register
from onnxprune.cli.flags import SETTINGS, Setting
from onnxprune.recipe.fields import AMOUNTS
from onnxprune.recipe.flag import TURNS

_FOREIGN = re.compile(r"nput should|\bvalid\b|nable to|Option|iterable|Traceback|Error\b|pydantic|\(not \[")
_NOWHERE = Path("nowhere") / "file.npz"
_TRIED = [setting for setting in SETTINGS if not setting.flag.argument]


def names_of(settings: list[Setting]) -> list[str]:
    return [setting.parameter for setting in settings]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, data for it, and the place from which the commands run."""
    model = two_layers(16)
    model_io.save(model, tmp_path / "net.onnx")
    (value,) = model.graph.inputs
    inputs = np.zeros((8, *(int(d) for d in value.shape[1:])), np.float32)
    np.savez(tmp_path / "data.npz", **{str(value.name): inputs, "label": np.arange(8) % 3})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parts_of(annotation: Any) -> set[Any]:
    inner = get_args(annotation) if get_origin(annotation) is not Literal else ()
    return {annotation} if not inner else {part for each in inner for part in parts_of(each)}


def is_choice(setting: Setting) -> bool:
    return any(get_origin(part) is Literal for part in parts_of(setting.field.annotation))


def is_switch(setting: Setting) -> bool:
    return setting.flag.switch or setting.parameter == "retrain" or bool in parts_of(setting.field.annotation)


def wrong_words(setting: Setting) -> list[str]:
    numbers = parts_of(setting.field.annotation) & {int, float}
    if setting.is_path:  # the folder of a state is made where it is not there
        return ["data.npz" if setting.parameter == "checkpoint" else str(_NOWHERE)]
    if not numbers:
        return ["nosuch", ""] if is_choice(setting) else ["nosuch"]
    return ["half", "", "1,5z", "1e999"] + ["1.5"] * (int in numbers)


def beside(setting: Setting) -> dict[str, Any]:
    """What has to be said, too, for the setting to be read."""
    said: dict[str, Any] = {} if setting.parameter in AMOUNTS else {"sparsity": 0.5}
    if setting.section == "retrain" or setting.flag.subject == TURNS:
        said |= {"retrain": True, "data": "data.npz"}
    if setting.section == "reading":
        said |= {"eval_data": "data.npz"}
    if setting.parameter == "data":
        said |= {"retrain": True}
    return said


def as_flags(said: dict[str, Any]) -> list[str]:
    flags = {name: f"--{name.replace('_', '-')}" for name in said}
    return [flags[name] if value is True else f"{flags[name]}={value}" for name, value in said.items()]


@pytest.mark.parametrize("setting", _TRIED, ids=names_of(_TRIED))
def test_a_wrong_word_for_a_flag(setting: Setting, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ["yes"] if is_switch(setting) else wrong_words(setting):
        line = ["net.onnx", *as_flags(beside(setting)), f"{setting.spelling}={word}"]
        told = refused(capsys, folder, *line)
        assert setting.spelling in told or (setting.is_path and str(_NOWHERE) in told), told
        assert not _FOREIGN.search(told), told
        if not setting.is_path and not is_switch(setting) and wrong_words(setting) != ["nosuch"]:
            assert re.search(r": (it has to be|choose) ", told), told
            assert repr(word) in told or "," in word, told


@pytest.mark.parametrize("setting", _TRIED, ids=names_of(_TRIED))
def test_a_wrong_value_in_a_recipe_file(setting: Setting, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = ["{a = 1}", "2020-01-01"]
    values += ['"perhaps"', "1.5"] if is_switch(setting) else ["true"]
    values += [] if setting.is_path or is_switch(setting) else [f'"{word}"' for word in wrong_words(setting) if word]
    keys = {"model": "net.onnx", **beside(setting)}
    lines = [f"{key} = {str(value).lower() if value is True else repr(value)}" for key, value in keys.items()]
    for value in values:
        (folder / "run.toml").write_text("\n".join([f"{setting.parameter} = {value}", *lines]) + "\n")
        told = refused(capsys, folder, "run", "run.toml")
        assert told.startswith("onnxprune: 'run.toml', line 1: ") or value == '"nosuch"', told
        assert setting.parameter in told or setting.spelling in told, told
        assert not _FOREIGN.search(told), told


def numbers_and_switches() -> list[tuple[str, str, str]]:
    """Command, flag and wrong word: all flags of all commands that are a number or stand alone."""
    register()
    group: Any = typer.main.get_command(app)
    found = []
    for name, command in group.commands.items():
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ("help_all", "help"):
                word = "yes" if parameter.is_flag else "x" if parameter.metavar in ("<int>", "<float>") else ""
                if word and name != "prune":
                    found.append((name, max(parameter.opts, key=len), word))
    return found


@pytest.mark.parametrize(("command", "flag", "word"), numbers_and_switches())
def test_a_wrong_word_for_another_command(
    command: str, flag: str, word: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"verify": 2, "compare": 2, "methods": 0, "tune": 0, "run": 1}.get(command, 1)
    told = refused(capsys, folder, command, *["net.onnx"] * models, f"{flag}={word}")
    assert told.startswith(f"onnxprune: {flag}{': it has to be a' if word == 'x' else ' takes no value'}"), told
    assert not _FOREIGN.search(told)


def test_a_flag_without_its_word_and_one_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--seed needs a value" in refused(capsys, folder, "net.onnx", "--seed")
    told = refused(capsys, folder, "net.onnx", "--sparsty", "0.5")
    assert "there is no flag --sparsty" in told and "--sparsity" in told
    assert "PRUNED is missing" in refused(capsys, folder, "verify", "net.onnx")


def test_numbers_of_a_saved_recipe_are_numbers(folder: Path) -> None:
    line = ["net.onnx", "--sparsity=50%", "--jobs=2", "--seed=3", "--image-size=8x8", "--save-recipe=run.toml"]
    assert run(*line, "--eval-data=data.npz") == 0
    kept = (folder / "run.toml").read_text()
    assert "jobs = 2\n" in kept and "seed = 3\n" in kept and 'image_size = "8x8"\n' in kept
    assert run("run", "run.toml", "--force") == 0
