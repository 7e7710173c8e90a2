"""A gate that fails writes no model, and keeps the evidence: what was measured, as JSON, report and record."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import refused, run
from small_models import two_layers

from onnxprune import model_io

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    model_io.save(two_layers(32), path)
    return path


def test_a_missed_limit_keeps_json_report_and_record(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = model.parent, model.with_name("out.onnx")
    beside = ("--record", folder / "record.json", "--report", folder / "report.html", "--json")
    assert run(model, "-s", 0.5, "-o", out, "--require", "size<=1%", "--require", "sparsity>=0.4", *beside) == 1
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["output"] is None and "size is 1 (wanted <= 0.01)" in answer["missed"]
    assert "no model was written" in printed.err and printed.err.count("\n") == 1
    assert json.loads((folder / "record.json").read_text())["figures"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    page = (folder / "report.html").read_text()
    assert "Limits missed: size is 1" in page and "Limits kept" not in page
    assert {path.name for path in folder.iterdir()} == {"net.onnx", "record.json", "report.html"}


def test_a_limit_of_a_target_keeps_the_evidence_too(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--structure", "channels", "--target-macs", "50%", "--round-to", "none", "--require", "size<=1%", "--json")
    assert run(model, *flags, "--record", model.with_name("record.json")) == 1
    assert "size is" in json.loads(capsys.readouterr().out)["missed"]
    assert {path.name for path in model.parent.iterdir()} == {"net.onnx", "record.json"}


def test_without_evidence_asked_for_nothing_is_written(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "size is 1" in refused(capsys, model.parent, model, "-s", 0.5, "--require", "size<=1%", status=1)


def test_a_limit_that_holds_says_nothing_of_missing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "-s", 0.5, "--require", "size<=100%", "--json") == 0
    assert "missed" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("limit", "status"), [("size<=1%", 1), ("size<=100%", 0)])
def test_the_step_of_the_action(limit: str, status: int, model: Path) -> None:
    folder = model.parent
    (folder / "recipe.toml").write_text('model = "net.onnx"\noutput = "out.onnx"\nsparsity = 0.5\n')
    (folder / "bin").mkdir()
    for name, command in (("onnxprune", f'{sys.executable} -m onnxprune "$@"'), ("python", f'{sys.executable} "$@"')):
        (folder / "bin" / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (folder / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {
        **os.environ, "PYTHONPATH": path, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "RECIPE": str(folder / "recipe.toml"), "REQUIRE": f"sparsity>=40%\n{limit}\n", "ARGUMENTS": "--seed 1",
        "RUNNER_TEMP": str(folder), "GITHUB_OUTPUT": str(folder / "outputs"),
    }  # fmt: skip
    step = [str(ROOT / ".github" / "prune_within_limits.sh")]
    done = subprocess.run(step, env=variables, cwd=folder, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    outputs = dict(line.split("=", 1) for line in (folder / "outputs").read_text().splitlines())
    evidence = folder / "onnxprune-evidence"
    assert {file.name for file in evidence.iterdir()} == {"pruning.json", "record.json", "report.html"}
    assert json.loads((evidence / "pruning.json").read_text())["recipe"]["seed"] == 1
    assert outputs["evidence"] == str(evidence) and bool(outputs["model"]) == (status == 0)
    assert (folder / "out.onnx").exists() == (status == 0)


def test_the_action_uses_its_inputs_and_tells_what_the_step_writes() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    (prune,) = [step for step in action["runs"]["steps"] if step.get("id") == "prune"]
    script = ROOT / ".github" / "prune_within_limits.sh"
    assert action["runs"]["using"] == "composite" and str(script.relative_to(ROOT)) in prune["run"]
    assert os.access(script, os.X_OK)
    text = (ROOT / "action.yml").read_text()
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(action["inputs"])
    assert all(f"${{{name}" in script.read_text() or f"${name}" in script.read_text() for name in prune["env"])
    written = set(re.findall(r'echo "(\w+)=', script.read_text()))
    assert set(re.findall(r"steps\.prune\.outputs\.(\w+)", text)) == written == {*action["outputs"], "evidence"}
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    uses = [step for job in workflow["jobs"].values() for step in job["steps"] if step.get("uses") == "./"]
    assert uses and all(set(step["with"]) <= set(action["inputs"]) for step in uses)


def test_inspect_takes_several_models(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_io.save(two_layers(16), model.with_name("other.onnx"))
    assert run("inspect", model, model.with_name("other.onnx")) == 0
    out = capsys.readouterr().out
    assert "net.onnx" in out and "other.onnx" in out
