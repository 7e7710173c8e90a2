"""What work takes on this machine is measured on small graphs: every kind of work, and the steps of counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxprune.cli import main
from onnxprune.passes.tile_ways import Costs
from onnxprune.runtime import tune as module
from onnxprune.runtime.probes import channel_probes, graphs_of_probes
from onnxprune.runtime.tune import least_squares_above_zero, tune
from onnxprune.selection.rounding import conv_block
from onnxprune.structure.costs import work_of
from onnxprune.structure.figures import BUILT_IN, KINDS, figures_file, figures_in_use
from onnxprune.structure.machine import processor


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return figures_file()


def test_every_graph_is_right_and_every_kind_is_measured() -> None:
    kinds = set()
    for _, probe in graphs_of_probes():
        onnx.checker.check_model(probe.model, full_check=True)
        for node, shapes in probe.nodes.values():
            work = work_of(node, shapes, 16)
            assert work is not None
            kinds.add(work[0])
    assert kinds == set(KINDS)


def test_this_machine_is_measured() -> None:
    told: list[str] = []
    figures = tune(told.append, runs=1)
    assert "products of matrices" in told and set(figures.kinds) == set(KINDS)
    assert all(number >= 0 for work in figures.kinds.values() for number in work)
    assert all(any(figures.kinds[kind]) for kind in ("few", "pointwise", "kernel", "product"))
    assert figures.block in (4, 8, 16, 32) and figures.step in (4, 8, 16, 32)
    assert (figures.processor, figures.onnxruntime) == (processor(), onnxruntime.__version__)


@pytest.mark.parametrize("step", [4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {count: 1000.0 + 50 * (-(-count // step) * step) for count in channel_probes()}
    monkeypatch.setattr(module, "_profile", lambda probe, runs: {"": probe})
    assert module._step_of(times, 1) == step  # type: ignore[arg-type]


def test_no_figure_is_below_zero() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.uniform(0, 1, (40, 4))
    exact = np.array([0.0, 2.0, 0.5, 0.0])
    np.testing.assert_allclose(least_squares_above_zero(matrix, matrix @ exact), exact, atol=1e-12)
    pulled = least_squares_above_zero(matrix, matrix @ np.array([1.0, -1.0, 1.0, 0.0]))
    assert (pulled >= 0).all() and pulled[1] == 0


def test_the_command_keeps_figures_which_tiles_and_rounding_use(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["tune", *arguments])
        assert left.value.code == 0
        return capsys.readouterr().out

    once = tune(runs=1)
    monkeypatch.setattr(module, "tune", lambda tell: once)
    assert str(cache) in run().replace("\n", "") and figures_in_use() == once
    assert conv_block() == once.block and Costs.of(figures_in_use()) != Costs()
    content = json.loads(run("--json"))
    assert content["format"] == "onnxprune-tune/1" and content["kinds"]["product"] == list(once.kinds["product"])
    assert "built-in" in run("--forget") and figures_in_use() is BUILT_IN
    assert conv_block() == 16 and Costs.of(figures_in_use()) == Costs()
