"""The pages for users of one kind of model: their commands run, on models of that kind."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'onnxprune[test]'")

from beside_torchvision import declarations
from user_models import make_classifier, make_detector, make_encoder, make_speech

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Page:
    """How a page is tried.

    Attributes:
        make: Puts a stand-in for the exported model, and data, into a folder; None where the page's Python does.
        packages: What the page's first block of Python needs; the block is run where they are installed.
        replaced: Texts of the block that a test without a network replaces.
    """

    make: Callable[[Path], None] | None
    packages: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()


PAGES = {
    "yolo": Page(make_detector),
    "classifier": Page(make_classifier, ("torchvision",), (('weights="DEFAULT"', "weights=None"),)),
    "bert": Page(make_encoder),
    "speech": Page(make_speech),
    "scikit-learn": Page(None, ("sklearn", "skl2onnx")),
    "keras": Page(None, ("tensorflow", "tf2onnx")),
}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands_of(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def environment(folder: Path) -> dict[str, str]:
    """One in which `onnxprune` is this one."""
    (folder / "bin").mkdir()
    command = folder / "bin" / "onnxprune"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnxprune "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}


def run_commands(page: str, folder: Path) -> None:
    found = [command for block in blocks(page, "console") for command in commands_of(block)]
    assert len(found) >= 3 and all(command.startswith("onnxprune ") for command in found)
    run_each(found, folder)


def run_each(found: Sequence[str], folder: Path) -> None:
    variables = environment(folder)
    for command in found:
        done = subprocess.run(command, shell=True, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.parametrize("page", [page for page, how in PAGES.items() if how.make is not None])
def test_the_commands_of_a_page_run_on_a_model_of_its_kind(page: str, tmp_path: Path) -> None:
    make = PAGES[page].make
    assert make is not None
    make(tmp_path)
    run_commands(page, tmp_path)


@pytest.mark.zoo  # not for its models, for its time
@pytest.mark.parametrize("page", [page for page, how in PAGES.items() if how.packages])
def test_a_page_is_a_complete_path(page: str, tmp_path: Path) -> None:
    how = PAGES[page]
    missing = [name for name in how.packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: the page's export is not tried here")
    code = blocks(page, "python")[0]
    for text, instead in how.replaced:
        assert text in code
        code = code.replace(text, instead)
    code = declarations() + code
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if how.make is not None:
        how.make(tmp_path)
    run_commands(page, tmp_path)


@pytest.mark.zoo  # not for its models, for its time
def test_every_block_of_the_page_on_speech_runs_in_its_place(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'onnxprune[trainers]'")
    make_speech(tmp_path)
    for made_up in ("features.npz", "decoder.npz"):
        (tmp_path / made_up).unlink()
    text = (ROOT / "docs" / "howto" / "speech.md").read_text(encoding="utf-8")
    whole, short = "WhisperFeatureExtractor()", "WhisperFeatureExtractor(chunk_length=1)"  # the stand-in hears a second
    assert whole in text
    steps: list[str] = []
    for language, block in re.findall(r"```(console|python)\n(.*?)```", text.replace(whole, short), flags=re.S):
        if language == "console":
            steps += commands_of(block)
        else:
            steps.append(f"{shlex.quote(sys.executable)} -W ignore -c {shlex.quote(declarations() + block)}")
    run_each(steps, tmp_path)
    assert np.load(tmp_path / "features.npz")["input_features"].shape == (16, 80, 100)
    assert np.load(tmp_path / "decoder.npz")["encoder_hidden_states"].shape == (16, 50, 32)


def test_every_flag_that_a_page_names_is_a_flag() -> None:
    from onnxprune.cli.app import app, register

    register()
    group = typer.main.get_command(app)
    commands = [group, *group.commands.values()]  # type: ignore[attr-defined]
    flags = {name for command in commands for flag in command.params for name in (*flag.opts, *flag.secondary_opts)}
    flags |= {"--help", "--help-all"}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line.split("|")[-1] if "| onnxprune" in line else line for line in text.splitlines()]
        for line in lines:
            if line.strip().startswith("onnxprune "):
                unknown = set(re.findall(r"(?<=\s)--?[a-z][a-z0-9-]*", line.split("#")[0])) - flags
                assert not unknown, f"{page.name}: {line.strip()}: {unknown}"
