"""An exception in a user's function, or sys.exit, is a sentence that names the function and the line; status 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import refused
from model_io_models import mlp, stored

FAILURES = {
    "raise ValueError('no\\x1b[2J luck')": "no\\x1b[2J luck",
    "import sys; sys.exit(0)": "exit",
    "exit('bye')": "bye",
    "open('nowhere.txt')": "FileNotFoundError",
    "__import__('numpy').zeros(3).reshape(2, 2)": "cannot reshape",
    "assert False": "AssertionError",
    "raise type('Odd', (BaseException,), {})('boo')": "Odd: boo",
}
USES = {
    "criterion": ("def mine(weight, rng):\n    {}\n", ["-s", 0.5, "--criterion", "mine:mine"]),
    "metric": (
        "def mine(outputs, targets):\n    {}\n",
        [
            "-s",
            0.5,
            "--eval-data",
            "data.npz",
            "--metric",
            "mine:mine",
            "--retrain",
            "--data",
            "data.npz",
            "--steps",
            1,
        ],
    ),
    "schedule": (
        "def mine(step, steps, initial, final):\n    {}\n",
        ["-s", 0.5, "--iterations", 3, "--schedule", "mine:mine"],
    ),
    "loss": (
        "def mine(outputs, targets):\n    {}\n",
        ["-s", 0.5, "--retrain", "--data", "data.npz", "--steps", 1, "--loss", "mine:mine"],
    ),
    "data": (
        "def mine():\n    {}\n    yield None\n",
        ["-s", 0.5, "--retrain", "--data", "mine:mine", "--steps", 1],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    stored(tmp_path, mlp(width=16))
    x = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, label=np.arange(16) % 4)
    return tmp_path


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("statement", FAILURES)
def test_the_function_and_the_line_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], use: str, statement: str
) -> None:
    if use in ("metric", "loss") and statement not in list(FAILURES)[:2]:
        pytest.skip("two of them show it, and training takes its time")
    text, flags = USES[use]
    (folder / "mine.py").write_text(text.format(statement))
    sentence = refused(capsys, folder, "model.onnx", *flags)
    assert "mine" in sentence and "line 2" in sentence
    assert FAILURES[statement].lower() in sentence.lower()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "line 2"),
        ("def mine(:\n", "SyntaxError"),
        ("import nowhere_to_be_found\n", "nowhere_to_be_found"),
        ("mine = 3\n", "no function 'mine'"),
    ],
)
def test_a_module_that_cannot_be_imported(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (folder / "mine.py").write_text(text)
    assert words in refused(capsys, folder, "model.onnx", "-s", 0.5, "--criterion", "mine:mine")


ANSWERS = ("None", "'good'", "float('nan')", "1j", "__import__('numpy').zeros(3)", "[]")
ANSWERED = {
    "criterion": ["-s", 0.5, "--criterion", "mine:mine"],
    "criterion of units": ["-s", 0.5, "--structure", "channels", "--criterion", "mine:mine"],
    "allocation": ["-s", 0.5, "--allocation", "mine:mine"],
    "allocation of units": ["-s", 0.5, "--structure", "channels", "--allocation", "mine:mine"],
    "loss": ["-s", 0.5, "--retrain", "--data", "data.npz", "--steps", 1, "--loss", "mine:mine"],
    "schedule": ["-s", 0.5, "--iterations", 3, "--schedule", "mine:mine"],
}


@pytest.mark.parametrize("use", ANSWERED)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_function_returns_is_judged(
    folder: Path, capsys: pytest.CaptureFixture[str], use: str, answer: str
) -> None:
    if (use, answer) == ("allocation", "None"):
        pytest.skip("None leaves the shares to the ranking of all weights")
    if use == "loss" and answer not in ANSWERS[1:3]:
        pytest.skip("two of them show it, and training takes its time")
    (folder / "mine.py").write_text(f"def mine(*given):\n    return {answer}\n")
    sentence = refused(capsys, folder, "model.onnx", *ANSWERED[use])
    assert "mine:mine" in sentence and "inside onnxprune" not in sentence
