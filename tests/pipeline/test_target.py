"""Targets: a share of latency, multiply-adds or bytes, or a drop of the metric, decides how much goes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import conv_net, graph, random, residual_net, two_layers

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.errors import DataError, RecipeError, VerificationError
from onnxprune.pipeline import target, tiling
from onnxprune.pipeline.result import Result
from onnxprune.pipeline.run_folder import forget
from onnxprune.pipeline.search import five_percent_more, highest_within
from onnxprune.recipe.recipe import Recipe

MODELS = Path(__file__).resolve().parents[2] / "models"
TRAINED = sorted(MODELS.glob("digits_*.onnx"))
UNITS: dict[str, Any] = {"structure": "channels", "latency": False}


def prune(model: ir.Model | Path, **settings: Any) -> Result:
    return onnxprune.prune(model, **settings)


def convolutions(c: int = 64) -> ir.Model:
    """Four convolutions at 24 x 24, heavy enough to be timed."""
    weights = {"w1": random(c, 3, 3, 3), "w5": random(10, c)}
    weights |= {f"w{i}": random(c, c, 3, 3, seed=i) for i in (2, 3, 4)}
    layers = "".join(f"c{i} = Conv <pads = [1,1,1,1]> (r{i - 1}, w{i}) r{i} = Relu(c{i}) " for i in range(1, 5))
    return graph(
        f"agraph (float[1,3,24,24] r0) => (float[1,10] y) {{ {layers}"
        "f = GlobalAveragePool(r4) g = Flatten(f) y = Gemm <transB = 1> (g, w5) }",
        weights,
    )


def test_multiply_adds_stay_within_the_budget() -> None:
    found = prune(convolutions(), target_macs=0.5, **UNITS)
    assert found.verdict is not None and found.verdict.before.macs and found.verdict.after.macs is not None
    ratio = found.verdict.after.macs / found.verdict.before.macs
    assert 0.48 < ratio <= 0.5, "the last layer is cut at a multiple of 4 where a whole step would be too much"
    assert found.target is not None and found.target.reached == ratio
    assert found.figures["target"]["target"] == "target_macs"
    assert f"--target-macs 0.5x: reached {ratio:.3g}x" in found.notes[0]
    assert found.record().figures["target"]["wanted"] == 0.5


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("wanted", [0.95, 0.9, 0.7, 0.5])
def test_a_budget_is_used_where_a_large_step_is_in_the_way(wanted: float, iterations: int) -> None:
    """A cut of the sum saves a quarter of the work at once; channels inside the blocks make up for what it leaves."""
    found = prune(residual_net(), target_macs=wanted, iterations=iterations, **UNITS)
    assert found.verdict is not None and found.verdict.before.macs and found.verdict.after.macs is not None
    assert wanted - 0.06 < found.verdict.after.macs / found.verdict.before.macs <= wanted
    assert found.verdict.removed_vs_masked is not None and found.verdict.removed_vs_masked < 1e-5


@pytest.mark.parametrize("wanted", [0.7, 0.5])
def test_measured_effects_divide_a_budget_that_a_large_step_jumps_over(wanted: float) -> None:
    images = np.load(MODELS / "digits_train.npz")["image"][:128]
    found = prune(TRAINED[1], target_macs=wanted, calibration={"image": images}, recover="no", **UNITS)
    assert found.target is not None and wanted - 0.02 < found.target.reached <= wanted
    assert found.target.sparsity == pytest.approx(found.sparsity)


@pytest.mark.parametrize(
    ("path", "settings"),
    [(TRAINED[1], {"iterations": 3}), (TRAINED[0], {"iterations": 2, "schedule": "cubic", "structure": "joint"})],
)
def test_steps_with_data_end_at_the_budget(path: Path, settings: dict[str, Any]) -> None:
    """What a step saves depends on the choice and the recovery before it, so each step looks for its own sparsity."""
    images = np.load(MODELS / "digits_train.npz")["image"][:128]
    found = prune(path, target_macs=0.4, **{**UNITS, **settings}, calibration={"image": images}, round_to="none")
    assert found.verdict is not None and found.verdict.before.macs and found.verdict.after.macs is not None
    assert 0.38 < found.verdict.after.macs / found.verdict.before.macs <= 0.4
    assert len(found.steps) == settings["iterations"]
    assert found.target is not None and found.target.sparsity == pytest.approx(found.steps[-1]["sparsity"])


def test_a_size_holds_after_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery gives other numbers, which may take more bytes than those of the search: then it goes on below."""
    images = {"image": np.load(MODELS / "digits_train.npz")["image"]}
    settings: dict[str, Any] = {"structure": "tiles", "pack": "auto", "calibration": images, "latency": False}
    found = prune(TRAINED[0], target_size=0.5, **settings)
    assert found.target is not None and 0.49 < found.target.reached <= 0.5 and found.target.wanted == 0.5
    monkeypatch.setattr(target, "_AGAIN", 0)
    monkeypatch.setattr(target, "measured_figures", lambda result: {"size": 0.55})
    with pytest.raises(VerificationError, match="--target-size 0.5 was not reached: what came out has 0.55"):
        prune(TRAINED[0], target_size=0.5, **settings)


