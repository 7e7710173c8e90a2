"""Pruning and retraining in turns: what the surviving weights start from, what is frozen, what a resumed run gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from training_models import blob_data, convnet, image_data, magnitude, mlp, prune_and_train, weights

from onnxprune.errors import ModelError, RecipeError
from onnxprune.pipeline import trainer
from onnxprune.recipe.recipe import Recipe, make_recipe
from onnxprune.recipe.training import TrainSettings
from onnxprune.structure.rewrite import Kept
from onnxprune.training.masks import Masks
from onnxprune.training.task import Span

TRAIN = TrainSettings(epochs=3, batch_size=32, learning_rate=1e-2, keep_best=False)


def recipe(**changes: Any) -> Recipe:
    return make_recipe(**{"sparsity": 0.75, "iterations": 2, "retrain": TRAIN, **changes})


def untrained(**changes: Any) -> TrainSettings:
    """Training that changes next to nothing, to see what it starts from."""
    return TRAIN.model_copy(update={"learning_rate": 1e-12, "epochs": 1, **changes})


def test_sparsity_rises_by_the_schedule_and_pruned_weights_stay_zero() -> None:
    result = prune_and_train(mlp(), recipe(iterations=3, sparsity=0.875), blob_data())
    assert [entry.sparsity for entry in result.history] == pytest.approx([0.5, 0.75, 0.875], abs=0.01)
    final = weights(result.model)
    for name, mask in result.masks.items():
        assert np.array_equal(final[name] != 0, mask)
    best = result.history[-1].trainings[-1].best
    assert best is not None and best > 0.8


def test_survivors_continue_rewind_or_start_anew(tmp_path: Path) -> None:
    model, early = mlp(seed=0), mlp(seed=7)
    ir.save(early, tmp_path / "early.onnx")
    for mode in ("continue", "lr-rewind", "rewind", "reinit"):
        rewind_to = tmp_path / "early.onnx" if mode == "rewind" else None
        asked = recipe(iterations=1, survivors=mode, rewind_to=rewind_to, retrain=untrained())
        result = prune_and_train(model, asked, blob_data())
        mask = result.masks["fc1.weight"]
        left = weights(result.model)["fc1.weight"][mask]
        assert np.allclose(left, weights(model)["fc1.weight"][mask], atol=1e-6) == (mode in ("continue", "lr-rewind"))
        assert np.allclose(left, weights(early)["fc1.weight"][mask], atol=1e-6) == (mode == "rewind")
        assert not weights(result.model)["fc1.weight"][~mask].any()


def test_rewinding_to_nothing_is_refused(tmp_path: Path) -> None:
    for wrong in ({"survivors": "rewind"}, {"rewind_to": "early.onnx"}):
        with pytest.raises(RecipeError, match="--survivors rewind and --rewind-to, the file with the weights, go"):
            recipe(**wrong)
    missing = recipe(survivors="rewind", rewind_to=tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match=r"rewind to, '.*missing\.onnx', cannot be read"):
        prune_and_train(mlp(), missing, blob_data())


def test_continue_runs_one_learning_rate_schedule_and_rewinding_one_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[Span] = []
    original = trainer.retrain

    def spy(*args: Any, **kwargs: Any) -> Any:
        spans.append(kwargs["span"])
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "retrain", spy)
    prune_and_train(mlp(), recipe(survivors="continue"), blob_data())
    prune_and_train(mlp(), recipe(survivors="lr-rewind"), blob_data())
    assert spans == [Span(0, 0.5), Span(0.5, 1), Span(), Span()]


def test_the_last_training_may_have_its_own_settings() -> None:
    result = prune_and_train(mlp(), recipe(retrain_last=untrained(epochs=5)), blob_data())
    assert [len(entry.trainings[0].history) for entry in result.history] == [3, 5]


def test_alternating_prunes_and_trains_one_kind_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[str], set[str]]] = []
    original = trainer.retrain

    def spy(model: ir.Model, *args: Any, **kwargs: Any) -> Any:
        done = original(model, *args, **kwargs)
        before, after = weights(model), weights(done.model)
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        pruned = {name for name, mask in kwargs["masks"].items() if not mask.all()}
        seen.append((changed, pruned))
        return done

    monkeypatch.setattr(trainer, "retrain", spy)
    result = prune_and_train(convnet(), recipe(alternate=True, iterations=1), image_data())
    (first, pruned_first), (second, pruned_both) = seen
    assert {"fc.weight", "fc.bias"} <= first and "conv.weight" not in first
    assert "conv.weight" in second and not {"fc.weight", "fc.bias"} & second
    assert pruned_first == {"fc.weight"}
    assert pruned_both == {"fc.weight", "conv.weight"}
    assert len(result.history[0].trainings) == 2


def test_alternating_needs_both_kinds() -> None:
    with pytest.raises(RecipeError, match="both convolutions and fully connected"):
        prune_and_train(mlp(), recipe(alternate=True), blob_data())


def half_of_the_hidden_units(model: ir.Model) -> tuple[ir.Model, Kept]:
    """Stands for the removal of dead units: every other hidden unit goes."""
    smaller = model.clone()
    size = weights(model)["fc1.weight"].shape[0]
    stays = np.arange(0, size, 2)
    kept = {"fc1.weight": {0: stays}, "fc1.bias": {0: stays}, "fc2.weight": {1: stays}}
    for name, axes in kept.items():
        value = smaller.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        for axis, indices in axes.items():
            array = np.take(array, indices, axis)
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    return smaller, kept


@pytest.mark.parametrize("mode", ["lr-rewind", "rewind"])
def test_masks_and_rewound_weights_follow_removed_units(mode: str, tmp_path: Path) -> None:
    ir.save(mlp(seed=7), tmp_path / "early.onnx")
    asked = recipe(survivors=mode, rewind_to=tmp_path / "early.onnx" if mode == "rewind" else None)
    result = prune_and_train(mlp(), asked, blob_data(), clean=half_of_the_hidden_units)
    assert weights(result.model)["fc1.weight"].shape == (4, 8)
    assert {name: mask.shape for name, mask in result.masks.items()} == {"fc1.weight": (4, 8), "fc2.weight": (3, 4)}


def test_divergence_ends_the_run_and_says_so() -> None:
    wild = TRAIN.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    result = prune_and_train(mlp(), recipe(retrain=wild), blob_data())
    assert "The loss became" in result.diverged
    assert len(result.history) == 1
    assert np.isfinite(weights(result.model)["fc1.weight"]).all()


# --- resuming


def test_a_run_interrupted_between_iterations_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = prune_and_train(mlp(), recipe(iterations=3), blob_data())

    def dies(model: ir.Model, sparsity: float, step: int) -> tuple[ir.Model, Masks]:
        if step == 3:
            raise KeyboardInterrupt
        return magnitude(model, sparsity, step)

    with pytest.raises(KeyboardInterrupt):
        prune_and_train(mlp(), recipe(iterations=3), blob_data(), dies, folder=tmp_path)
    steps: list[int] = []

    def watched(model: ir.Model, sparsity: float, step: int) -> tuple[ir.Model, Masks]:
        steps.append(step)
        return magnitude(model, sparsity, step)

    resumed = prune_and_train(mlp(), recipe(iterations=3), blob_data(), watched, folder=tmp_path)
    assert steps == [3]
    assert resumed.history == whole.history
    for name, array in weights(whole.model).items():
        assert np.array_equal(array, weights(resumed.model)[name])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    prune_and_train(mlp(), recipe(), blob_data(), folder=tmp_path)
    with pytest.raises(RecipeError, match="another model or other settings"):
        prune_and_train(mlp(), recipe(sparsity=0.5), blob_data(), folder=tmp_path)
    with pytest.raises(RecipeError, match="another model or other settings"):
        prune_and_train(mlp(seed=3), recipe(), blob_data(), folder=tmp_path)


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = [{here!r}, {here!r} + "/.."]
import onnx_ir as ir
import test_trainer as t
result = t.prune_and_train(t.mlp(), t.recipe(iterations=6), t.blob_data(), folder=Path({folder!r}))
ir.save(result.model, {out!r})
"""


def test_kill_9_loses_at_most_one_iteration(tmp_path: Path) -> None:
    here, out = str(Path(__file__).parent), tmp_path / "out.onnx"
    program = PROGRAM.format(here=here, folder=str(tmp_path / "state"), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, "-c", program], env=environment)
    state = tmp_path / "state" / "state.safetensors"
    while not state.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert state.exists() and not out.exists()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    whole = prune_and_train(mlp(), recipe(iterations=6), blob_data())
    for name, array in weights(whole.model).items():
        assert np.allclose(array, weights(ir.load(out))[name], atol=1e-6)
