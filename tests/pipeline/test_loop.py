"""Retraining from Python: what `prune(..., retrain=...)` takes, and what stays true over the iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import array

import onnxprune
from onnxprune import model_io
from onnxprune.errors import RecipeError
from onnxprune.pipeline import step
from onnxprune.pipeline.step import State, Steps
from onnxprune.recipe.training import TrainSettings
from onnxprune.training import Masks, loop

MODELS = Path(__file__).resolve().parents[2] / "models"
MLP = MODELS / "digits_mlp.onnx"


def arrays(count: int = 200) -> dict[str, Any]:
    with np.load(MODELS / "digits_train.npz") as found:
        return {"image": found["image"][:count], "label": found["label"][:count]}


def test_data_may_be_arrays_and_settings_a_dict_or_an_object() -> None:
    common: dict[str, Any] = {"sparsity": 0.5, "data": arrays(), "eval_data": arrays(50), "latency": False}
    a = onnxprune.prune(MLP, retrain={"steps": 3}, **common)
    b = onnxprune.prune(MLP, retrain=TrainSettings(steps=3), **common)
    assert model_io.to_bytes(a.model) == model_io.to_bytes(b.model)
    assert a.verdict is not None and a.verdict.metric is not None and a.verdict.metric.samples == 50
    assert a.retraining[0]["trainings"][0]["history"][0]["step"] == 3


def test_the_model_passed_in_stays_and_no_trace_of_the_run_is_left() -> None:
    model = model_io.load(MLP)
    before = model_io.to_bytes(model)
    found = onnxprune.prune(
        model, sparsity=0.5, structure="channels", data=arrays(), retrain={"steps": 2}, latency=False
    )
    assert model_io.to_bytes(model) == before
    assert dict(found.model.metadata_props) == dict(model.metadata_props)
    assert found.kept and all(
        len(indices) == array(found.model, name).shape[axis]
        for name, axes in found.kept.items()
        for axis, indices in axes.items()
    )


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_what_was_pruned_stays_pruned(criterion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Masks] = []
    prune = Steps.prune

    def spy(self: Any, state: State, share: float, number: int) -> State:
        done = prune(self, state, share, number)
        seen.append(done.masks)
        return done

    monkeypatch.setattr(Steps, "prune", spy)
    settings: dict[str, Any] = {"sparsity": 0.8, "iterations": 3, "criterion": criterion, "verification": False}
    onnxprune.prune(MLP, data=arrays(), retrain={"steps": 2}, **settings)
    assert len(seen) == 3
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert all(not later[name][~mask].any() for name, mask in earlier.items())
        assert sum(int(m.sum()) for m in later.values()) < sum(int(m.sum()) for m in earlier.values())


def test_a_run_without_held_out_samples_says_so() -> None:
    common: dict[str, Any] = {"sparsity": 0.5, "latency": False}
    found = onnxprune.prune(MLP, data=arrays(), retrain={"steps": 2, "validation": 0}, **common)
    assert found.verdict is not None and found.verdict.metric is None
    assert any("no metric was measured" in note for note in found.notes)


def test_retraining_needs_data() -> None:
    with pytest.raises(RecipeError, match="give --data"):
        onnxprune.prune(MLP, sparsity=0.5, retrain=True)
    with pytest.raises(RecipeError, match="only with --retrain"):
        onnxprune.prune(MLP, sparsity=0.5, survivors="reinit")
    with pytest.raises(RecipeError, match="--epochs"):
        onnxprune.prune(MLP, sparsity=0.5, data=arrays(), retrain={"epochs": 0})


def zeros(model: Any) -> float:
    """Share of zeros in the weights of two or more axes."""
    arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value is not None]
    weights = [a for a in arrays if a.ndim >= 2]
    return sum(int((a == 0).sum()) for a in weights) / sum(a.size for a in weights)


@pytest.mark.parametrize("structure", ["weights", "block:1x4"])
def test_pruning_while_training_reaches_the_sparsity_asked_for(structure: str) -> None:
    found = onnxprune.prune(
        MLP, sparsity=0.8, structure=structure, schedule="cubic", prune_every=3, data=arrays(),
        retrain={"steps": 12, "batch_size": 50}, latency=False,
    )  # fmt: skip
    assert found.sparsity == pytest.approx(0.8, abs=0.02)
    assert zeros(found.model) == pytest.approx(found.gone / found.prunable, abs=0.02)
    assert dict(found.model.metadata_props) == dict(model_io.load(MLP).metadata_props)


def test_units_shrink_before_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[tuple[float, float]] = []
    prune = Steps.prune

    def spy(self: Any, state: State, share: float, number: int) -> State:
        done = prune(self, state, share, number)
        for name, axes in done.trace.kept.items():
            before = array(state.model, name)
            stays = np.ix_(*(axes.get(axis, np.arange(size)) for axis, size in enumerate(before.shape)))
            gone = np.ones(before.shape, bool)
            gone[stays] = False
            norms.append((float(np.abs(before[gone]).mean()), float(np.abs(before[stays]).mean())))
        return done

    monkeypatch.setattr(Steps, "prune", spy)
    found = onnxprune.prune(
        MLP, sparsity=0.5, structure="channels", shrink="group-lasso", shrink_strength=300.0, data=arrays(),
        retrain={"epochs": 3, "batch_size": 20}, latency=False,
    )  # fmt: skip
    assert norms and all(gone < 0.01 * stays for gone, stays in norms)
    assert found.sparsity == pytest.approx(0.5, abs=0.05)
    assert len(found.retraining[0]["trainings"]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "channels", "prune_every": 3}, "--prune-every"),
        ({"structure": "2:4", "sparsity": 0.5, "prune_every": 3}, "--prune-every"),
        ({"structure": "channels+weights", "shrink": "growing-l2"}, "--shrink"),
        ({"iterations": 2, "prune_every": 3}, "--prune-every"),
        ({"prune_every": 3000}, "prunes nothing"),
    ],
)
def test_gradual_pruning_and_shrinking_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        onnxprune.prune(MLP, **{"sparsity": 0.8, "data": arrays(), "retrain": {"steps": 12}, **settings})


# --- a run that goes on


class Killed(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize(
    "settings",
    [
        {"structure": "channels", "iterations": 3, "remove_dead": True, "retrain": {"epochs": 1}},
        {"iterations": 2, "alternate": True, "retrain": {"epochs": 1}},
        {"prune_every": 4, "initial_sparsity": 0.2, "retrain": {"epochs": 3, "batch_size": 20}},
    ],
    ids=["channels", "alternating", "pruned while training"],
)
def test_a_resumed_run_ends_with_the_same_record(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS / "digits_resnet.onnx" if "alternate" in settings else MLP
    common: dict[str, Any] = {"sparsity": 0.6, "data": arrays(100), "latency": False, **settings}
    whole = onnxprune.prune(model, checkpoint=tmp_path / "whole", **common)
    train, epochs = loop.Run.one_epoch, 0

    def dies(self: loop.Run) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise Killed
        train(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Run, "one_epoch", dies)
        onnxprune.prune(model, checkpoint=tmp_path / "killed", **common)
    assert any((tmp_path / "killed").glob("*.safetensors"))
    resumed = onnxprune.prune(model, checkpoint=tmp_path / "killed", resume=True, **common)
    assert model_io.to_bytes(resumed.model) == model_io.to_bytes(whole.model)
    assert resumed.record().model_dump_json() == whole.record().model_dump_json()
    assert len(whole.steps) > 1 and all(step["sparsity"] > 0 for step in whole.steps)


@pytest.mark.parametrize("trained", [True, False])
def test_scores_of_the_original_serve_no_model_that_was_changed_since(
    trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With training the second pruning here is called the first one too: it is the first within the training."""
    caches: list[object] = []
    choose = step.choose

    def spy(*positional: Any, **named: Any) -> Any:
        caches.append(named["cache"])
        return choose(*positional, **named)

    monkeypatch.setattr(step, "choose", spy)
    training: dict[str, Any] = {"prune_every": 5, "data": arrays(100), "retrain": {"epochs": 2, "batch_size": 20}}
    settings: dict[str, Any] = training if trained else {"iterations": 2}
    onnxprune.prune(MLP, sparsity=0.6, initial_sparsity=0.3, verification=False, **settings)
    assert len(caches) == 2
    assert [cache is None for cache in caches] == [trained, True]
