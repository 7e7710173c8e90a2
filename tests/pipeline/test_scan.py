"""A scan of sensitivity: each layer, or group of units, is pruned alone; what is measured is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import array, conv_net, random, set_array, two_layers

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.cli import main
from onnxprune.errors import DataError, RecipeError

MLP = Path(__file__).resolve().parents[2] / "models" / "digits_mlp.onnx"
DIGITS = MLP.with_suffix(".npz")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


def test_a_metric_is_that_of_the_model_with_one_layer_pruned() -> None:
    found = onnxprune.sensitivity(MLP, eval_data=DIGITS, levels=(0.5, 0.95))
    assert found.measured == "accuracy" and found.dense > 0.98
    assert found.table.levels == (0.5, 0.95) and len(found.table.names) == 3
    name = found.table.names[0]
    alone = onnxprune.prune(MLP, sparsity=0.95, only=(name,), ends="prune", eval_data=DIGITS, latency=False)
    assert alone.verdict is not None and alone.verdict.metric is not None
    assert found.table.errors[0, 1] == pytest.approx(alone.verdict.metric.after)


def test_the_error_of_the_outputs_is_measured_without_labels() -> None:
    model, x = two_layers(64), random(50, 8)
    found = onnxprune.sensitivity(model, calibration={"x": x}, levels=[0.5])
    assert found.measured == "output error" and found.dense == 0
    pruned = onnxprune.prune(model, sparsity=0.5, only=("w1",), ends="prune", latency=False).model
    a, b = (runtime.run(runtime.make_session(m), {"x": x})["y"] for m in (model, pruned))
    assert found.table.errors[0, 0] == pytest.approx(((a - b) ** 2).sum() / (a**2).sum(), rel=1e-4)


def test_groups_of_units_are_scanned_by_zeroing_them() -> None:
    model = conv_net(16)
    weights = array(model, "w2")
    weights[:8] *= 1e-3  # half of the second group matters little
    set_array(model, "w2", weights)
    found = onnxprune.sensitivity(model, calibration={"x": random(20, 3, 12, 12)}, structure="channels", levels=[0.5])
    assert found.table.names == ("w1[0] (channels)", "w2[0] (channels)")
    first, second = found.table.errors[:, 0]
    assert second < 1e-3 < first


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_command_prints_a_table_or_json_and_draws(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    model, plot = tmp_path / "net.onnx", tmp_path / f"curves.{kind}"
    model_io.save(two_layers(64), model)
    np.savez(tmp_path / "x.npz", x=random(30, 8))
    flags = (model, "--calibration", tmp_path / "x.npz", "--levels", "0.2,0.8", "--plot", plot)
    assert run("sensitivity", *flags, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["format"] == "onnxprune-sensitivity/1" and content["levels"] == [0.2, 0.8]
    assert [row["name"] for row in content["rows"]] == ["w1", "w2"]
    assert all(low < high for low, high in (row["values"] for row in content["rows"]))
    start = plot.read_bytes()[:200]
    assert {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[kind] in start + plot.read_bytes()[:2000]
    assert run("sensitivity", *flags, "--force") == 0  # replaces the plot
    assert "w2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message", "error"),
    [
        ({}, "nothing to measure on: give --calibration", RecipeError),
        ({"calibration": {"x": random(9, 8)}, "levels": [0.5, 1.5]}, "--levels: shares between 0 and 1", RecipeError),
        ({"calibration": {"x": random(9, 8)}, "structure": "2:4"}, "--structure: a scan is of weights", RecipeError),
        ({"calibration": {"x": random(9, 8)}, "criterion": "taylor"}, "--criterion taylor needs", RecipeError),
        ({"calibration": {"x": random(9, 5)}}, "x", DataError),
        ({"eval_data": DIGITS}, "x", DataError),
    ],
)
def test_what_cannot_be_scanned_is_refused(settings: dict[str, Any], message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message) as caught:
        onnxprune.sensitivity(two_layers(16), **settings)
    assert "\n" not in str(caught.value)


def test_a_plot_of_an_unknown_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sensitivity", MLP, "--eval-data", DIGITS, "--plot", tmp_path / "curves.bmp") == 2
    assert "has to end in .png, .svg, .pdf" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
