"""How good a model is on a data set, measured in ONNX Runtime: one way for every command and every metric.

meter, before = start_meter(original, session, data, "accuracy")     # the metric is chosen and the original measured
after = meter.read(pruned, make_session(pruned))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import runtime
from onnxprune.data import metrics
from onnxprune.data.detection.metric import of_detector
from onnxprune.data.fit import find_axes, fit_target, fixed_batch, input_specs, output_specs
from onnxprune.data.metrics import METRICS, ORIGINAL_MSE, Metric, check_metric, chooses_classes, pooled
from onnxprune.data.readers import Data, saying
from onnxprune.data.sources import Array, Axes, Batch, first_batch, join, pick
from onnxprune.errors import DataError, VerificationError
from onnxprune.graph.operators import operator_of
from onnxprune.graph.text_inputs import text_inputs

_PICTURE_AXES = 4
BATCH = 64
"""Samples run at once by a model that takes any number."""


@dataclass(frozen=True)
class MeasuredMetric:
    """A metric before and after.

    Attributes:
        name: The metric.
        before, after: Of the original and of the pruned model.
        samples: How many samples it was measured on.
        higher_is_better: Whether a larger value is better.
    """

    name: str
    before: float
    after: float
    samples: int
    higher_is_better: bool = True

    @property
    def drop(self) -> float:
        """By how much it got worse, in its own unit."""
        return metrics.drop(self.before, self.after, higher_is_better=self.higher_is_better)


@dataclass(frozen=True)
class Seen:
    """A batch's outputs with their axes of samples, its targets as metrics take them, and how many samples it has.

    Of a metric that is a sum over batches, only the output that it looks at, and its target.
    """

    outputs: tuple[Array, ...]
    axes: Axes
    targets: tuple[Array, ...]
    target_axes: Axes
    samples: int


@dataclass(frozen=True)
class Meter:
    """A metric on a data set, as it is measured of one model after another.

    Attributes:
        metric: What is measured.
        data: What it is measured on.
        output: The number of the output that it looks at.
        original: The original's outputs, where the metric compares with them; empty otherwise.
        samples: How many samples there are.
    """

    metric: Metric
    data: Data
    output: int
    original: tuple[Seen, ...]
    samples: int

    def read(self, model: ir.Model, session: ort.InferenceSession, tell: Callable[[int], None] | None = None) -> float:
        """Measure a model of the same interface as the original's.

        Args:
            model, session: The model, and a session of it.
            tell: Called with the number of samples done.

        Raises:
            DataError: The data do not fit the model, or the metric gives no number.
        """
        return _value(self, _told(_run(session, model, self.data, self.metric, self.output), tell))


def start_meter(
    model: ir.Model, session: ort.InferenceSession, data: Data, name: str | None = None, *, classes: bool | None = None
) -> tuple[Meter, float]:
    """Choose the metric and measure the original.

    Args:
        model: The original.
        session: A session of it.
        data: What to measure on.
        name: The metric asked for; by default the first that fits the data.
        classes: Whether the output holds scores of classes, where that is known; it matters to data without targets.

    Returns:
        The meter, and the original's value.

    Raises:
        DataError: The data do not fit the metric or the model.
        RecipeError: There is no such metric.
    """
    output = data.outputs[0] if data.outputs else 0
    metric = _choose(model, session, data, output, name, classes)
    meter = Meter(metric, data, output, (), 0)
    if metric.needs == "original":
        seen = tuple(_run(session, model, data, metric, output))
        meter = Meter(metric, data, output, seen, sum(batch.samples for batch in seen))
        return meter, _value(meter, iter(seen))
    counted = _Counted(_run(session, model, data, metric, output))
    value = _value(meter, iter(counted))
    return Meter(metric, data, output, (), counted.samples), value


def measured(
    original: ir.Model, model: ir.Model, data: Data, name: str | None = None, *, classes: bool | None = None
) -> MeasuredMetric:
    """Measure a metric of both models in ONNX Runtime, one session after the other.

    Args:
        original, model: Before and after.
        data, name, classes: See `start_meter`.

    Raises:
        DataError: The data do not fit the metric or the models.
        RecipeError: There is no such metric.
    """
    meter, before = start_meter(original, runtime.make_session(original), data, name, classes=classes)
    after = meter.read(model, runtime.make_session(model, error=VerificationError))
    return measured_metric(meter, before, after)


def measured_metric(meter: Meter, before: float, after: float) -> MeasuredMetric:
    """Put both values together with what is known of the metric."""
    return MeasuredMetric(meter.metric.name, before, after, meter.samples, meter.metric.higher_is_better)


def evaluate(model: ir.Model, data: Data, name: str | None = None) -> tuple[str, float]:
    """Measure one model; returns the metric's name and its value. See `start_meter`."""
    meter, value = start_meter(model, runtime.make_session(model, error=VerificationError), data, name)
    return meter.metric.name, value


