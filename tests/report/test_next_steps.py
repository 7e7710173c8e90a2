"""What the report proposes to do next: it follows from the figures, and each command runs as it is printed."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from small_models import conv_net

import onnxprune
from onnxprune import Result, model_io
from onnxprune.recipe.recipe import make_recipe
from onnxprune.report.next_steps import Files, next_steps

FILES = Files("a model.onnx", "out.onnx")


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    model = conv_net(16)
    (value,) = model.graph.inputs
    inputs = np.random.default_rng(0).standard_normal((32, *(int(d) for d in value.shape[1:]))).astype(np.float32)
    return {str(value.name): inputs, "label": np.arange(32) % 3}


@pytest.fixture(scope="module")
def result(arrays: dict[str, Any]) -> Result:
    return onnxprune.prune(conv_net(16), sparsity=0.5, structure="channels", eval_data=arrays, latency=False)


def with_drop(result: Result, drop: float, **settings: Any) -> Result:
    assert result.verdict is not None and result.verdict.metric is not None
    metric = replace(result.verdict.metric, before=0.9, after=0.9 - drop)
    recipe = make_recipe(sparsity=0.5, structure="channels", **settings)
    return replace(result, verdict=replace(result.verdict, metric=metric), recipe=recipe)


def told(result: Result, files: Files = FILES) -> list[list[str]]:
    return [shlex.split(step.command) for step in next_steps(result, files)]


def test_what_lost_little_may_lose_more_and_what_lost_much_is_repaired(result: Result) -> None:
    more, _ = told(with_drop(result, 0.005))
    assert more[more.index("--max-drop") + 1] == "0.01" and "--sparsity" not in more
    lost = told(with_drop(result, 0.2))
    assert lost[0][-2:] == ["--calibration", "inputs.npz"] and lost[0][4:6] == ["--sparsity", "0.5"]
    trained = told(with_drop(result, 0.2, retrain={"epochs": 2}), replace(FILES, data="labelled.npz"))
    assert "--iterations" in trained[0] and trained[0][-2:] == ["--data", "labelled.npz"]
    longer = told(with_drop(result, 0.2, retrain={"epochs": 2}, iterations=3), replace(FILES, data="labelled.npz"))
    assert longer[0][longer[0].index("--epochs") :][:2] == ["--epochs", "6"]


def test_a_missed_limit_leads_to_a_sweep_of_smaller_cuts(result: Result) -> None:
    missed = with_drop(result, 0.2, require=["metric_drop<=0.01"])
    (sweep,) = told(missed, Files("net.onnx"))
    assert sweep[:4] == ["onnxprune", "sweep", "net.onnx", "--sparsity"]
    assert "--require" not in sweep
    assert sweep[-2:] == ["--pick", "metric_drop<=0.01"]
    assert all(0 < float(share) < 0.5 for share in sweep[4].split(","))


def test_without_a_metric_it_is_to_be_measured(result: Result) -> None:
    assert result.verdict is not None
    plain = replace(result, verdict=replace(result.verdict, metric=None))
    assert ["onnxprune", "compare", "a model.onnx", "out.onnx", "--eval-data", "labelled.npz"] in told(plain)
    assert told(plain)[-1] == ["onnxprune", "verify", "a model.onnx", "out.onnx"]
    assert told(plain, Files("a model.onnx")) == [line for line in told(plain) if line[1] not in ("compare", "verify")]


@pytest.mark.parametrize(
    "flags",
    [
        ["--structure", "channels", "--eval-data", "labelled.npz"],
        ["--eval-data", "labelled.npz", "--retrain", "--steps", "1", "--data", "labelled.npz"],
        ["--structure", "channels", "--calibration", "inputs.npz"],
        ["--structure", "channels", "--eval-data", "labelled.npz", "--require", "size<=0.1"],
    ],
)
def test_each_command_runs_as_it_is_printed(
    flags: list[str], arrays: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model_io.save(conv_net(16), "a net.onnx")
    np.savez("labelled.npz", **arrays)
    np.savez("inputs.npz", **{name: array for name, array in arrays.items() if name != "label"})
    gate = "--require" in flags
    assert run("a net.onnx", "--sparsity", 0.5, "--report", "r.html", *flags) == int(gate)
    page = (tmp_path / "r.html").read_text()
    section = page[page.index("What to do next") : page.index("<h2>Layers")]
    commands = [shlex.split(html.unescape(text)) for text in re.findall(r"<pre[^>]*>(.*?)</pre>", section)]
    assert commands and ("sha256 of what was written" in page) == (not gate)
    for _, *command in commands:
        status = run(*command)
        said = capsys.readouterr().err
        assert status == 0 or (status == 1 and "no model was written" in said), said
