"""`retrain`: an ONNX model in, the same model with trained numbers out.

This is where the parts meet: the training view of the graph, its module, the data, the loss and metric that suit them,
the loop, and the way back into the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from onnxprune.bridge import channels_last, to_torch, write_back
from onnxprune.data.detection.heads import Head as DetectorHead
from onnxprune.data.detection.metric import head_of, of_detector
from onnxprune.data.fit import (
    InputSpec,
    TargetSpec,
    fit_source,
    fit_target,
    fit_targets,
    fixed_batch,
    input_specs,
)
from onnxprune.data.metrics import METRICS, Metric, check_metric, default_metric
from onnxprune.data.readers import Data
from onnxprune.data.sources import Array, Batch, Source, first_batch, split
from onnxprune.errors import DataError
from onnxprune.recipe.training import TrainSettings
from onnxprune.training.evaluate import as_tuple, to_numpy
from onnxprune.training.feed import batch_tensors
from onnxprune.training.gradual import Gradual
from onnxprune.training.layers import find_layers, matching
from onnxprune.training.likeness import Kind, kind_of_outputs
from onnxprune.training.loop import train
from onnxprune.training.losses import finish, make_loss, recognise
from onnxprune.training.masks import Masks
from onnxprune.training.progress import Progress
from onnxprune.training.shrink import Shrink
from onnxprune.training.task import Span, Task, TrainResult
from onnxprune.training.variation import Layout, Variation
from onnxprune.training.view import Head, dropout_ratios, training_view

Heads = tuple[Head, ...]
_LOOKED_AT = 32  # samples that tell what an output is


@dataclass(frozen=True)
class FirstRun:
    """What a first run on a few samples shows.

    Attributes:
        heads: The outputs, as they turn out to be.
        sample: Those samples, their targets checked.
        inputs, targets: What the inputs and targets of all other samples have to be.
        fixed_batch: The only batch size that the graph runs with; None where it is free.
    """

    heads: Heads
    sample: Batch
    inputs: tuple[InputSpec, ...]
    targets: tuple[TargetSpec, ...]
    fixed_batch: int | None


@dataclass(frozen=True)
class Teacher:
    """What the original shows on a few samples.

    Attributes:
        kinds: What each output is.
        batch, outputs: The samples, and all outputs for them as the file gives them.
        detector: How boxes and scores are read; None where the model is no detector, or drops boxes itself.
    """

    kinds: list[Kind]
    batch: Batch
    outputs: tuple[Array, ...]
    detector: DetectorHead | None


@dataclass(frozen=True)
class Retrained:
    """The model with trained weights, and how the training went."""

    model: ir.Model
    result: TrainResult


def retrain(
    model: ir.Model,
    data: Data,
    settings: TrainSettings | None = None,
    *,
    masks: Masks | None = None,
    validation: Data | None = None,
    original: ir.Model | None = None,
    frozen: frozenset[str] = frozenset(),
    gradual: Gradual | None = None,
    shrink: Shrink | None = None,
    span: Span | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
    tag: str = "",
    place: tuple[int, int] = (1, 1),
    layout: Layout = "NCHW",
) -> Retrained:
    """Train the weights of `model` on `data`; the model passed in stays as it is.

    Args:
        masks: True where a weight stays, by initializer name; pruned weights are exactly zero in the result.
        validation: Data to pick the best state on; by default a share of `data` is held out.
        original: What distillation and agreement compare with; by default `model` as passed in.
        frozen: Initializers not to train, beside those that the settings name.
        gradual: Prunings during the training; its `masks` hold in the result.
        shrink: What a penalty drives towards zero.
        span, progress, checkpoint, tag, place: See `loop.train`.
        layout: Where images have their channels.

    Returns:
        The trained model. If the loss was no longer a number, `result.diverged` says so, and the model is the best
        that there was.

    Raises:
        DataError: The data fit neither the model nor the loss or metric.
        RecipeError: A mask, a pattern of names, a loss or metric is wrong.
        ModelError: The bridge does not know an operator of the model.
    """
    settings, masks = settings or TrainSettings(), masks or {}
    view, heads = training_view(model, dropout_ratios(model, settings.dropout, masks, original or model))
    module = channels_last(to_torch(view))
    first = first_run(module, heads, data, view)
    task = replace(
        _task(module, first, data, validation, settings, original or model),
        masks={name: mask for name, mask in masks.items() if not mask.all()},
        frozen=frozen | matching(settings.freeze, find_layers(model)),
        gradual=gradual,
        export=lambda: write_back(module, model),
        shrink=shrink,
        variation=Variation.of(settings, first.sample, layout),
    )
    result = train(task, settings, span=span, progress=progress, checkpoint=checkpoint, tag=tag, place=place)
    return Retrained(write_back(module.cpu(), model), result)


def _task(
    module: nn.Module,
    first: FirstRun,
    data: Data,
    validation: Data | None,
    settings: TrainSettings,
    original: ir.Model,
) -> Task:
    """What is trained on what, with the loss and the metric that suit the data.

    Raises:
        DataError, RecipeError: See `retrain`.
    """
    source, held = _sources(data, validation, settings)
    check_batch(first, settings.batch_size, source, held)
    _, targets = batch_tensors(first.sample, torch.device("cpu"))
    loss = make_loss(settings, first.heads, targets, data.outputs)
    teacher = None
    if loss.needs_original or not targets:
        teacher = teacher_of(original, fit_source(data.source, first.inputs), first)
    metric = choose_metric(settings, first, teacher)
    if teacher is not None and loss.needs_original:
        loss = make_loss(settings, first.heads, targets, data.outputs, teacher.kinds, teacher.detector)
    compares = loss.needs_original or (metric.needs == "original" and held is not None)
    return Task(
        module=module,
        source=fitted(source, first),
        validation=None if held is None else fitted(held, first),
        heads=first.heads,
        target_outputs=data.outputs,
        loss=loss,
        metric=metric,
        original=frozen_module(original) if compares else None,
        fixed_batch=first.fixed_batch,
    )


def _sources(data: Data, validation: Data | None, settings: TrainSettings) -> tuple[Source, Source | None]:
    """Training and validation data: as given, or a share of the training data held out."""
    if validation is None:
        return split(data.source, settings.validation, settings.seed)
    if validation.outputs != data.outputs:
        raise DataError("The evaluation data have targets for other outputs than the training data.")
    return data.source, validation.source


def frozen_module(model: ir.Model) -> nn.Module:
    """The model's training view as a module that is only run."""
    view, _ = training_view(model)
    return channels_last(to_torch(view)).requires_grad_(False).eval()