def test_tiles_that_would_be_slower_do_not_reach_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "_ratio", lambda plain, model, feeds: 1.1)
    with pytest.raises(VerificationError, match="has 1; .*takes 1.10 of the time with its layers in tiles"):
        prune(TRAINED[0], target_macs=0.7, structure="tiles")


def test_steps_with_training_end_at_the_budget() -> None:
    data = dict(np.load(MODELS / "digits_train.npz"))
    training = {"retrain": {"steps": 20}, "iterations": 2, "data": data}
    found = prune(TRAINED[1], target_macs=0.4, **UNITS, **training, round_to="none", criterion="magnitude")
    assert found.verdict is not None and found.verdict.before.macs and found.verdict.after.macs is not None
    assert 0.38 < found.verdict.after.macs / found.verdict.before.macs <= 0.4


def test_units_go_by_what_they_save_in_the_target() -> None:
    """Both pairs of layers have as many weights, but the first pair sees sixteen times as many places."""
    weights = {name: random(64, 64 if i else 3, 3, 3, seed=i) for i, name in enumerate(("w1", "w2", "w3", "w4"))}
    model = graph(
        "agraph (float[1,3,32,32] x) => (float[1,5] y) {"
        "a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu(a) c = Conv <pads = [1,1,1,1]> (b, w2) d = Relu(c)"
        "e = MaxPool <kernel_shape = [4,4], strides = [4,4]> (d)"
        "f = Conv <pads = [1,1,1,1]> (e, w3) g = Relu(f) h = Conv <pads = [1,1,1,1]> (g, w4) i = Relu(h)"
        "j = GlobalAveragePool(i) k = Flatten(j) y = Gemm <transB = 1> (k, w5) }",
        weights | {"w5": random(5, 64)},
    )
    by_macs = prune(model, target_macs=0.6, **UNITS).kept
    assert len(by_macs["w1"][0]) < len(by_macs["w4"][1]), "what is left of the budget may go anywhere"


def test_the_file_stays_within_its_share_of_bytes() -> None:
    model = convolutions()
    found = prune(model, target_size=0.4, **UNITS)
    size = len(model_io.to_bytes(found.model)) / len(model_io.to_bytes(model))
    assert 0.3 < size <= 0.4
    assert found.target is not None and found.target.reached == pytest.approx(size)


@pytest.mark.parametrize("form", [{"pack": "gap8"}, {"sparse_initializers": True}])
def test_zeros_count_as_they_are_stored(form: dict[str, Any], tmp_path: Path) -> None:
    model = two_layers(2000)
    model_io.save(model, tmp_path / "before.onnx")
    found = prune(model, target_size=0.3, latency=False, **form)
    onnxprune.save(found, tmp_path / "after.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("before.onnx", "after.onnx")]
    assert 0.29 < sizes[1] / sizes[0] <= 0.3
    assert found.target is not None and found.target.reached == pytest.approx(sizes[1] / sizes[0])


def test_what_quantising_saves_is_counted() -> None:
    found = prune(two_layers(2000), target_size=0.6, quantize="fp16", **UNITS)
    assert found.gone == 0 and found.target is not None and 0.5 < found.target.reached < 0.6


def test_latency_is_aimed_at_by_measuring() -> None:
    found = prune(convolutions(128), target_latency="0.5x", structure="channels")
    assert found.verdict is not None and found.verdict.latency_ratio == pytest.approx(0.5, rel=0.25)
    assert found.target is not None and found.target.wanted == 0.5
    assert found.target.reached == found.verdict.latency_ratio


def test_uniform_counts_are_kept_where_asked_for() -> None:
    found = prune(convolutions(), target_macs=0.5, allocation="uniform", **UNITS)
    counts = [len(axes[0]) for axes in found.kept.values() if 0 in axes]
    assert len(counts) == 4 and max(counts) - min(counts) <= 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_macs": 0.001, **UNITS}, "--target-macs 0.001 cannot be reached: the least .* is 0.0"),
        ({"target_size": 0.01, **UNITS}, "--target-size 0.01 cannot be reached"),
    ],
)
def test_a_target_out_of_reach_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        prune(conv_net(64), **settings)


def test_what_keeps_a_file_from_being_packed_is_told() -> None:
    old = graph("agraph (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", {"w": random(64, 64)}, opset=10)
    with pytest.raises(VerificationError, match="nothing could be packed, since the model's opset is 10"):
        prune(old, target_size=0.5, pack="smallest", latency=False)


