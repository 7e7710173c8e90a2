"""What reaches a terminal: no name of a model or file commands it, or counts as markup; --json is strict JSON."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from hypothesis import given
from hypothesis import strategies as st
from model_io_models import mlp, stored
from onnx import helper, numpy_helper
from rich.progress import Progress, TextColumn
from rich.table import Table

from onnxprune.cli import console as consoles
from onnxprune.report.text import shown, visible

HOSTILE = "w\x1b]0;gotcha\x07\x1b[2J\u202eedoc[/x][red]\r\n\x9b31m"
ACTS = ("\x1b", "\x07", "\u202e", "\r", "\x9b")


def hostile(folder: Path) -> Path:
    proto = mlp(width=16)
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = proto.graph.node[0].name = HOSTILE
    (folder / "[/x]\x1b[2J").mkdir(parents=True)
    return stored(folder / "[/x]\x1b[2J", proto)


def test_names_are_shown_harmlessly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = hostile(tmp_path)
    out, page = tmp_path / "out.onnx", tmp_path / "page.html"
    run("inspect", path)
    run(path, "-o", out, "-s", 0.5, "--report", page)
    run("compare", path, out)
    run("verify", path, out)
    run("sensitivity", path)
    run(path, "-o", out, "-s", 0.5)  # refused: it exists
    run("inspect", tmp_path / "no\x1b[2J[/y].onnx")
    printed = capsys.readouterr()
    assert "\\x1b]0;gotcha\\x07" in printed.out and "[/x]" in printed.out and "[/y]" in printed.err
    for text in (printed.out, printed.err, page.read_text()):
        assert not [character for character in ACTS if character in text]


def test_bytes_that_are_no_text_in_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(str(tmp_path / "net") + "\udcff.onnx")
    path.write_bytes(mlp(width=16).SerializeToString())
    out, record, page = (Path(str(tmp_path / name) + "\udcfe") for name in ("o", "r", "h"))
    assert run(path, "-o", out, "-s", 0.5, "--record", record, "--report", page) == 0
    assert run("inspect", path) == 0
    assert "net\\udcff.onnx" in capsys.readouterr().out
    assert json.loads(record.read_text())["source"]["file"].endswith("net\udcff.onnx")


@given(st.text())
def test_any_text_is_shown_as_one_line_without_markup(text: str) -> None:
    screen = io.StringIO()
    console = consoles.SafeConsole(file=screen, force_terminal=True, width=10_000, color_system=None)
    console.print(f"[b]{shown(text)}[/]", soft_wrap=True, highlight=False)
    plain = screen.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert plain.rstrip("\n").rstrip() == visible(text).rstrip()
    assert plain.count("\n") == 1


def test_the_console_itself_lets_nothing_act() -> None:
    screen = io.StringIO()
    console = consoles.SafeConsole(file=screen, force_terminal=True, width=200)
    table = Table(title="\x1b[2J")
    table.add_row("\x07")
    console.print(table)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task("\x1b]0;x\x07[/z]")
        progress.refresh()
    shown_text = screen.getvalue()
    assert "\\x1b[2J" in shown_text
    assert "\x1b]0" not in shown_text and "\x07" not in shown_text


@pytest.mark.parametrize("factor", [np.inf, np.nan, 0.0])
def test_json_is_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float) -> None:
    proto = mlp(width=16)
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(helper.make_node("Mul", ["z", "factor"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    path, other = stored(tmp_path, proto), stored(tmp_path, mlp(width=16), "other.onnx")
    compared = run("compare", other, path, "--json")
    texts = [capsys.readouterr().out] if compared == 0 else []
    record = tmp_path / "record.json"
    pruned = run(path, "-o", tmp_path / "out.onnx", "-s", 0.5, "--json", "--record", record)
    texts += [capsys.readouterr().out, record.read_text()] if pruned == 0 else []
    for text in texts:
        json.loads(text, parse_constant=pytest.fail)


def test_figures_that_are_not_finite_are_null_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    content = {"a": {"b": [1.0, np.float32("nan")]}, "c": float("-inf"), "d": np.int64(3), "notes": ["x"]}
    consoles.print_json("test", content)
    read = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert read["a"] == {"b": [1.0, None]} and read["c"] is None and read["d"] == 3
    assert read["notes"] == ["x", "not finite, so null here: a.b[1], c"]


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() in (0, 2)
    assert "Usage" in capsys.readouterr().out


def test_an_error_of_our_own_is_a_sentence_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.pipeline.inspect.inspect", partial(getattr, None, "[/thing]\x1b[2J"))
    assert run("inspect", stored(tmp_path)) == 2
    sentence = capsys.readouterr().err
    assert "TypeError" in sentence and "please report" in sentence and "Traceback" not in sentence
    monkeypatch.setenv("ONNXPRUNE_TRACEBACK", "1")
    with pytest.raises(TypeError):
        run("inspect", stored(tmp_path))
