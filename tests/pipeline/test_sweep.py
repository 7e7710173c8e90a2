"""A sweep: every combination once, those that contradict themselves left out, results kept, the best picked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import random, two_layers

import onnxprune
from onnxprune import model_io
from onnxprune.errors import DataError, RecipeError, VerificationError
from onnxprune.pipeline import sweep as module
from onnxprune.pipeline.sweep import sweep
from onnxprune.pipeline.sweep_grid import combinations
from onnxprune.pipeline.trials import COSTS, Trial, best_first, front
from onnxprune.recipe.recipe import make_recipe
from onnxprune.recipe.requirements import parse


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    model_io.save(two_layers(32), path)
    return path


def allow(recipe: Any) -> None:
    """Data that allow every recipe."""


# -- combinations


def test_every_combination_is_there_once() -> None:
    possible, left_out = combinations({"sparsity": "30%,0.5", "structure": ["channels", "weights"], "seed": 3}, allow)
    assert [c.label for c in possible] == ["0.3 channels", "0.3 weights", "0.5 channels", "0.5 weights"]
    assert {c.recipe.seed for c in possible} == {3} and left_out == {}


def test_a_pattern_that_sets_the_sparsity_runs_once() -> None:
    possible, left_out = combinations({"sparsity": (0.3, 0.7), "structure": "2:4,weights"}, allow)
    assert [c.label for c in possible] == ["0.5 2:4", "0.3 weights", "0.7 weights"] and left_out == {}


def test_methods_that_go_together_are_one_value() -> None:
    given = {"sparsity": 0.5, "recover": "none,least-squares+statistics"}
    assert [c.recipe.recover for c in combinations(given, allow)[0]] == [("no",), ("least-squares", "statistics")]


def test_a_contradiction_is_left_out_with_its_reason() -> None:
    given = {"sparsity": "0.5", "structure": "channels,weights", "allocation": "auto,cost"}

    def refuse(recipe: Any) -> None:
        if recipe.structure == "weights" and recipe.allocation == "cost":
            raise RecipeError("--allocation cost is of units")

    possible, left_out = combinations(given, refuse)
    assert len(possible) == 3 and left_out == {"weights cost": "--allocation cost is of units"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": "0.3,1.5"}, "--sparsity"),
        ({"sparsity": 0.5, "structure": "channels,chanels"}, "chanels"),
        ({"sparsity": ""}, "--sparsity: give a value"),
        ({"sparsity": 0.5, "criterion": "magnitude,unheard-of"}, "unheard-of"),
        ({"structure": "channels"}, "--sparsity"),
        ({"sparsity": 0.5, "colour": "red"}, "--colour"),
    ],
)
def test_a_value_that_fits_nowhere_is_refused(model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        sweep(model, model.with_name("out"), **settings)
    assert not model.with_name("out").exists()


# -- runs


def test_what_a_run_measures_is_what_prune_measures(model: Path) -> None:
    swept = sweep(model, sparsity=(0.25, 0.5), structure="channels", round_to="none")
    assert [t.figures["sparsity"] for t in swept.trials] == pytest.approx([0.25, 0.5], abs=0.02)
    alone = onnxprune.prune(model, swept.trials[1].recipe)
    assert alone.verdict is not None
    assert swept.trials[1].figures["output_change"] == alone.verdict.output_change
    assert swept.trials[1].command.startswith("onnxprune ") and "--round-to none" in swept.trials[1].command


@pytest.mark.parametrize("form", ["path", "proto", "ir"])
def test_any_form_of_a_model(model: Path, form: str) -> None:
    given: Any = {"path": str(model), "proto": model_io.to_proto(two_layers(32)), "ir": two_layers(32)}[form]
    swept = sweep(given, model.with_name("out"), sparsity=(0.3, 0.5))
    assert len(swept.trials) == 2 and not any(trial.failed for trial in swept.trials)


def test_a_run_that_fails_is_told_and_the_others_go_on(model: Path) -> None:
    swept = sweep(model, sparsity=0.5, structure=("blocks", "weights"))
    assert [bool(trial.failed) for trial in swept.trials] == [True, False]
    assert "nothing to prune by depth" in swept.trials[0].failed


def test_data_that_do_not_fit_end_the_sweep(model: Path) -> None:
    folder = model.with_name("out")
    with pytest.raises(DataError, match="nothing.npz"):
        sweep(model, folder, sparsity=(0.3, 0.5), calibration=model.with_name("nothing.npz"))
    assert not folder.exists()


def test_results_are_kept_and_only_what_is_missing_runs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, runs = model.with_name("out"), []
    real = module.prune

    def counted(*arguments: Any, **settings: Any) -> Any:
        runs.append(arguments[1].sparsity)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **settings)

    monkeypatch.setattr(module, "prune", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, folder, sparsity=(0.3, 0.5, 0.7))
    swept = sweep(model, folder, sparsity=(0.3, 0.5, 0.7))
    assert runs == [0.3, 0.5, 0.5, 0.7] and len(swept.trials) == 3
    assert sweep(model, folder, sparsity=(0.3, 0.5, 0.7)) == swept and len(runs) == 4


@pytest.mark.parametrize("change", ["setting", "model", "data", "file cut short"])
def test_another_model_setting_or_data_run_again(model: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, data = model.with_name("out"), {"x": random(16, 8)}
    sweep(model, folder, sparsity=0.5, calibration=data)
    runs: list[Any] = []
    real = module.prune
    monkeypatch.setattr(module, "prune", lambda *a, **s: runs.append(a) or real(*a, **s))
    seed = 1 if change == "setting" else 0
    if change == "model":
        model_io.save(two_layers(40), model, force=True)
    elif change == "data":
        data = {"x": np.zeros((16, 8), np.float32)}
    elif change == "file cut short":
        (file,) = (folder / "results").iterdir()
        file.write_text(file.read_text()[:-40])
    sweep(model, folder, sparsity=0.5, calibration=data, seed=seed)
    assert len(runs) == 1


def test_runs_in_other_processes_measure_the_same(model: Path) -> None:
    pytest.importorskip("joblib")
    told: list[str] = []
    side = sweep(model, jobs=2, sparsity=(0.3, 0.5), progress=told.append)
    alone = sweep(model, sparsity=(0.3, 0.5))
    assert told == ["1 of 2 done", "2 of 2 done"]
    for a, b in zip(side.trials, alone.trials, strict=True):
        assert (a.label, a.figures["output_change"]) == (b.label, b.figures["output_change"])


@pytest.mark.parametrize("wrong", ["file", "folder of other things"])
def test_a_folder_of_other_things_is_refused(model: Path, wrong: str) -> None:
    folder = model.with_name("out")
    if wrong == "file":
        folder.write_text("x")
    else:
        folder.mkdir()
        (folder / "thesis.txt").write_text("x")
    with pytest.raises(RecipeError, match="--output"):
        sweep(model, folder, sparsity=0.5)


# -- the best


def trial(loss: float, name: str = "t", **costs: float) -> Trial:
    return Trial({"criterion": name}, make_recipe(sparsity=0.5), "", {"output_change": loss, **costs})


def test_the_front_holds_what_nothing_beats() -> None:
    trials = (
        trial(0.5, "cheap", latency=0.2),
        trial(0.1, "good", latency=0.5),
        trial(0.2, "beaten", latency=0.5),
        trial(0.3, "between", latency=0.4),
        trial(0.0, "no cheaper than the original", latency=1.2),
        trial(float("nan"), "not finite", latency=0.1),
        Trial({"criterion": "failed"}, make_recipe(sparsity=0.5), "", failed="no"),
    )
    assert [t.label for t in front(trials, "latency")] == ["cheap", "good", "between"]
    assert front(trials, "macs") == () and "macs" in COSTS


def test_the_metric_counts_before_the_outputs() -> None:
    a = Trial({}, make_recipe(sparsity=0.5), "", {"output_change": 0.9, "metric_drop": 0.0, "latency": 0.9})
    b = Trial({}, make_recipe(sparsity=0.5), "", {"output_change": 0.1, "metric_drop": 0.5, "latency": 0.8})
    assert list(best_first((b, a))) == [a, b]


def test_the_best_keeps_the_limits() -> None:
    trials = (trial(0.1, "slow", latency=0.9), trial(0.2, "b", latency=0.45), trial(0.2, "a", latency=0.4))
    assert [t.label for t in best_first(trials, [parse("latency<=0.5")])] == ["a", "b"]
    assert list(best_first(trials, [parse("size<=0.5")])) == []


def test_the_best_is_run_again_and_keeps_its_limits(model: Path) -> None:
    swept = sweep(model, sparsity=(0.25, 0.5, 0.75), structure="channels", round_to="none")
    best = swept.best("size<=0.8")
    assert best is not None and best.recipe.sparsity in (0.5, 0.75)
    result = swept.pick("size<=0.8")
    assert result.recipe.require == ("size<=0.8",) and result.sparsity == best.figures["sparsity"]
    with pytest.raises(VerificationError, match=r"no setting of the sweep keeps size<=0.01"):
        swept.pick("size<=0.01")


def test_a_limit_that_fails_the_second_time_leads_to_the_next(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = sweep(model, sparsity=(0.3, 0.5), structure="channels", round_to="none")
    asked: list[float] = []
    real = module.prune

    def unlucky(source: Any, recipe: Any, **given: Any) -> Any:
        asked.append(recipe.sparsity)
        if len(asked) == 1:
            raise VerificationError("latency is 0.52 (wanted <= 0.5)")
        return real(source, recipe, **given)

    monkeypatch.setattr(module, "prune", unlucky)
    order = [trial.recipe.sparsity for trial in best_first(swept.trials)]
    assert swept.pick("size<=1").recipe.sparsity == order[1] and asked == order
    monkeypatch.setattr(module, "prune", lambda *a, **s: unlucky(*a, **s) if asked.clear() is None else None)
    with pytest.raises(VerificationError, match="run again: latency is 0.52"):
        swept.pick("size<=1")


def test_limits_on_what_is_not_measured_are_refused_at_once(model: Path) -> None:
    with pytest.raises(RecipeError, match="--pick metric_drop<=0.01 needs labelled data"):
        sweep(model, sparsity=0.5, limits=["metric_drop<=1%"])