@pytest.mark.parametrize("path", TRAINED, ids=lambda p: p.stem)
def test_five_percent_more_would_break_the_drop(path: Path) -> None:
    settings: dict[str, Any] = {"eval_data": path.with_suffix(".npz"), "latency": False}
    found = prune(path, max_drop=0.01, **settings)
    assert drop(found) <= 0.01 and found.sparsity > 0.3
    assert all(drop(prune(path, sparsity=more, **settings)) > 0.01 for more in five_percent_more(found.sparsity))


def drop(result: Result) -> float:
    assert result.verdict is not None and result.verdict.metric is not None
    return result.verdict.metric.before - result.verdict.metric.after


def test_a_drop_by_whole_units() -> None:
    path = MODELS / "digits_mlp.onnx"
    settings: dict[str, Any] = {"eval_data": path.with_suffix(".npz"), **UNITS}
    found = prune(path, max_drop=0.01, **settings)
    assert found.target is not None and 0.1 < found.sparsity < 0.5
    assert all(drop(prune(path, sparsity=more, **settings)) > 0.01 for more in five_percent_more(found.target.sparsity))


def test_a_training_belongs_to_each_try_of_a_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "highest_within", partial(highest_within, most_tries=2))
    path = MODELS / "digits_mlp.onnx"
    with np.load(MODELS / "digits_train.npz") as file:
        data = {"image": file["image"][:600], "label": file["label"][:600]}
    training = {"epochs": 3, "learning_rate": 3e-3}
    settings: dict[str, Any] = {"data": data, "eval_data": path.with_suffix(".npz"), "retrain": training}
    found = prune(path, max_drop=0.05, latency=False, **settings)
    assert found.target is not None and found.retraining and drop(found) == found.target.reached <= 0.05
    assert [t.sparsity for t in found.target.tries] == [0.4995, 0.74925]
    untrained = prune(path, sparsity=0.74925, eval_data=path.with_suffix(".npz"), latency=False)
    assert found.target.tries[1].value < 0.05 < drop(untrained)


@pytest.mark.parametrize("goal", [{"max_drop": 0.5}, {"target_macs": 0.5, "structure": "channels"}], ids=str)
def test_an_interrupted_search_goes_on(goal: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "highest_within", partial(highest_within, most_tries=3))  # each try is a training
    data = {"x": random(24, 8), "y": random(24, 4)}
    settings: dict[str, Any] = {"data": data, "retrain": {"steps": 1}, "latency": False, "checkpoint": tmp_path}
    first = prune(two_layers(64), **goal, **settings)
    again = prune(two_layers(64), **goal, **settings, resume=True)
    assert model_io.to_bytes(first.model) == model_io.to_bytes(again.model)
    assert first.target is not None and again.target is not None
    assert again.target.sparsity == first.target.sparsity
    forget(tmp_path)
    assert not tmp_path.exists()


def test_a_search_that_is_refused_leaves_no_checkpoint(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": {"z": random(24, 9)}, "retrain": True, "checkpoint": tmp_path / "state"}
    with pytest.raises(DataError):
        prune(two_layers(), max_drop=0.1, **settings)
    assert not list(tmp_path.iterdir())


def test_where_no_pruning_holds_it_is_told(tmp_path: Path) -> None:
    """The targets are the model's own outputs: any weight less is an error more."""
    model, x = two_layers(64), random(20, 8)
    y = runtime.run(runtime.make_session(model), {"x": x})["y"]
    np.savez(tmp_path / "own.npz", x=x, label=y)
    with pytest.raises(VerificationError, match="--max-drop 0 allows no pruning: a sparsity of 0.* costs "):
        prune(model, max_drop=0, eval_data=tmp_path / "own.npz", latency=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_macs": 0.5, "sparsity": 0.5, **UNITS}, "--target-macs: --sparsity says already"),
        ({"target_latency": 0.5, "target_size": 0.5, **UNITS}, "--target-size: --target-latency says already"),
        ({"quality": 1.0, "max_drop": 0.1}, "--max-drop: --quality says already"),
        ({"target_macs": 1.5, **UNITS}, "--target-macs"),
        ({"target_macs": "half", **UNITS}, "--target-macs"),
        ({"max_drop": -1}, "--max-drop"),
        ({"target_latency": "0.5x"}, "--target-latency: zeros change .* --structure channels"),
        ({"target_macs": 0.5}, "--target-macs: zeros change"),
        ({"target_size": 0.5}, "--target-size: zeros alone .* --pack"),
        ({"max_drop": 0.01, "structure": "2:4"}, "--max-drop: --structure 2:4 sets how much goes"),
        ({"max_drop": 0.01}, "--max-drop needs labelled data"),
        ({"max_drop": 0.01, "verification": False, "eval_data": "x.npz"}, "without verification"),
        ({}, "--target-latency"),
    ],
)
def test_a_contradiction_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        prune(two_layers(), **settings)
    assert "\n" not in str(caught.value)


def test_a_recipe_survives_its_own_json() -> None:
    recipe = Recipe(target_latency="0.5x", structure="channels")
    assert recipe.target_latency == 0.5
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
