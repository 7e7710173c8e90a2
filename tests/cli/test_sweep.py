"""``onnxprune sweep``: one table, one page, one model that keeps the limits; refusals before any work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import refused, run
from small_models import random, two_layers

from onnxprune import model_io


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    model_io.save(two_layers(32), path)
    return path


GRID = ("--sparsity", "0.3,50%", "--structure", "channels,2:4", "--round-to", "none")


def test_a_table_a_page_and_the_best_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = model.with_name("labelled.npz")
    np.savez(labelled, x=random(24, 8), label=np.arange(24) % 4)
    data = ("--eval-data", labelled)
    assert run("sweep", model, *GRID, *data, "--pick", "size<=0.9,metric_drop<=1") == 0
    out = capsys.readouterr().out
    assert "accuracy" in out and "2:4" in out and "*" in out
    folder = model.with_name("net.sweep")
    assert {path.name for path in folder.iterdir()} == {"results", "sweep.html", "picked.onnx", "picked.json"}
    assert len(list((folder / "results").iterdir())) == 3
    again = refused(capsys, model.parent, "sweep", model, *GRID, *data, "--pick", "size<=0.9")
    assert "picked.onnx' exists already" in again


def test_the_commands_of_the_page_write_the_models(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", model, *GRID, "--no-page", "--json", "-o", model.with_name("out")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["format"] == "onnxprune-sweep/1" and answer["page"] is None and len(answer["trials"]) == 3
    one = answer["trials"][0]
    words = shlex.split(one["command"])
    assert run(*words[1:], "--json") == 0
    assert json.loads(capsys.readouterr().out)["output_change"] == one["figures"]["output_change"]
    assert Path(words[words.index("-o") + 1]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sparsity", "0.3,2"), "--sparsity"),
        (("--sparsity", "0.3", "--pick", "latency"), "--pick: a limit looks like"),
        (("--sparsity", "0.3", "--pick", "metric_drop<=1%"), "give --eval-data"),
        (("--sparsity", "0.3", "--jobs", "0"), "--jobs"),
        (("--sparsity", "0.3", "--calibration", "none.npz"), "none.npz"),
        (("--structure", "channels"), "--sparsity"),
    ],
)
def test_refusals(model: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, model.parent, "sweep", model, *arguments)


def test_refusals_of_models(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = model.with_name("none.onnx")
    assert "does not exist" in refused(capsys, model.parent, "sweep", missing, "--sparsity", "0.3")
    assert "one at a time" in refused(capsys, model.parent, "sweep", model, model, "--sparsity", "0.3")


def test_settings_that_all_fail_leave_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, model.parent, "sweep", model, "-s", "0.3,0.5", "--structure", "blocks", status=1)
    assert "no setting gave a model" in said


def test_a_page_without_its_packages(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.report.sweep._NEEDED", ("altair_of_the_moon",))
    assert "onnxprune[sweep]" in refused(capsys, model.parent, "sweep", model, "--sparsity", "0.3")
    assert run("sweep", model, "--sparsity", "0.3", "--no-page") == 0
