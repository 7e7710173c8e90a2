"""Pruning while training, and penalties on what is about to go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from training_models import blob_data, magnitude, mlp, prune_and_train, weights

from onnxprune.errors import RecipeError
from onnxprune.recipe.recipe import Recipe, make_recipe
from onnxprune.recipe.schedules import sparsities
from onnxprune.recipe.training import TrainSettings
from onnxprune.training import loop
from onnxprune.training.gradual import Gradual
from onnxprune.training.masks import Masks
from onnxprune.training.retraining import retrain
from onnxprune.training.shrink import PENALTIES, Shrink, groups_of

TRAIN = TrainSettings(epochs=6, batch_size=30, learning_rate=1e-2)  # 9 steps an epoch, 54 in all


def recipe(**changes: Any) -> Recipe:
    return make_recipe(**{"sparsity": 0.8, "schedule": "cubic", "prune_every": 5, "retrain": TRAIN, **changes})


@pytest.mark.parametrize("extra", [{}, {"optimizer": "sgd", "momentum": 0.9}, {"ema": 0.9}, {"weight_decay": 0.1}])
def test_sparsity_rises_during_one_training_and_what_is_pruned_is_zero(extra: dict[str, Any]) -> None:
    wanted: list[float] = []

    def prune(model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        wanted.append(sparsity)
        return magnitude(model, sparsity, number)

    train = TRAIN.model_copy(update=extra)
    result = prune_and_train(mlp(), recipe(retrain=train), blob_data(), prune)
    assert wanted == sparsities("cubic", 8, 0.8)  # 0.75 of 54 steps, every 5
    assert result.history[0].sparsity == pytest.approx(0.8, abs=0.01)
    for name, mask in result.masks.items():
        assert np.array_equal(weights(result.model)[name] != 0, mask)
    training = result.history[0].trainings[0]
    assert training.best is not None and training.best > 0.7
    assert training.best_epoch >= 5  # states from before the last pruning do not count


def test_masks_are_made_from_the_weights_as_they_are() -> None:
    seen: list[np.ndarray] = []

    def prune(model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        seen.append(weights(model)["fc1.weight"].copy())
        return magnitude(model, sparsity, number)

    result = prune_and_train(mlp(), recipe(initial_sparsity=0.2), blob_data(), prune)
    assert np.array_equal(seen[0], weights(mlp())["fc1.weight"])  # initial_sparsity goes before the training
    for earlier, later in zip(seen[1:], seen[2:], strict=False):
        alive = (earlier != 0) & (later != 0)
        assert not np.array_equal(earlier[alive], later[alive])
        assert not np.any(later[earlier == 0])
    assert len(seen) == 1 + 8 and result.history[0].sparsity == pytest.approx(0.8, abs=0.01)


class Killed(Exception):
    """Stands for kill -9 at the end of an epoch."""


def test_a_resumed_gradual_training_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prune_and_train(mlp(), recipe(), blob_data())
    original = loop.Run.one_epoch

    def dies(self: loop.Run) -> None:
        if self.epoch == 3:
            raise Killed
        original(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Run, "one_epoch", dies)
        prune_and_train(mlp(), recipe(), blob_data(), folder=tmp_path)
    resumed = prune_and_train(mlp(), recipe(), blob_data(), folder=tmp_path)
    assert resumed.history == whole.history
    for name, array in weights(whole.model).items():
        assert np.array_equal(array, weights(resumed.model)[name])


def test_what_cannot_be_pruned_while_training_is_refused() -> None:
    with pytest.raises(RecipeError, match="prunes nothing"):
        prune_and_train(mlp(), recipe(prune_every=100), blob_data())

    def removes(model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        smaller = model.clone()
        bias = smaller.graph.initializers["fc1.bias"]
        bias.const_value = ir.tensor(np.zeros(3, np.float32))
        return smaller, {}

    with pytest.raises(RecipeError, match="removal of units"):
        prune_and_train(mlp(), recipe(), blob_data(), removes)
    for wrong in ({"iterations": 2}, {"alternate": True}, {"shrink": "group-lasso"}, {"survivors": "reinit"}):
        with pytest.raises(RecipeError, match="--prune-every"):
            recipe(**wrong)


class ByMagnitude:
    """Prunes by magnitude; its journal says how often."""

    def __init__(self) -> None:
        self.count = 0

    def prune(self, model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        self.count += 1
        return magnitude(model, sparsity, number)

    def journal(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, journal: Mapping[str, Any]) -> None:
        self.count = journal["count"]


def test_a_checkpoint_holds_the_journal_of_what_prunes() -> None:
    gradual = Gradual(ByMagnitude(), "linear", 0.0, 0.5, 10, 0.5)
    gradual.plan(100)
    gradual.next(mlp())
    masks = gradual.next(mlp())
    pruner = ByMagnitude()
    resumed = Gradual(pruner, "linear", 0.0, 0.5, 10, 0.5)
    resumed.restore(masks, json.loads(json.dumps(gradual.state())))
    assert pruner.count == resumed.done == 2 and resumed.masks == masks


def test_pruning_is_due_at_each_interval_and_ends_with_the_ramp() -> None:
    gradual = Gradual(ByMagnitude(), "linear", 0.0, 0.5, 10, 0.5)
    gradual.plan(100)
    due = []
    for step in range(100):
        if gradual.due(step):
            due.append(step)
            gradual.next(mlp())
    assert due == [10, 20, 30, 40, 50]


# --- what is about to go


def half_of_the_units() -> Masks:
    """Units 0 to 7 of the hidden layer stay: rows of fc1, columns of fc2."""
    first, second = np.ones((16, 8), bool), np.ones((3, 16), bool)
    first[8:], second[:, 8:] = False, False
    return {"fc1.weight": first, "fc2.weight": second}


def test_groups_are_whole_indices_where_they_go_and_rows_elsewhere() -> None:
    doomed = np.array([[1, 1, 1], [0, 1, 0], [1, 1, 0]], bool)
    groups = groups_of(doomed)
    assert (groups > 0).tolist() == doomed.tolist()
    assert len({int(g) for g in groups[0]}) == 1  # row 0 as a whole
    assert groups[1, 1] == groups[2, 1] != groups[0, 1]  # the rest of column 1 as a whole
    assert groups[2, 0] not in (groups[0, 0], groups[1, 1])


def test_penalties_as_in_their_papers() -> None:
    norms = torch.tensor([0.0, 0.5, 2.0])
    assert PENALTIES["group-lasso"](norms, 1.0, 0.3).tolist() == [0, 0, 0.5]
    assert PENALTIES["growing-l2"](norms, 2.0, 0.5).tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("penalty", ["growing-l2", "group-lasso"])
def test_what_goes_is_driven_towards_zero_and_the_rest_is_not(penalty: str) -> None:
    stay, to_the_end = half_of_the_units(), TRAIN.model_copy(update={"keep_best": False, "schedule": "constant"})
    trained = weights(retrain(mlp(), blob_data(), to_the_end, shrink=Shrink(penalty, 30.0, stay)).model)
    plain = weights(retrain(mlp(), blob_data(), to_the_end).model)
    for name, mask in stay.items():
        assert np.abs(trained[name][~mask]).max() < 0.05 * np.abs(plain[name][~mask]).max()
        assert np.abs(trained[name][mask]).mean() > 0.8 * np.abs(plain[name][mask]).mean()


@pytest.mark.parametrize("penalty", ["growing-l2", "group-lasso"])
def test_shrinking_comes_before_each_pruning(penalty: str) -> None:
    before: list[float] = []

    def prune(model: ir.Model, sparsity: float, number: int) -> tuple[ir.Model, Masks]:
        pruned, masks = magnitude(model, sparsity, number)
        gone = [np.abs(weights(model)[name][~mask]).max() for name, mask in masks.items()]
        before.append(max(map(float, gone)))
        return pruned, masks

    asked = recipe(prune_every=None, shrink=penalty, shrink_strength=30.0, iterations=2, schedule="linear")
    result = prune_and_train(mlp(), asked, blob_data(), prune)
    chosen_first, pruned_first, chosen_then, pruned_then = before
    assert pruned_first < 0.3 * chosen_first and pruned_then < 0.3 * chosen_then
    assert [len(entry.trainings) for entry in result.history] == [2, 2]
    assert result.history[-1].sparsity == pytest.approx(0.8, abs=0.01)
