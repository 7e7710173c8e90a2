"""Losses and metrics, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from onnxprune.data.metrics import METRICS, check_metric, default_metric
from onnxprune.errors import DataError, RecipeError
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.losses import finish, make_loss, recognise
from onnxprune.training.view import Head

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
LABELS = torch.tensor([0, 0])
CROSS_ENTROPY = np.mean([np.log(1 + np.exp(-2)), np.log(1 + np.exp(1))])
VALUES = Head("y", "values", 1)


def loss_of(settings: TrainSettings, head: Head = VALUES, targets: tuple[torch.Tensor, ...] = (LABELS,)):  # type: ignore[no-untyped-def]
    return make_loss(settings, (head,), targets, (0,) if targets else ())


def test_integer_labels_get_cross_entropy() -> None:
    for kind in ("values", "softmax", "log-softmax"):
        loss = loss_of(TrainSettings(), Head("y", kind, 1))  # type: ignore[arg-type]
        assert float(loss((LOGITS,), (LABELS,), ())) == pytest.approx(CROSS_ENTROPY)
        assert not loss.needs_original


def test_probabilities_are_recognised_and_give_the_same_loss() -> None:
    probabilities = LOGITS.softmax(1)
    (head,) = recognise((VALUES,), (probabilities,))
    assert head.kind == "probabilities"
    assert float(loss_of(TrainSettings(), head)((probabilities,), (LABELS,), ())) == pytest.approx(CROSS_ENTROPY)
    assert recognise((VALUES,), (LOGITS,))[0].kind == "values"


def test_confident_logits_keep_a_finite_loss_and_a_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)  # float32 softmax gives exactly 0 for class 1
    loss = loss_of(TrainSettings(), Head("y", "softmax", 1))((logits,), (torch.tensor([1]),), ())
    loss.backward()
    assert loss.item() == pytest.approx(200)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[1, -1]]


def test_labels_of_sequences_and_images_find_their_class_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    sequence = torch.randn(2, 5, 3, generator=generator)
    labels = torch.randint(0, 3, (2, 5), generator=generator)
    wanted = torch.nn.functional.cross_entropy(sequence.reshape(10, 3), labels.reshape(10))
    assert torch.allclose(loss_of(TrainSettings(), targets=(labels,))((sequence,), (labels,), ()), wanted)
    assert torch.allclose(loss_of(TrainSettings(), targets=(labels,))((sequence.movedim(2, 1),), (labels,), ()), wanted)


def test_real_targets_get_mean_squared_error() -> None:
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert float(loss_of(TrainSettings(), targets=(target,))((LOGITS,), (target,), ())) == pytest.approx(0.5)


def test_without_labels_classes_are_distilled_by_tempered_kl() -> None:
    loss = loss_of(TrainSettings(temperature=2.0), Head("y", "softmax", 1), targets=())
    assert loss.needs_original
    teacher = torch.tensor([[1.0, 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    p = np.array([np.exp(0.5), 1]) / (np.exp(0.5) + 1)
    assert float(loss((student,), (), (teacher,))) == pytest.approx(4 * np.sum(p * np.log(p / 0.5)), rel=1e-5)
    assert float(loss((teacher + 7,), (), (teacher,))) == pytest.approx(0, abs=1e-6)


def test_without_labels_values_are_distilled_by_normalised_mse() -> None:
    loss = loss_of(TrainSettings(), targets=())
    teacher = torch.tensor([[1.0], [3.0]])  # variance 1
    assert float(loss((teacher + 1,), (), (teacher,))) == pytest.approx(1)
    assert float(loss((1000 * (teacher + 1),), (), (1000 * teacher,))) == pytest.approx(1)


def test_the_losses_of_several_outputs_are_summed_and_integer_outputs_left_out() -> None:
    heads = (VALUES, VALUES, VALUES)
    loss = make_loss(TrainSettings(), heads, (), ())
    teacher = (torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0]]), torch.tensor([1, 2]))
    student = (teacher[0] + 1, teacher[1] + 2, torch.tensor([3, 4]))
    assert float(loss(student, (), teacher)) == pytest.approx(1 + 4)


def test_labels_and_distillation_are_mixed_by_share() -> None:
    head = Head("y", "softmax", 1)
    teacher = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    labelled = loss_of(TrainSettings(), head)((LOGITS,), (LABELS,), ())
    distilled = loss_of(TrainSettings(loss="distillation"), head)((LOGITS,), (LABELS,), (teacher,))
    mixed = loss_of(TrainSettings(distill=0.25), head)((LOGITS,), (LABELS,), (teacher,))
    assert float(mixed) == pytest.approx(0.75 * float(labelled) + 0.25 * float(distilled))


def absolute_error(outputs: tuple[torch.Tensor, ...], targets: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return (outputs[0] - targets[0]).abs().mean()


def test_a_users_function_is_a_loss() -> None:
    loss = loss_of(TrainSettings(loss=f"{__name__}:absolute_error"))
    assert float(loss((torch.ones(2),), (torch.zeros(2),), ())) == 1


def test_a_users_loss_is_mixed_with_distillation() -> None:
    settings = TrainSettings(loss=f"{__name__}:absolute_error", distill=0.25)
    student, target, teacher = torch.ones(4, 1), torch.zeros(4, 1), torch.tensor([[0.0], [2.0], [0.0], [2.0]])
    mixed = loss_of(settings, targets=(target,))
    assert mixed.needs_original
    # |1 - 0| by the user's loss; mean (1 - t)^2 over the variance of t, both 1, by distillation
    assert float(mixed((student,), (target,), (teacher,))) == pytest.approx(0.75 * 1 + 0.25 * 1)
    doubled = mixed((2 * student,), (target,), (teacher,))
    assert float(doubled) == pytest.approx(0.75 * 2 + 0.25 * 2)


@pytest.mark.parametrize(
    ("name", "targets", "error", "message"),
    [
        ("hinge", (LABELS,), RecipeError, "there is no loss 'hinge'"),
        ("cross-entropy", (), DataError, "needs targets"),
        ("cross-entropy", (LOGITS,), DataError, "needs class numbers"),
        ("mse", (LABELS,), DataError, "needs real targets"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(
    name: str, targets: tuple[torch.Tensor, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loss_of(TrainSettings(loss=name), targets=targets)


def test_finish_restores_the_softmax() -> None:
    heads = (Head("a", "softmax", -1), Head("b", "log-softmax", 1), VALUES)
    a, b, c = finish(heads, (LOGITS, LOGITS, LOGITS))
    assert torch.allclose(a.sum(1), torch.ones(2))
    assert torch.allclose(b.exp(), a)
    assert c is LOGITS


# --- metrics


def test_accuracy_and_top5() -> None:
    scores = np.array([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0.0]])
    update = METRICS["accuracy"].update
    top5 = METRICS["top5"].update
    assert update is not None and top5 is not None
    assert update(scores, np.array([6, 6])) == (1, 2)
    assert top5(scores, np.array([2, 6])) == (1, 2)
    assert top5(scores, np.array([1, 4])) == (1, 2)


def test_mse_and_agreement() -> None:
    mse, agreement = METRICS["mse"].update, METRICS["agreement"].update
    assert mse is not None and agreement is not None
    assert mse(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0]])) == (5, 2)
    assert agreement(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([[0.0, 9.0], [0.0, 9.0]])) == (1, 2)


def test_better_knows_the_direction_and_nan_is_never_better() -> None:
    assert METRICS["accuracy"].better(0.9, 0.8)
    assert METRICS["mse"].better(0.1, 0.2)
    assert not METRICS["mse"].better(0.2, 0.1)
    assert not METRICS["accuracy"].better(float("nan"), None)


def worst_error(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    return float(np.abs(outputs[0] - targets[0]).max())


worst_error.higher_is_better = False  # type: ignore[attr-defined]


def test_a_users_function_is_a_metric() -> None:
    metric = METRICS.find(f"{__name__}:worst_error")
    assert not metric.higher_is_better
    assert metric.whole is not None


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(RecipeError, match="--metric: there is no metric 'auc': choose one of accuracy, top5"):
        METRICS.find("auc")
    with pytest.raises(RecipeError, match="has no function 'auc'"):
        METRICS.find(f"{__name__}:auc")


def test_the_default_metric_suits_the_data() -> None:
    assert default_metric(np.array([1]), classes=True).name == "accuracy"
    assert default_metric(np.array([1.0]), classes=False).name == "mse"
    assert default_metric(None, classes=True).name == "agreement"
    assert default_metric(None, classes=False).needs == "original"


def test_a_metric_without_its_targets_is_refused() -> None:
    with pytest.raises(DataError, match="needs targets"):
        check_metric(METRICS["accuracy"], None)
    with pytest.raises(DataError, match="needs class numbers"):
        check_metric(METRICS["accuracy"], np.array([1.0]))
