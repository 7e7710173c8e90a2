"""The leaderboard: a run that was cut off goes on, a tool that is missing says so, ratios reach their cost."""

from __future__ import annotations

from pathlib import Path

import leaderboard
import leaderboard_methods
import numpy as np
import onnx_ir as ir
import pytest
from leaderboard import key_of, measured, missing
from leaderboard_methods import COSTS, METHODS, Absent, Cost, Made, Method, at_work, macs_of
from leaderboard_page import page, plot, spread

from onnxprune import model_io
from tests.small_models import two_layers

UNITS = next(cost for cost in COSTS if cost.units)
MEASURED = {"work": 0.8, "latency": 0.9, "bytes": 0.7, "seconds": 2.0}


class Small:
    """A network whose score is 90."""

    def __init__(self, folder: Path) -> None:
        self.paths = {"small": folder / "small.onnx"}
        model_io.save(two_layers(64), self.paths["small"], force=True)

    def calibration(self, model: ir.Model, draw: int) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(draw).standard_normal((64, 8)).astype(np.float32)}

    def score(self, model: ir.Model) -> float:
        return 90.0


def test_what_is_there_is_not_measured_again() -> None:
    everything = missing("net", ["onnxprune", "magnitude"], [0, 1, 2], set())
    assert len(everything) == len(COSTS) * (3 + 1)  # magnitude looks at no data: once
    name, cost, draw = everything[0]
    entry = {"network": "net", "method": name, "cost": cost.name, "draw": draw}
    left = missing("net", ["onnxprune", "magnitude"], [0, 1, 2], {key_of(entry)})
    assert everything[0] not in left and len(left) == len(everything) - 1
    some = missing("net", ["onnxprune"], [0], set(), [COSTS[1].name])
    assert some == [("onnxprune", COSTS[1], 0)]


def test_a_ratio_is_found_that_just_leaves_the_work_asked_for() -> None:
    model = two_layers(64)

    def cut(ratio: float) -> ir.Model:
        return two_layers(max(1, round(64 * (1 - ratio))))

    for share in (0.8, 0.5, 0.33):
        assert share - 0.02 < macs_of(at_work(cut, macs_of(model), share)) / macs_of(model) <= share


def test_a_tool_that_cannot_save_enough_says_so() -> None:
    with pytest.raises(Absent, match="cannot save so much"):
        at_work(lambda ratio: two_layers(64), macs_of(two_layers(64)), 0.5)


def test_a_run_gives_all_figures(tmp_path: Path) -> None:
    entry = measured(Small(tmp_path), "small", "onnxprune", UNITS, 0)
    assert entry["score"] == 90 and entry["work"] <= UNITS.amount and entry["bytes"] < 1 and entry["difference"] < 1e-5
    zeros = measured(Small(tmp_path), "small", "magnitude", Cost("90% of the weights", False, 0.9), 0)
    assert zeros["work"] == 1 and zeros["bytes"] < 0.7


def test_what_is_missing_or_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> Made:
        raise ValueError("no such thing\nand more")

    monkeypatch.setitem(METHODS, "missing", Method(broken, package="no_such_package"))
    monkeypatch.setitem(METHODS, "broken", Method(broken))
    small = Small(tmp_path)
    assert measured(small, "small", "missing", UNITS, 0)["why"] == "not installed"
    assert measured(small, "small", "broken", UNITS, 0)["why"] == "fails: ValueError: no such thing"
    assert "no PyTorch module" in str(_reason(tmp_path))


def _reason(folder: Path) -> Absent:
    with pytest.raises(Absent) as reason:
        leaderboard_methods._torch_pruning(Small(folder).paths["small"], UNITS, {}, None)
    return reason.value


def test_weights_of_a_file_go_into_a_module_of_the_same_names() -> None:
    torch = pytest.importorskip("torch")
    model = two_layers(16)
    module = torch.nn.Module()
    module.register_parameter("w1", torch.nn.Parameter(torch.zeros(8, 16)))
    filled = leaderboard_methods.with_weights(module, model)
    assert np.allclose(filled.w1.detach().numpy(), model.graph.initializers["w1"].const_value.numpy())
    module.register_parameter("other", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(Absent, match="'other'"):
        leaderboard_methods.with_weights(module, model)


def test_the_page_holds_means_deviations_and_reasons(tmp_path: Path) -> None:
    common = {"network": "net", "cost": UNITS.name, **MEASURED}
    entries = [
        {"network": "net", "method": "dense", "cost": "", "draw": 0, "score": 91.0},
        *({**common, "method": "onnxprune", "draw": d, "score": 89.0 + d, "difference": 1e-7} for d in range(3)),
        {"network": "net", "method": "onnxsim", "cost": UNITS.name, "draw": 0, "why": "fails: ValueError"},
        {"network": "net", "method": "onnxsim", "cost": COSTS[1].name, "draw": 0, **MEASURED, "score": 1.0},
        {"network": "net", "method": "Torch-Pruning", "cost": UNITS.name, "draw": 0, "why": "not installed"},
    ]
    content = {"date": "2026-01-01", "versions": {"onnxprune": "1.0"}, "entries": entries}
    text = page(content)
    assert (
        "Dense: 91.0." in text
        and f"| {UNITS.name} | onnxprune | 90.0 ± 0.8 | 0.80 | 0.90 | 0.70 | 2.0 | 1e-07 |" in text
    )
    assert f"| {UNITS.name} | onnxsim | fails: ValueError |" in text
    assert "Torch-Pruning: not installed." in text and "| Torch-Pruning |" not in text
    pytest.importorskip("matplotlib")
    plot(content, tmp_path / "plot.svg")
    first = (tmp_path / "plot.svg").read_bytes()
    plot(content, tmp_path / "plot.svg")
    assert first == (tmp_path / "plot.svg").read_bytes() and b"net: units" in first or b"svg" in first


def test_correlations_have_three_digits() -> None:
    assert spread([0.8, 0.82]) == "0.810 ± 0.010" and spread([91.26]) == "91.3"


def test_results_of_missing_tools_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard, "RESULTS", tmp_path / "leaderboard.json")
    entries = [{"network": "net", "method": "onnxprune", "cost": "", "draw": 0, "why": "not installed"}]
    leaderboard.write(entries)
    assert leaderboard.read() == []