class _Counted:
    """Batches, with the number of their samples counted on the way."""

    def __init__(self, batches: Iterator[Seen]) -> None:
        self.batches, self.samples = batches, 0

    def __iter__(self) -> Iterator[Seen]:
        for seen in self.batches:
            self.samples += seen.samples
            yield seen


def _told(batches: Iterator[Seen], tell: Callable[[int], None] | None) -> Iterator[Seen]:
    done = 0
    for seen in batches:
        yield seen
        done += seen.samples
        if tell is not None:
            tell(done)


def _choose(
    model: ir.Model, session: ort.InferenceSession, data: Data, output: int, name: str | None, classes: bool | None
) -> Metric:
    """The metric asked for, or the first that fits the data."""
    target, name = next(iter(first_batch(data.source, 1).targets), None), name or data.metric
    ends_in_classes = _ends_in_classes(model.graph.outputs[output]) if classes is None else classes
    detects = target is None and not ends_in_classes if name is None else METRICS.find(name).needs == "boxes"
    if detects and (metric := _of_detector(session, model, data, name)) is not None:
        return metric
    if name is not None:
        metric = METRICS.find(name)
        metric = ORIGINAL_MSE if metric.name == "mse" and target is None else metric
    elif target is None:
        metric = metrics.default_metric(None, ends_in_classes)
    else:
        batch, (scores,), _ = next(_outputs(session, model, data, output))
        one_score = not chooses_classes(scores) and scores.size == batch.targets[0].size
        metric = METRICS["mse"] if one_score else metrics.default_metric(target, classes=True)
    if metric.needs != "scores" or data.scores is None:
        check_metric(metric, target)
    return metric


def _of_detector(session: ort.InferenceSession, model: ir.Model, data: Data, name: str | None) -> Metric | None:
    """The mean average precision of a detector, from what it gives for the first pictures."""
    if not any(len(array.shape) == _PICTURE_AXES for array in first_batch(data.source, 1).inputs):
        return None
    batch, arrays, _ = next(_outputs(session, model, data))
    return of_detector(batch, arrays, data.boxes, name or "map")


