"""Figures say at which shapes and on which machine they were taken, and where a result is slower or no smaller."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import refused, run
from onnx import TensorProto, helper, numpy_helper

from onnxprune.pipeline.result import shortcomings
from onnxprune.pipeline.run import prune


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Conv and a pool over an image of any side."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    info = helper.make_tensor_value_info
    weights = {"w": (16, 3, 3, 3), "v": (4, 16, 1, 1)}
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, ["batch", 3, "h", "w_"])],
        [info("y", TensorProto.FLOAT, ["batch", 4, "h", "w_"])],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return content


def test_every_command_counts_at_the_shape_that_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    macs = 20 * 30 * (16 * 27 + 4 * 16)
    shape = ("--input-shape", "x:1x3x20x30")
    pruned = answer(capsys, model, "--structure", "channels", "--sparsity", "0.3", "--round-to", "none", *shape)
    assert answer(capsys, "inspect", model, *shape)["macs"] == pruned["before"]["macs"] == macs
    assert pruned["input_shapes"] == {"x": [1, 3, 20, 30]}
    compared = answer(capsys, "compare", model, pruned["output"], *shape)
    assert compared["before"]["macs"] == macs and compared["after"]["macs"] == pruned["after"]["macs"] < macs
    assert run("inspect", model, *shape) == 0
    assert "x [1, 3, 20, 30]" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("shape", "word"),
    [("x:1x4x8x8", "declared as"), ("x", "looks like"), ("z:1", "no input"), ("x:1x3x0x8", "has no numbers"),
     ("x:1x3x999999999x8", "has no numbers"), ("x:1x3x8", "declared as")],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shape: str, word: str
) -> None:
    for command in ([model, "--sparsity", "0.5"], ["inspect", model], ["compare", model, model]):
        assert word in refused(capsys, tmp_path, *command, "--input-shape", shape)


def test_latency_has_milliseconds_and_the_machine(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.html"
    latency = answer(capsys, model, "--sparsity", "0.5", "--report", report)["latency"]
    assert latency["after_ms"] / latency["before_ms"] == pytest.approx(latency["ratio"])
    assert latency["threads"] == 1 and latency["processor"] and latency["onnxruntime"]
    assert f"ONNX Runtime {latency['onnxruntime']}" in report.read_text()


def test_what_is_no_gain_is_said(model: Path) -> None:
    loaded = onnx.load(model)
    array = numpy_helper.to_array(loaded.graph.initializer[0]).copy()
    array[:8] = 0
    loaded.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    notes = " ".join(prune(loaded, sparsity=0.6, pack="auto", latency=False, ends="prune").notes)
    assert "216 numbers of the original were zero before this run" in notes
    notes = " ".join(prune(str(model), sparsity=0.0, pack="auto", latency=False, ends="prune").notes)
    assert "nothing was packed" in notes


def test_a_file_that_grew_a_slower_one_and_few_multiply_adds_are_told(model: Path) -> None:
    result = prune(str(model), sparsity=0.3, structure="channels", round_to="none")
    verdict = result.verdict
    assert verdict is not None and verdict.latency is not None
    slow = replace(verdict.latency, before_ms=1.0, after_ms=2.0, ratio=2.0)
    after = replace(verdict.before, file_bytes=2 * verdict.before.file_bytes)
    worse = replace(result, verdict=replace(verdict, after=after, latency=slow, latency_ratio=2.0))
    told = " ".join(shortcomings(worse))
    assert "2.00 of its latency" in told and "it grew from" in told and "saves only 0.0% of the multiply-adds" in told
    partly = replace(verdict.before, uncounted=("MatMul in_a_loop",))  # what it saved may lie in what is not counted
    counted_in_part = replace(result, verdict=replace(verdict, before=partly, after=partly))
    assert "saves only" not in " ".join(shortcomings(counted_in_part))
