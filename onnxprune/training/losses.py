"""What training minimises: cross-entropy, mean squared error, distillation from the original model, or the user's own.

A loss is a function of the view's outputs, the targets and the original model's outputs (all as tuples of tensors) that
returns the mean over the batch. Outputs are those of `training_view`: logits where the file has a softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune.data.detection.distance import read_by
from onnxprune.data.detection.heads import Head as DetectorHead
from onnxprune.data.metrics import class_axis
from onnxprune.errors import DataError
from onnxprune.plugins import Plugins, Registry, judged
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.detections import distance_of_detector
from onnxprune.training.likeness import Kind, distance
from onnxprune.training.view import Head

Tensors = Sequence[Tensor]
LossFunction = Callable[[Tensors, Tensors, Tensors], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss, and whether it needs the original model's outputs."""

    function: LossFunction
    needs_original: bool

    def __call__(self, outputs: Tensors, targets: Tensors, original: Tensors) -> Tensor:
        return self.function(outputs, targets, original)


@dataclass(frozen=True)
class Case:
    """What a loss is made for.

    Attributes:
        settings: Of the training.
        heads: Of the model's outputs.
        targets: A batch of targets, to see their types; empty without labels.
        outputs: The output number that each target belongs to.
    """

    settings: TrainSettings
    heads: Sequence[Head]
    targets: Tensors
    outputs: Sequence[int]


MakeLoss = Callable[[Case], "LossFunction | None"]
"""Makes the loss on the targets; None where the distillation is all there is."""

UserLoss = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
"""From outputs and targets to the mean over the batch."""


def _fault(value: object, outputs: Tensors, *_: object) -> str:
    """What is wrong with the loss that a user's function gave."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        return "is no tensor of one real number"
    if not value.requires_grad and any(output.requires_grad for output in outputs):
        return "does not depend on the outputs, so nothing can be trained with it"
    return ""


def _of_function(name: str, function: UserLoss) -> MakeLoss:
    value = judged(function, name, _fault)
    return lambda case: lambda out, tgt, original: value(tuple(out), tuple(tgt)).reshape(())


LOSSES: Registry[MakeLoss] = Registry("loss", Plugins("onnxprune.losses"), flag="--loss", of_function=_of_function)


def loss(name: str) -> Callable[[UserLoss], UserLoss]:
    """Register a function of outputs and targets as a loss."""

    def register(function: UserLoss) -> UserLoss:
        LOSSES.add(name, _of_function(name, function), function)
        return function

    return register


@LOSSES.register("auto")
def _what_fits(case: Case) -> LossFunction | None:
    """Cross-entropy for integer labels, mean squared error for real targets, distillation without either."""
    return _labelled(case) if case.targets else None


@LOSSES.register("distillation")
def _distilled(case: Case) -> None:
    """How far the outputs are from the original model's; see `distillation`."""


def make_loss(
    settings: TrainSettings,
    heads: Sequence[Head],
    targets: Tensors,
    outputs: Sequence[int],
    kinds: Sequence[Kind] = (),
    detector: DetectorHead | None = None,
) -> Loss:
    """The loss that the settings ask for; see `Case` for the arguments, `distillation` for `kinds` and `detector`.

    Raises:
        DataError: It needs targets of another type than there are.
        RecipeError: It is unknown.
    """
    classes = _class_outputs(settings, heads, targets, outputs)
    distil = distillation(heads, classes, settings.temperature, kinds, detector)
    alone = LOSSES.find(settings.loss)(Case(settings, heads, targets, outputs))
    if alone is None:
        if settings.label_smoothing:
            raise DataError("--label-smoothing spreads labels, and this training has none: its loss is distillation.")
        return Loss(distil, needs_original=True)
    share = settings.distill
    if share == 0:
        return Loss(alone, needs_original=False)
    return Loss(
        lambda out, tgt, orig: (1 - share) * alone(out, tgt, orig) + share * distil(out, tgt, orig),
        needs_original=True,
    )


def _class_outputs(
    settings: TrainSettings, heads: Sequence[Head], targets: Tensors, outputs: Sequence[int]
) -> set[int]:
    """The outputs that are scores of classes: by their softmax, their labels, or the metric that the user chose."""
    classes = {i for i, head in enumerate(heads) if head.kind != "values"}
    classes |= {i for i, target in zip(outputs, targets, strict=True) if not target.is_floating_point()}
    if settings.metric in ("accuracy", "top5", "agreement"):
        classes.add(outputs[0] if outputs else 0)
    return classes


@LOSSES.register("cross-entropy")
def _of_classes(case: Case) -> LossFunction:
    """-log p[label], averaged."""
    if any(target.is_floating_point() for target in case.targets):
        raise DataError("Cross-entropy needs class numbers, but the targets are real values.")
    return _labelled(case)