def _ends_in_classes(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and operator_of(node).classifies


def _run(session: ort.InferenceSession, model: ir.Model, data: Data, metric: Metric, output: int) -> Iterator[Seen]:
    """What a model gives for the data, batch by batch, beside the targets as the metric takes them.

    A metric that is a sum over batches sees one output alone; others, such as a decoder's caches, are not kept.
    """
    one = metric.whole is None or metric.pools
    masks = _mask_input(model) if metric.pools else None
    names = [str(value.name) for value in model.graph.outputs]
    for batch, arrays, axes in _outputs(session, model, data, output if one else None):
        if metric.pools:
            arrays = tuple(pooled(a, None if masks is None else batch.inputs[masks]) for a in arrays)
        if metric.keeps is not None:
            arrays, axes = metric.keeps(arrays), (0,)
        targets: tuple[Array, ...] = ()
        if metric.needs in ("labels", "targets"):
            numbers = data.outputs[:1] if one else data.outputs
            with saying(f"{data.name}, label"):
                targets = tuple(
                    _target(target, arrays[0 if one else number], names[number], metric)
                    for target, number in zip(batch.targets, numbers, strict=not one)
                )
        yield Seen(arrays, axes, targets, batch.target_sample_axes[: len(targets)], len(batch))


def _mask_input(model: ir.Model) -> int | None:
    """The place of the input that says which tokens count."""
    inputs = text_inputs(model)
    name = None if inputs is None else inputs.named("mask")
    return next((i for i, spec in enumerate(input_specs(model)) if spec.name == name), None)


def _outputs(
    session: ort.InferenceSession, model: ir.Model, data: Data, only: int | None = None
) -> Iterator[tuple[Batch, tuple[Array, ...], Axes]]:
    """Each batch with the model's outputs and their axes of samples.

    A model of fixed batch size is fed batches of that size, the last one filled up by repetition.

    Args:
        session, model, data: What is run.
        only: The number of the one output that is asked for; None for all.
    """
    inputs, results = [spec.name for spec in input_specs(model)], output_specs(model)
    outputs = [spec.name for i, spec in enumerate(results) if only in (None, i)]
    size = fixed_batch(model, first_batch(data.source, 1).sample_axes)
    for whole in data.source.epoch(size or data.batch or BATCH):
        for batch in _pieces(whole, size):
            full = batch if size is None or len(batch) == size else batch.rows(np.arange(size) % len(batch))
            by_name = runtime.run(session, dict(zip(inputs, full.inputs, strict=True)), outputs)
            arrays = tuple(_array(by_name[name]) for name in outputs)
            axes = find_axes(arrays, [spec for spec in results if spec.name in by_name], (), len(full))
            wanted = np.arange(len(batch))
            yield batch, tuple(pick(a, wanted, axis) for a, axis in zip(arrays, axes, strict=True)), axes


def _pieces(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch, in parts of at most so many samples: a user's function yields batches of its own sizes."""
    if size is None or len(batch) <= size:
        yield batch
        return
    for first in range(0, len(batch), size):
        yield batch.rows(np.arange(first, min(first + size, len(batch))))


def _array(output: Any) -> Array:
    """An output as an array; a sequence, which no metric looks at, as one of objects."""
    if not isinstance(output, list):
        return np.asarray(output)
    array = np.empty(len(output), object)
    array[:] = output
    return array


def _target(target: Array, output: Array, name: str, metric: Metric) -> Array:
    """The target as the metric takes it: real values, class numbers, or the classes' own names.

    Raises:
        DataError: It does not fit the output.
    """
    if metric.update is not None and metric.needs == "targets":
        return fit_target(target.astype(np.float64) if target.dtype.kind in "iub" else target, output.shape, name)
    if chooses_classes(output) and target.size == output.size:
        return target.reshape(output.shape)
    return fit_target(target, output.shape, name)


def _whole_targets(meter: Meter, seen: Sequence[Seen]) -> tuple[Array, ...]:
    """What a metric over the whole data set compares with."""
    needs, data = meter.metric.needs, meter.data
    if needs == "scores":
        return () if data.scores is None else (data.scores,)
    if needs == "boxes":
        return () if data.boxes is None else (data.boxes.boxes,)
    if needs == "original":
        return join([batch.outputs for batch in meter.original], meter.original[0].axes)
    return join([batch.targets for batch in seen], seen[0].target_axes)


def _value(meter: Meter, batches: Iterator[Seen]) -> float:
    metric = meter.metric
    if metric.whole is not None:
        seen = list(batches)
        outputs = join([batch.outputs for batch in seen], seen[0].axes)
        targets = _whole_targets(meter, seen)
        value = metric.whole(outputs, targets)
        try:
            return float(np.asarray(value))
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"the metric '{metric.name}' gave {str(value)[:60]!r}, which is no number") from None
    assert metric.update is not None
    originals = iter(meter.original)
    total, count = 0.0, 0
    for batch in batches:
        target = next(originals).outputs[0] if metric.needs == "original" else batch.targets[0]
        part, number = metric.update(batch.outputs[0], target)
        total, count = total + part, count + number
    return metric.of_sum(total, count)
