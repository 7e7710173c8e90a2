"""What kind an output is, and the distance of each kind, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_models import blob_data, blobs, mlp

from onnxprune.data.readers import Data
from onnxprune.data.sources import Arrays
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.likeness import distance, kind_of_outputs
from onnxprune.training.retraining import retrain

RNG = np.random.default_rng(0)


def test_kinds_are_told_from_the_numbers() -> None:
    scores = RNG.standard_normal((32, 50)) * 5
    assert kind_of_outputs(scores.astype(np.float32)) == "logits"
    soft = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert kind_of_outputs(soft.astype(np.float32)) == "probabilities"
    rows = RNG.standard_normal((4, 7, 24))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    assert kind_of_outputs(rows.astype(np.float32)) == "embeddings"
    assert kind_of_outputs(RNG.uniform(0, 600, (8, 100, 4)).astype(np.float32)) == "values"
    assert kind_of_outputs(RNG.standard_normal((32, 1)).astype(np.float32)) == "values"


def test_the_distance_of_embeddings_is_by_angle() -> None:
    theirs = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    mine = torch.tensor([[3.0, 0.0], [5.0, 0.0]])  # 0 and 90 degrees away
    assert float(distance("embeddings", mine, theirs)) == pytest.approx(0.5)


def test_each_part_of_a_box_is_scaled_by_itself() -> None:
    """Pixels with variance 10^4 and scores with variance 1, each one deviation off: 1 each, not the pixels alone."""
    theirs = torch.tensor([[[0.0, 0.0]], [[200.0, 2.0]]])
    both, pixels = (
        float(distance("values", theirs + torch.tensor(off), theirs)) for off in ([100.0, 1.0], [100.0, 0.0])
    )
    assert both == pytest.approx(2 * pixels)
    assert float(distance("values", theirs + torch.tensor([0.0, 1.0]), theirs)) == pytest.approx(pixels)


def test_logits_without_a_softmax_are_distilled_by_kl_in_a_retraining() -> None:
    """The scores may move together for nothing: squares would see that as an error, KL does not."""
    good = retrain(mlp(), blob_data(), TrainSettings(epochs=8, batch_size=32, learning_rate=2e-2)).model
    unlabelled = Data(Arrays((blobs()[0],)), ())
    shifted = good.clone()
    bias = next(v for n, v in shifted.graph.initializers.items() if n == "fc2.bias" and v.const_value is not None)
    assert bias.const_value is not None
    bias.const_value = type(bias.const_value)(bias.const_value.numpy() + 50)  # type: ignore[call-arg]
    done = retrain(shifted, unlabelled, TrainSettings(epochs=1, learning_rate=1e-6), original=good)
    assert done.result.history[0].loss < 1e-3


def test_a_distillation_that_ends_above_its_start_is_told() -> None:
    good = retrain(mlp(), blob_data(), TrainSettings(epochs=8, batch_size=32, learning_rate=2e-2)).model
    unlabelled = Data(Arrays((blobs()[0],)), ())
    wild = retrain(good, unlabelled, TrainSettings(epochs=2, learning_rate=5.0, schedule="constant"), original=good)
    assert "rose from" in wild.result.worse and "--lr" in wild.result.worse
    calm = retrain(good, unlabelled, TrainSettings(epochs=1, learning_rate=1e-5), original=good)
    assert calm.result.worse == "" or "rose from 0 to" in calm.result.worse


CALLS: list[int] = []


def counted(outputs: tuple[torch.Tensor, ...], targets: tuple[torch.Tensor, ...]) -> torch.Tensor:
    CALLS.append(len(targets))
    return torch.nn.functional.cross_entropy(outputs[0], targets[0])


def test_a_users_loss_and_distillation_both_count_in_a_retraining() -> None:
    CALLS.clear()
    settings = TrainSettings(steps=3, loss=f"{__name__}:counted", distill=0.5)
    done = retrain(mlp(), blob_data(), settings, original=mlp(seed=1))
    assert len(CALLS) == 3
    alone = retrain(mlp(), blob_data(), settings.model_copy(update={"distill": 0.0}), original=mlp(seed=1))
    assert done.result.history[0].loss != alone.result.history[0].loss
