"""How good a model is on labelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import runtime
from onnxprune.data.fit import fit_target, fixed_batch, input_specs
from onnxprune.data.measures import Metric as Measure
from onnxprune.data.measures import check_metric, default_metric, get_metric
from onnxprune.data.metrics import hits, squared_differences
from onnxprune.data.npz import Array, LabelledData
from onnxprune.data.readers import Data
from onnxprune.data.sets import _BATCH
from onnxprune.data.sources import Batch, first_batch, join
from onnxprune.errors import DataError, VerificationError
from onnxprune.runtime.session import run


def predict(
    session: ort.InferenceSession,
    inputs: Mapping[str, Array],
    *,
    output: str | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """One output over all samples, the first output by default; returns [samples, ...].

    A model of fixed batch size is fed batches of that size, the last one filled up by repetition.

    Raises:
        DataError: The inputs do not fit the model, or there is no such output.
    """
    names = [value.name for value in session.get_outputs()]
    output = output or names[0]
    if output not in names:
        raise DataError(f"the model has no output '{output}' (it has: {', '.join(names)}).")
    samples = len(next(iter(inputs.values())))
    fixed = session.get_inputs()[0].shape[0]
    batch = fixed if isinstance(fixed, int) and fixed > 0 else batch
    parts = []
    for start in range(0, samples, batch):
        chosen = np.arange(start, start + batch)
        if not isinstance(fixed, int):
            chosen = chosen[chosen < samples]
        feeds = {name: np.take(array, chosen, axis=0, mode="wrap") for name, array in inputs.items()}
        parts.append(run(session, feeds, [output])[output][: samples - start])
        if progress is not None:
            progress(min(start + batch, samples), samples)
    return np.concatenate(parts)


def evaluate(
    session: ort.InferenceSession,
    data: LabelledData,
    *,
    output: str | None = None,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Measure a model on labelled data.

    Returns:
        {"accuracy": ..., "top5": ...} (top5 from six classes on) for class numbers, {"mse": ...} for targets.

    Raises:
        DataError: Inputs or labels do not fit the model.
    """
    result = predict(session, data.inputs, output=output, batch=batch, progress=progress)
    label = data.label
    if np.issubdtype(label.dtype, np.integer) and result.ndim == 2 and result.shape[1] > 1:
        if label.size != data.samples:
            raise DataError(f"labels of shape {label.shape} are no class numbers: one per sample is needed.")
        if label.min() < 0 or label.max() >= result.shape[1]:
            raise DataError(f"labels reach {label.max()}, but the model tells {result.shape[1]} classes apart.")
        label = label.reshape(-1)
        scores = {"accuracy": float(hits(result, label).mean())}
        if result.shape[1] > 5:
            scores["top5"] = float(hits(result, label, 5).mean())
        return scores
    if label.size != result.size:
        raise DataError(f"labels of shape {label.shape} do not fit the output's shape {result.shape}.")
    return {"mse": float(squared_differences(result, label.reshape(result.shape)).mean())}


def measured(original: ir.Model, model: ir.Model, data: Data, name: str | None, trained_by: str) -> Metric:
    """Measure a metric of both models in ONNX Runtime.

    Args:
        original, model: Before and after.
        data: What to measure on.
        name: The metric that the user asked for, if any.
        trained_by: The metric that picked the best state, which says what fits data without targets.

    Raises:
        DataError: The data do not fit the metric or the models.
        RecipeError: There is no such metric.
    """
    target = next(iter(first_batch(data.source, 1).targets), None)
    measure = get_metric(name) if name is not None else default_metric(target, trained_by != "mse")
    if measure.name == "mse" and target is None:
        measure = default_metric(None, classes=False)
    check_metric(measure, target)
    sessions = runtime.make_session(original), runtime.make_session(model, error=VerificationError)
    before = [_Seen(*seen) for seen in _run(sessions[0], original, data)]
    after = [_Seen(*seen) for seen in _run(sessions[1], original, data)]
    output = data.outputs[0] if data.outputs else 0
    values = [_value(measure, seen, before, output) for seen in (before, after)]
    return Metric(measure.name, values[0], values[1], sum(seen.samples for seen in before))


@dataclass(frozen=True)
class _Seen:
    """A batch's outputs, its targets in the types that metrics take, and how many samples it has."""

    outputs: tuple[Array, ...]
    targets: tuple[Array, ...]
    samples: int


def _run(session: ort.InferenceSession, model: ir.Model, data: Data) -> Iterator[tuple[Any, ...]]:
    names = [spec.name for spec in input_specs(model)]
    outputs = [value.name or "" for value in model.graph.outputs]
    size = fixed_batch(model)
    for batch in data.source.epoch(size or _BATCH):
        feeds = dict(zip(names, _filled(batch, size), strict=True))
        found = runtime.run(session, feeds, outputs)
        arrays = tuple(np.asarray(found[name])[: len(batch)] for name in outputs)
        given = zip(batch.targets, data.outputs, strict=True)
        yield arrays, tuple(fit_target(t, arrays[i].shape, outputs[i]) for t, i in given), len(batch)


def _filled(batch: Batch, size: int | None) -> tuple[Array, ...]:
    """The inputs; for a model of fixed batch size, a last short batch is filled up by repetition."""
    if size is None or len(batch) == size:
        return batch.inputs
    return tuple(np.take(a, range(size), axis=0, mode="wrap") if a.ndim else a for a in batch.inputs)


def _value(measure: Measure, seen: list[_Seen], original: list[_Seen], output: int) -> float:
    if measure.whole is not None:
        outputs, targets = join([s.outputs for s in seen]), join([s.targets for s in seen])
        value = measure.whole(outputs, targets)
        try:
            return float(np.asarray(value))
        except (TypeError, ValueError):
            raise DataError(f"the metric '{measure.name}' gave {value!r}, which is no number") from None
    assert measure.update is not None
    total, count = 0.0, 0
    for mine, theirs in zip(seen, original, strict=True):
        target = theirs.outputs[output] if measure.needs == "original" else mine.targets[0]
        part, number = measure.update(mine.outputs[output], target)
        total, count = total + part, count + number
    return total / count if count else float("nan")


@dataclass(frozen=True)
class Metric:
    """A number on labelled data, before and after."""

    name: str
    before: float
    after: float
    samples: int
