"""Help of each command fits a screen; every flag is told somewhere, under a subject."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from command_line import run

from onnxprune.cli import app as module
from onnxprune.cli.app import app, register
from onnxprune.cli.flags import EVERYDAY, SETTINGS
from onnxprune.recipe.flag import SUBJECTS

COMMANDS = ["prune", "run", "sweep", "inspect", "sensitivity", "methods", "verify", "compare", "unpack", "tune"]
LINES, WIDTH = 32, 100


def page(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert run(*arguments) == 0
    return capsys.readouterr().out


def flags(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = page(capsys, monkeypatch, *filter(None, [command]), "--help").splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= WIDTH
    register()
    assert {c.name for c in app.registered_commands} == set(COMMANDS)


def test_the_page_of_all_commands_is_that_of_the_whole_app(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = page(capsys, monkeypatch, "--help")
    monkeypatch.setattr(module, "overview", lambda: app)
    register()
    assert page(capsys, monkeypatch, "--help") == short


def test_a_shell_completes_flags_of_commands() -> None:
    line = {"COMP_WORDS": "onnxprune prune --target-lat", "COMP_CWORD": "2", "_ONNXPRUNE_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
    done = subprocess.run(command, env={**os.environ, **line}, capture_output=True, text=True)
    assert "--target-latency" in done.stdout


def test_every_flag_of_prune_is_in_the_long_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer

    register()
    command = typer.main.get_command(app).commands["prune"]
    told = flags(page(capsys, monkeypatch, "prune", "--help-all"))
    assert {max(p.opts, key=len) for p in command.params if p.param_type_name == "option"} <= told
    names = {p.name for p in command.params}
    assert {setting.parameter for setting in SETTINGS} <= names and set(EVERYDAY) <= names
    assert {parameter.rich_help_panel for parameter in command.params[2:]} <= {*SUBJECTS, None}
    short = page(capsys, monkeypatch, "prune", "--help")
    assert "--help-all" in short and flags(short) < told
