"""The training loop: what it promises about masks, picking, freezing, divergence, resuming and determinism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from training_models import accuracy, blob_data, blobs, convnet, image_data, mlp, random_masks, weights

from onnxprune.data.metrics import METRICS
from onnxprune.data.readers import Data
from onnxprune.data.sources import Arrays
from onnxprune.errors import DataError, RecipeError
from onnxprune.recipe.training import TrainSettings
from onnxprune.training import loop
from onnxprune.training.losses import make_loss
from onnxprune.training.masks import apply_masks, masks_of_zeros, sparsity_of
from onnxprune.training.optim import LEARNING_RATES, learning_rate
from onnxprune.training.progress import Event, describe, display
from onnxprune.training.retraining import retrain
from onnxprune.training.task import Task
from onnxprune.training.view import Head

FAST = TrainSettings(epochs=8, batch_size=32, learning_rate=2e-2)


def with_(**changes: Any) -> TrainSettings:
    return TrainSettings(**{**FAST.model_dump(exclude_unset=True), **changes})


def test_training_learns_and_leaves_the_model_passed_in_as_it_is() -> None:
    model = mlp()
    before = weights(model)
    done = retrain(model, blob_data(), FAST)
    assert done.result.metric_name == "accuracy"
    assert done.result.start is not None and done.result.best is not None
    assert done.result.start < 0.6 < 0.9 < done.result.best
    assert accuracy(done.model, blob_data(seed=5)) > 0.9
    assert all(np.array_equal(array, weights(model)[name]) for name, array in before.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("extra", [{}, {"weight_decay": 0.1, "l1": 1e-3, "l2": 1e-3}, {"ema": 0.9}, {"clip": 0.1}])
def test_pruned_weights_are_exactly_zero_whatever_the_optimiser_does(optimizer: str, extra: dict[str, Any]) -> None:
    model = mlp()  # its pruned weights start at other values than zero
    masks = random_masks(model)
    trained = weights(retrain(model, blob_data(), with_(optimizer=optimizer, **extra), masks=masks).model)
    for name, mask in masks.items():
        assert not trained[name][~mask].any()
        assert not np.signbit(trained[name][~mask]).any()
        assert np.any(trained[name][mask] != weights(model)[name][mask])


def test_masks_hold_for_whole_channels_and_n_of_m() -> None:
    model = convnet()
    channel = np.ones((4, 1, 3, 3), bool)
    channel[2] = False
    two_of_four = np.tile([[True], [True], [False], [False]], (1, 3))
    masks = {"conv.weight": channel, "fc.weight": two_of_four}
    trained = weights(retrain(model, image_data(), FAST, masks=masks).model)
    assert not trained["conv.weight"][2].any()
    assert np.array_equal(trained["fc.weight"] != 0, two_of_four)


def test_a_mask_that_fits_no_weight_is_refused() -> None:
    with pytest.raises(RecipeError, match="'fc9' belongs to no weight"):
        retrain(mlp(), blob_data(), FAST, masks={"fc9": np.zeros(3, bool)})
    with pytest.raises(RecipeError, match="has shape \\(3,\\)"):
        retrain(mlp(), blob_data(), FAST, masks={"fc1.weight": np.zeros(3, bool)})


def test_apply_masks_zeroes_in_a_copy() -> None:
    model = mlp()
    masks = random_masks(model)
    masked = apply_masks(model, masks)
    assert np.array_equal(masks_of_zeros(masked, masks)["fc1.weight"], masks["fc1.weight"])
    assert weights(model)["fc1.weight"].all()
    assert sparsity_of({"a": np.array([True, False, False, False])}) == 0.75


# --- what is trained


def test_frozen_layers_stay_bit_identical() -> None:
    model = convnet()
    for pattern, kept in (("conv", ["conv.weight"]), ("fc", ["fc.weight", "fc.bias"]), ("bn.s*", ["bn.scale"])):
        trained = weights(retrain(model, image_data(), with_(freeze=(pattern,), keep_best=False)).model)
        for name in ("conv.weight", "fc.weight", "fc.bias", "bn.scale"):
            assert np.array_equal(trained[name], weights(model)[name]) == (name in kept), (pattern, name)


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(RecipeError, match="every weight is frozen"):
        retrain(mlp(), blob_data(), with_(freeze=("fc",)))


def test_batch_norm_statistics_are_updated_or_frozen() -> None:
    model = convnet()
    updated = weights(retrain(model, image_data(), with_(keep_best=False)).model)
    assert not np.allclose(updated["bn.mean"], 0)
    frozen = weights(retrain(model, image_data(), with_(batch_norm="freeze", keep_best=False)).model)
    assert np.array_equal(frozen["bn.mean"], weights(model)["bn.mean"])
    assert np.array_equal(frozen["bn.var"], weights(model)["bn.var"])
    assert not np.array_equal(frozen["bn.scale"], weights(model)["bn.scale"])


def test_penalties_and_decay_make_weights_smaller() -> None:
    def size(**extra: float) -> float:
        trained = retrain(mlp(), blob_data(), with_(epochs=20, keep_best=False, **extra)).model
        return float(np.abs(weights(trained)["fc1.weight"]).sum())

    plain = size()
    assert max(size(l1=0.02), size(l2=0.1), size(weight_decay=0.3)) < 0.9 * plain


# --- the learning rate


@pytest.mark.parametrize("schedule", LEARNING_RATES)
def test_no_schedule_exceeds_the_learning_rate_or_falls_below_zero(schedule: str) -> None:
    settings = TrainSettings(learning_rate=0.1, schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates)
    assert max(rates) > 0.099


def test_warm_up_rises_linearly_and_cosine_falls() -> None:
    settings = TrainSettings(learning_rate=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(settings, step, 10) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[6] == pytest.approx(0.5)


# --- picking


def test_the_state_that_was_best_on_the_validation_data_is_kept() -> None:
    ruinous = with_(learning_rate=30.0, optimizer="sgd", momentum=0.0, schedule="constant")
    good = retrain(mlp(), blob_data(), FAST).model
    done = retrain(good, blob_data(), ruinous)
    assert done.result.best_epoch == 0
    assert done.result.best == done.result.start
    assert all(np.array_equal(array, weights(good)[name]) for name, array in weights(done.model).items())


def test_the_last_state_is_kept_where_the_metric_is_never_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.training.loop.evaluate", lambda *_: float("nan"))
    before = mlp()
    done = retrain(before, blob_data(), with_(epochs=2))
    assert not np.array_equal(weights(done.model)["fc1.weight"], weights(before)["fc1.weight"])
    assert done.result.best_epoch == 0


def test_training_stops_when_patience_is_over() -> None:
    done = retrain(mlp(), blob_data(), with_(epochs=50, patience=3))
    assert len(done.result.history) == done.result.best_epoch + 3
    assert done.result.stopped == "no better accuracy in 3 epochs"


def test_the_average_is_what_is_measured_and_kept() -> None:
    still = with_(ema=0.9999999, epochs=1, keep_best=False)
    done = retrain(mlp(), blob_data(), still)
    assert np.allclose(weights(done.model)["fc1.weight"], weights(mlp())["fc1.weight"], atol=1e-4)
    moved = weights(retrain(mlp(), blob_data(), with_(epochs=1, keep_best=False)).model)["fc1.weight"]
    assert not np.allclose(moved, weights(mlp())["fc1.weight"], atol=1e-2)


def test_steps_can_be_given_instead_of_epochs() -> None:
    done = retrain(mlp(), blob_data(), TrainSettings(steps=11, batch_size=32))
    assert done.result.history[-1].step == 11


# --- distillation


def test_distillation_without_labels_brings_the_accuracy_back() -> None:
    good = retrain(mlp(softmax="Softmax"), blob_data(), FAST).model
    masks = random_masks(good, 0.4)
    unlabelled = blob_data(labels=False)
    done = retrain(apply_masks(good, masks), unlabelled, FAST, masks=masks, original=good)
    assert done.result.metric_name == "agreement"
    fresh = blob_data(seed=5)
    broken, healed = (accuracy(m, fresh) for m in (apply_masks(good, masks), done.model))
    assert broken < 0.9 < healed


# --- bad data


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (Data(Arrays((blobs()[0],), (np.full(300, 7),)), (0,)), FAST, "Label 7 is out of range"),
        (blob_data(labels=False), with_(metric="accuracy"), "needs targets"),
        (Data(Arrays((blobs()[0],), (np.zeros((300, 2), np.float32),)), (0,)), FAST, "the model gives"),
        (blob_data(0), with_(validation=0.0), "The data set is empty"),
        (blob_data(3), FAST, "too few to hold out"),
    ],
)
def test_data_that_do_not_fit_are_refused(data: Data, settings: TrainSettings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        retrain(mlp(), data, settings)


def test_a_model_with_one_batch_size_says_so() -> None:
    model = mlp(batch=4)
    assert retrain(model, blob_data(), FAST).result.best  # a Gemm runs with any batch, whatever the file declares
    reshape_to = np.array([4, 16], np.int64)
    relu = next(node for node in model.graph if node.op_type == "Relu")
    constant = ir.node("Constant", [], {"value": ir.tensor(reshape_to)})
    reshape = ir.node("Reshape", [relu.inputs[0], constant.outputs[0]])
    relu.prepend([constant, reshape])
    relu.replace_input_with(0, reshape.outputs[0])
    with pytest.raises(DataError, match="batches of 4 only: give --batch-size 4"):
        retrain(model, blob_data(), FAST)
    with pytest.raises(DataError, match="270 samples do not divide"):
        retrain(model, blob_data(), with_(batch_size=4))
    done = retrain(model, blob_data(400), with_(batch_size=4, epochs=1))
    assert done.result.best is not None and done.result.best > 0.6


@pytest.mark.parametrize("half", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_half_precision_models_are_trained_in_float32_and_written_back_as_they_were(half: ir.DataType) -> None:
    model = mlp()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.dtype = half
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(half.numpy()), name=value.name)
    masks = random_masks(model)
    done = retrain(model, blob_data(), FAST, masks=masks)
    assert done.result.best is not None and done.result.best > 0.8
    for name, mask in masks.items():
        value = done.model.graph.initializers[name]
        assert value.const_value is not None and value.const_value.dtype == half
        assert not value.const_value.numpy().astype(np.float32)[~mask].any()


# --- divergence


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_best() -> None:
    good = retrain(mlp(), blob_data(), FAST).model
    done = retrain(good, poisoned(blob_data()), with_(epochs=3))
    assert "The loss became NaN at step" in done.result.diverged
    assert "kept the weights from before the training (accuracy" in done.result.diverged
    assert all(np.array_equal(array, weights(good)[name]) for name, array in weights(done.model).items())


def test_a_broken_weight_is_blamed_and_not_the_learning_rate() -> None:
    model = mlp()
    array = weights(model)["fc1.weight"].copy()
    array.flat[3] = np.nan
    model.graph.initializers["fc1.weight"].const_value = ir.tensor(array, name="fc1.weight")
    told = retrain(model, blob_data(), FAST).result.diverged
    assert "at step 1 of" in told and "'fc1.weight' of the model holds NaN" in told and "learning rate" not in told


def poisoned(data: Data) -> Data:
    """The same data with one input beyond what float32 can multiply."""
    source = data.source
    assert isinstance(source, Arrays)
    x = source.inputs[0].copy()
    x[17] = 3e38
    return Data(Arrays((x,), source.targets), data.outputs)


# --- determinism and resuming


@pytest.mark.parametrize("extra", [{}, {"dropout": 0.3}, {"ema": 0.9, "optimizer": "sgd"}])
def test_the_same_seed_gives_the_same_bits(extra: dict[str, Any]) -> None:
    first, second, other = (
        weights(retrain(mlp(), blob_data(), with_(seed=seed, **extra)).model)["fc1.weight"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


class Killed(Exception):
    """Stands for kill -9 at the end of an epoch."""


@pytest.mark.parametrize("extra", [{}, {"dropout": 0.3, "ema": 0.9, "optimizer": "sgd"}])
def test_a_resumed_training_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    settings = with_(**extra)
    masks = random_masks(mlp())
    whole = retrain(mlp(), blob_data(), settings, masks=masks)
    original, path = loop.Run.one_epoch, tmp_path / "training.safetensors"

    def dies(self: loop.Run) -> None:
        if self.epoch == 3:
            raise Killed
        original(self)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Run, "one_epoch", dies)
        retrain(mlp(), blob_data(), settings, masks=masks, checkpoint=path, tag="a")
    resumed = retrain(mlp(), blob_data(), settings, masks=masks, checkpoint=path, tag="a")
    assert resumed.result == whole.result
    for name, array in weights(whole.model).items():
        assert np.array_equal(array, weights(resumed.model)[name])


def test_a_checkpoint_of_another_training_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    retrain(mlp(), blob_data(), FAST, checkpoint=path, tag="a")
    assert len(retrain(mlp(), blob_data(), FAST, checkpoint=path, tag="b").result.history) == 8


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    path.write_bytes(b"damaged" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        retrain(mlp(), blob_data(), FAST, checkpoint=path, tag="a")


# --- progress


def test_progress_tells_loss_metric_and_time() -> None:
    events: list[Event] = []
    masks = {"fc1.weight": np.arange(128).reshape(16, 8) % 4 == 0}
    retrain(mlp(), blob_data(), FAST, masks=masks, progress=events.append, place=(2, 5))
    last = events[-1]
    assert (last.iteration, last.iterations) == (2, 5)
    assert last.step == last.steps
    assert last.sparsity == 0.75
    assert last.metric is not None and last.metric > 0.7
    assert describe(last) == f"retrain 2/5  accuracy {last.metric:.4g}  loss {last.loss:.3g}  0:00 left"
    with display() as show:
        show(last)


def test_a_plain_module_can_be_trained_too() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 3)
    x, label = blobs()
    heads = (Head("y", "values", 1),)
    loss = make_loss(FAST, heads, (torch.from_numpy(label),), (0,))
    task = Task(module, Arrays((x,), (label,)), Arrays((x,), (label,)), heads, (0,), loss, METRICS["accuracy"])
    result = loop.train(task, FAST)
    assert result.best is not None and result.best > 0.9


@pytest.mark.parametrize(("rate", "rises"), [(1e-3, False), (3.0, True)])
def test_a_distillation_that_ends_farther_than_it_began_is_told(rate: float, rises: bool) -> None:
    model = mlp()
    thinned = model.clone()
    for value in thinned.graph.initializers.values():
        array = value.const_value.numpy().copy()  # type: ignore[union-attr]
        value.const_value = ir.Tensor((0.9 * array).astype(np.float32), name=value.name)
    settings = with_(loss="distillation", learning_rate=rate, epochs=1)
    done = retrain(thinned, blob_data(), settings, original=model)
    assert ("rose from" in done.result.worse) == rises