def teacher_of(original: ir.Model, source: Source, first: FirstRun) -> Teacher:
    """What the original gives for a few samples; plain logits are told from other values."""
    batch = first_batch(source, first.fixed_batch or _LOOKED_AT)
    outputs = run_once(frozen_module(original), batch)
    completed = tuple(to_numpy(output) for output in finish(first.heads, outputs))
    head = head_of(batch, completed)
    return Teacher(
        [kind_of_outputs(output.float().cpu().numpy()) for output in outputs],
        batch,
        completed,
        None if head is None or head.final else head,
    )


def choose_metric(settings: TrainSettings, first: FirstRun, teacher: Teacher | None) -> Metric:
    """The metric asked for, or the one that suits the data.

    Raises:
        DataError: The data have not the targets it needs.
        RecipeError: It is unknown.
    """
    target = first.sample.targets[0] if first.sample.targets else None
    metric = None if settings.metric is None else METRICS.find(settings.metric)
    if target is None and teacher is not None and (metric is None or metric.needs == "boxes"):
        detects = of_detector(teacher.batch, teacher.outputs, name="map" if metric is None else metric.name)
        if detects is not None:
            return detects
    if metric is None:
        return default_metric(target, first.heads[0].kind != "values")
    if metric.name == "mse" and target is None:
        return default_metric(None, classes=False)
    check_metric(metric, target)
    return metric


@torch.no_grad()
def run_once(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
    """The view's outputs for a batch.

    Raises:
        DataError: The module cannot run on it.
    """
    inputs, _ = batch_tensors(batch, torch.device("cpu"))
    try:
        return as_tuple(module.eval()(*inputs))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(str(list(array.shape)) for array in batch.inputs)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"The model cannot run on a batch of shape {shapes}: {reason}") from error


def fitted(source: Source, first: FirstRun) -> Source:
    """The source with inputs and targets in the types that the view takes, all checked."""
    return fit_targets(fit_source(source, first.inputs), first.targets)


def first_run(module: nn.Module, heads: Heads, data: Data, view: ir.Model) -> FirstRun:
    """Run a few samples through the view's module, on the CPU, and see what the outputs are.

    Raises:
        DataError: There are no samples, the model cannot run on them, or their targets do not fit its outputs.
    """
    specs = input_specs(view)
    source = fit_source(data.source, specs)
    fixed = fixed_batch(view, first_batch(source, 1).sample_axes)
    sample = first_batch(source, fixed or 8)
    outputs = run_once(module, sample)
    heads = recognise(heads, outputs)
    names = [heads[i].name for i in data.outputs]
    shapes = [tuple(outputs[i].shape) for i in data.outputs]
    targets = tuple(map(fit_target, sample.targets, shapes, names))
    if fixed is not None and _runs(module, first_batch(source, 2 * fixed)):
        fixed = None
    return FirstRun(
        heads,
        Batch(sample.inputs, targets, sample.axes, sample.target_axes),
        specs,
        tuple(map(TargetSpec, names, shapes)),
        fixed,
    )


def _runs(module: nn.Module, batch: Batch) -> bool:
    try:
        run_once(module, batch)
    except DataError:
        return False
    return True


def check_batch(first: FirstRun, batch_size: int, *sources: Source | None) -> None:
    """Raise DataError where the graph runs with one batch size only and the settings or the data have another."""
    if first.fixed_batch is None:
        return
    if batch_size != first.fixed_batch:
        raise DataError(f"The model runs with batches of {first.fixed_batch} only: give --batch-size "
                        f"{first.fixed_batch}, or export it with a free batch axis.")  # fmt: skip
    for source in sources:
        if source is not None and source.count is not None and source.count % first.fixed_batch:
            raise DataError(f"The model runs with batches of {first.fixed_batch} only, and {source.count} samples do "
                            "not divide into them.")  # fmt: skip