@LOSSES.register("mse")
def _of_values(case: Case) -> LossFunction:
    """The mean squared difference from the targets."""
    if not all(target.is_floating_point() for target in case.targets):
        raise DataError("The loss mse needs real targets, but the data have class numbers.")
    return _labelled(case)


def _labelled(case: Case) -> LossFunction:
    """Cross-entropy or mean squared error of each output, as its targets ask for, summed."""
    if not case.targets:
        name = case.settings.loss
        raise DataError(f"The loss '{name}' needs targets, and the data have none; 'distillation' needs none.")

    smoothing = case.settings.label_smoothing
    if smoothing and all(target.is_floating_point() for target in case.targets):
        raise DataError("--label-smoothing is for class numbers, but the targets are real values.")

    def summed(out: Tensors, tgt: Tensors, original: Tensors) -> Tensor:
        parts = [_one(case.heads[i], out[i], target, smoothing) for i, target in zip(case.outputs, tgt, strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    return summed


def _one(head: Head, output: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """The loss of one output: mean squared error for real targets, cross-entropy for class numbers."""
    if target.is_floating_point():
        return F.mse_loss(output.float(), target)
    return cross_entropy(head, output, target, smoothing)


def log_probabilities(head: Head, output: Tensor, axis: int) -> Tensor:
    """log p over `axis`, in float32: exact from logits, by logarithm from probabilities."""
    if head.kind == "probabilities":
        return output.float().clamp_min(torch.finfo(torch.float32).tiny).log()
    return F.log_softmax(output.float(), axis)


def cross_entropy(head: Head, output: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log p[label], averaged; output [N, C, ...] or [N, ..., C], target [N, ...] int64.

    With smoothing s it is (1 - s) times that, and s times the mean of -log p over all classes. Source: Szegedy et al.
    2016, section 7.
    """
    axis = class_axis(output.shape, target.shape)
    if head.kind != "probabilities" and axis == 1:
        return F.cross_entropy(output.float(), target, label_smoothing=smoothing)
    scores = log_probabilities(head, output, axis).movedim(axis, 1)
    one = F.nll_loss(scores, target)
    return one if not smoothing else (1 - smoothing) * one - smoothing * scores.mean()


def distillation(
    heads: Sequence[Head],
    classes: set[int],
    temperature: float,
    kinds: Sequence[Kind] = (),
    detector: DetectorHead | None = None,
) -> LossFunction:
    """The sum over float outputs of how far each is from the original model's; see `likeness.distance`.

    Args:
        heads: The outputs.
        classes: Those that are known to be scores of classes.
        temperature: Of class distributions.
        kinds: What each output of the original turned out to be; values where nothing is known.
        detector: How boxes and scores are read, where the model is a detector; see `detector_distance`.
    """
    together = frozenset[int]() if detector is None else read_by(detector)

    def kind_at(i: int) -> Kind:
        if heads[i].kind == "probabilities":
            return "probabilities"
        return "logits" if i in classes else kinds[i] if kinds else "values"

    def loss(out: Tensors, tgt: Tensors, original: Tensors) -> Tensor:
        parts = []
        if detector is not None:
            parts.append(distance_of_detector(detector, finish(heads, out), finish(heads, original)))
        for i, (head, mine, theirs) in enumerate(zip(heads, out, original, strict=True)):
            if mine.is_floating_point() and i not in together:
                axis = head.axis if head.kind in ("softmax", "log-softmax") else None
                parts.append(distance(kind_at(i), mine, theirs, temperature=temperature, axis=axis))
        if not parts:
            raise DataError("The model has no real-valued output to distil.")
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

    return loss


def recognise(heads: Sequence[Head], outputs: Tensors) -> tuple[Head, ...]:
    """Heads, with those that turn out to give probabilities marked as such.

    A softmax built of Exp, ReduceSum and Div is not found in the graph; its outputs are within 0..1 and sum to 1.
    """
    return tuple(
        replace(head, kind="probabilities") if head.kind == "values" and _are_probabilities(output, head.axis) else head
        for head, output in zip(heads, outputs, strict=True)
    )


def _are_probabilities(output: Tensor, axis: int) -> bool:
    if not output.is_floating_point() or output.dim() < 2 or output.shape[axis] < 2:
        return False
    values = output.detach().float()
    sums = values.sum(axis)
    return bool((values >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3))


def finish(heads: Sequence[Head], outputs: Tensors) -> tuple[Tensor, ...]:
    """The file's outputs from those of the training view: the softmax that was cut off is applied again."""
    functions = {"softmax": F.softmax, "log-softmax": F.log_softmax}
    return tuple(
        functions[head.kind](output, head.axis) if head.kind in functions else output
        for head, output in zip(heads, outputs, strict=True)
    )
