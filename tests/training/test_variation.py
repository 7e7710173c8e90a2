"""Training data that differ from epoch to epoch: crops, mirrored images, mixed samples; and labels that are spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_models import blob_data, convnet, image_data, mlp, weights

from onnxprune.data.readers import Data
from onnxprune.data.sources import Arrays, Batch
from onnxprune.errors import DataError, RecipeError
from onnxprune.recipe.recipe import make_recipe
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.feed import Shard
from onnxprune.training.losses import Loss, make_loss
from onnxprune.training.retraining import retrain
from onnxprune.training.variation import Variation, Varied, crop, flip
from onnxprune.training.view import Head


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int, height: int, width: int) -> torch.Tensor:
    """Images whose first channel tells the row of each place, and the second the column."""
    rows = torch.arange(height).float().reshape(1, height, 1).expand(count, height, width)
    columns = torch.arange(width).float().reshape(1, 1, width).expand(count, height, width)
    return torch.stack([rows, columns], 1)


# -- images


def test_a_crop_moves_each_image_by_at_most_an_eighth_and_mirrors_its_edges() -> None:
    images = numbered(64, 16, 24)
    moved = crop(images, generator())
    assert moved.shape == images.shape
    by = {(int(a - b), int(c - d)) for a, b, c, d in zip(
        moved[:, 0, 8, 12], images[:, 0, 8, 12], moved[:, 1, 8, 12], images[:, 1, 8, 12], strict=True)}  # fmt: skip
    assert {abs(y) for y, _ in by} == {0, 1, 2} and {abs(x) for _, x in by} == {0, 1, 2, 3}
    for image in moved:
        steps = image[0, 1:, 0] - image[0, :-1, 0]
        assert set(steps.tolist()) <= {1.0, -1.0}  # one place on, or back from the edge: nothing is made up


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    images = numbered(200, 4, 6)
    mirrored = (flip(images, generator()) != images).flatten(1).any(1)
    assert 70 < int(mirrored.sum()) < 130
    assert torch.equal(flip(images, generator())[mirrored], images.flip(3)[mirrored])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_the_type_of_images_stays(dtype: torch.dtype) -> None:
    images = numbered(8, 8, 8).to(dtype)
    assert crop(images, generator()).dtype == flip(images, generator()).dtype == dtype


def shard(*inputs: torch.Tensor, targets: tuple[torch.Tensor, ...] = ()) -> Shard:
    return Shard(inputs, targets, 1.0, len(inputs[0]))


def test_images_with_their_channels_last_are_varied_alike() -> None:
    images = numbered(16, 8, 8)
    first = Variation((crop, flip), axes=(0,), seed=3)(shard(images), 5)
    last = Variation((crop, flip), axes=(0,), layout="NHWC", seed=3)(shard(images.permute(0, 2, 3, 1)), 5)
    assert torch.equal(first.inputs[0], last.inputs[0].permute(0, 3, 1, 2))


def test_what_is_drawn_follows_from_seed_step_and_process() -> None:
    variation, batch = Variation((crop,), axes=(0,), seed=1), shard(numbered(16, 16, 16))
    same = variation(batch, 7).inputs[0]
    assert torch.equal(variation(batch, 7).inputs[0], same)
    for other in (variation(batch, 8), variation(batch, 7, 1), Variation((crop,), axes=(0,), seed=2)(batch, 7)):
        assert not torch.equal(other.inputs[0], same)


def test_inputs_that_are_no_images_stay() -> None:
    images, table = numbered(8, 8, 8), torch.randn(8, 5, generator=generator())
    varied = Variation((crop,), axes=(0, 0), seed=1)(shard(images, table), 0)
    assert torch.equal(varied.inputs[1], table) and not torch.equal(varied.inputs[0], images)


# -- mixed samples


def test_samples_are_mixed_with_partners_and_both_labels_count() -> None:
    samples, labels = torch.eye(8), torch.arange(8)
    varied = Variation(mixup=1.0, axes=(0,), target_axes=(0,))(shard(samples, targets=(labels,)), 0)
    assert 0 < varied.share < 1
    (mixed,), (partners,) = varied.inputs, varied.partners
    assert torch.allclose(mixed, varied.share * samples + (1 - varied.share) * samples[partners])
    loss = Loss(lambda out, tgt, original: tgt[0].float().mean(), needs_original=False)
    wanted = varied.share * 3.5 + (1 - varied.share) * partners.float().mean()
    assert float(varied.loss(loss, (), ())) == pytest.approx(float(wanted))


def test_a_state_is_mixed_along_its_axis_of_samples() -> None:
    samples, state, rate = torch.eye(4), torch.randn(2, 4, 3, generator=generator()), torch.tensor(16.0)
    varied = Variation(mixup=1.0, axes=(0, 1, None))(shard(samples, state, rate), 0)
    share, partners = (
        varied.share,
        ((varied.inputs[0] - varied.share * samples) > 0.5 * (1 - varied.share)).int().argmax(1),
    )
    assert torch.allclose(varied.inputs[1], share * state + (1 - share) * state[:, partners])
    assert varied.inputs[2] is rate


def test_without_mixing_the_loss_is_computed_once() -> None:
    calls: list[int] = []
    loss = Loss(lambda out, tgt, original: calls.append(1) or torch.tensor(2.0), needs_original=False)
    assert float(Varied((), (torch.zeros(1),)).loss(loss, (), ())) == 2.0 and calls == [1]


# -- labels that are spread


@pytest.mark.parametrize("kind", ["values", "softmax", "probabilities"])
def test_smoothed_labels_are_those_of_the_formula(kind: str) -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    labels, head = torch.tensor([0, 2]), Head("y", kind, 1)  # type: ignore[arg-type]
    loss = make_loss(TrainSettings(label_smoothing=0.3), (head,), (labels,), (0,))
    given = logits.softmax(1) if kind == "probabilities" else logits
    spread = 0.7 * torch.nn.functional.one_hot(labels, 3) + 0.1
    wanted = -(spread * logits.log_softmax(1)).sum(1).mean()
    assert float(loss((given,), (labels,), ())) == pytest.approx(float(wanted), rel=1e-5)


def test_labels_of_sequences_are_smoothed_as_well() -> None:
    scores, labels = torch.randn(2, 5, 3, generator=generator()), torch.randint(0, 3, (2, 5), generator=generator(1))
    loss = make_loss(TrainSettings(label_smoothing=0.2), (Head("y", "values", 1),), (labels,), (0,))
    wanted = torch.nn.functional.cross_entropy(scores.movedim(2, 1), labels, label_smoothing=0.2)
    assert float(loss((scores,), (labels,), ())) == pytest.approx(float(wanted), rel=1e-5)


# -- in a training


def test_a_training_with_all_of_them_learns_and_repeats() -> None:
    settings = TrainSettings(epochs=3, augment="crop,flip", mixup=0.2, label_smoothing=0.1, learning_rate=1e-2)
    first, second = (retrain(convnet(), image_data(), settings) for _ in range(2))
    assert first.result.history[-1].loss < first.result.history[0].loss
    assert all(
        np.array_equal(a, b) for a, b in zip(weights(first.model).values(), weights(second.model).values(), strict=True)
    )
    plain = retrain(convnet(), image_data(), TrainSettings(epochs=3, learning_rate=1e-2))
    assert plain.result.history[0].loss != first.result.history[0].loss


def test_an_interrupted_training_draws_what_it_would_have_drawn() -> None:
    variation = Variation((flip,), mixup=0.5, axes=(0,), seed=4)
    batch = shard(numbered(8, 4, 4))
    whole = [variation(batch, step).inputs[0] for step in range(6)]
    again = [Variation((flip,), mixup=0.5, axes=(0,), seed=4)(batch, step).inputs[0] for step in range(3, 6)]
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], again, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "flip"}, "no input of the model has their four axes"),
        ({"augment": "blur"}, "blur"),
        ({"loss": "distillation", "label_smoothing": 0.1}, "this training has none"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(settings: dict[str, object], message: str) -> None:
    model, data = (convnet(), image_data()) if settings.get("augment") == "blur" else (mlp(), blob_data())
    with pytest.raises((DataError, RecipeError), match=message):
        retrain(model, data, TrainSettings(epochs=1, **settings))  # type: ignore[arg-type]


def test_tokens_and_targets_for_each_place_are_refused() -> None:
    images, tokens = np.zeros((4, 3, 8, 8), np.float32), np.zeros((4, 7), np.int64)
    with pytest.raises(DataError, match="whole numbers, such as tokens"):
        Variation.of(TrainSettings(mixup=0.2), Batch((tokens,)))
    with pytest.raises(DataError, match="a target for each place"):
        Variation.of(TrainSettings(augment="flip"), Batch((images,), (np.zeros((4, 8, 8), np.int64),)))


def test_real_targets_are_not_smoothed() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((40, 8)).astype(np.float32)
    data = Data(Arrays((inputs,), (rng.standard_normal((40, 3)).astype(np.float32),)), (0,))
    with pytest.raises(DataError, match="targets are real values"):
        retrain(mlp(), data, TrainSettings(epochs=1, label_smoothing=0.1))


def test_settings_are_read_as_the_flags_have_them() -> None:
    train = make_recipe(sparsity=0.5, retrain={"augment": "crop, flip", "label_smoothing": "10%"}).retrain
    assert train is not None and train.augment == ("crop", "flip") and train.label_smoothing == 0.1
