"""The verdict of a run, measured in ONNX Runtime: it loads, it runs, *removed == masked*, and how it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxprune import model_io, runtime
from onnxprune.data.fit import input_specs
from onnxprune.data.readers import AnyData, Data, open_data
from onnxprune.data.sources import first_samples
from onnxprune.errors import DataError, ModelError, OnnxPruneError, VerificationError
from onnxprune.graph import bounded, size
from onnxprune.graph.dims import graph_inputs
from onnxprune.verify.evaluate import MeasuredMetric, Meter, result, start

TOLERANCE = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}
"""Largest difference between removed and masked, relative to the largest output; 1e-4 for all other types."""

_ROUNDS = 15
_LARGE = 512 << 20  # bytes


@dataclass(frozen=True)
class Verdict:
    """What was measured.

    Attributes:
        before, after: Parameters, multiply-adds and bytes.
        removed_vs_masked: Largest difference to the masked twin, relative to its largest output.
        output_change: Largest difference to the original, relative to its largest output.
        latency_ratio: After over before: median CPU time of alternating runs on one thread; None where it was not
            measured (not asked for, or only zeros in a model over 512 MiB).
        metric: The metric on labelled data, where some were given.
        batches: The sizes of the dynamic dimensions that were run.
    """

    before: size.Figures
    after: size.Figures
    removed_vs_masked: float
    output_change: float
    latency_ratio: float | None
    metric: MeasuredMetric | None
    batches: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def tolerance_of(model: ir.Model) -> float:
    """Return how far removed and masked may be apart: by the least precise float type among the weights."""
    types = {v.dtype for v in model.graph.initializers.values() if v.dtype is not None}
    return max((TOLERANCE.get(t, 1e-4) for t in types), default=1e-4)


def compare_with_masked(
    pruned: ir.Model, masked: ir.Model, *, seed: int = 0, eval_data: AnyData | None = None
) -> float:
    """Check that *removed == masked*: a smaller model gives the outputs of its twin with the same weights zeroed.

    Args:
        pruned: The model after a removal, all other numbers as they were.
        masked: The model before it, with what was removed zeroed.
        seed: Of the random inputs.
        eval_data: Labelled inputs, which are run where no random inputs work.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        VerificationError: The pruned model does not load or run, or differs.
        DataError: No inputs are found that the masked twin runs with.
    """
    session = runtime.make_session(masked, error=VerificationError)
    data = None if eval_data is None else open_data(masked, eval_data)
    batches = _batches(masked, session, seed, data)
    expected = [runtime.run(session, feeds, error=VerificationError) for feeds in batches]
    del session  # large models are never held twice
    _, after = _observe(pruned, VerificationError, batches=batches)
    difference = difference_to_masked(masked, expected, after.outputs)
    limit = tolerance_of(masked)
    if not difference <= limit:
        raise VerificationError(
            f"the pruned model differs from the original with the same weights zeroed by {difference:.2g} of the "
            f"largest output (allowed: {limit:.0e}); nothing was written, please report this model"
        )
    return difference


def verify(
    original: ir.Model,
    pruned: ir.Model,
    *,
    removed_vs_masked: float = 0.0,
    seed: int = 0,
    latency: bool = True,
    eval_data: AnyData | None = None,
    metric: str | None = None,
) -> Verdict:
    """Measure a pruned model against its original.

    Args:
        original: The model before.
        pruned: The model after.
        removed_vs_masked: What `compare_with_masked` found where units were removed; 0 where weights became zero.
        seed: Of the random inputs.
        latency: Whether to measure the latency ratio.
        eval_data: Labelled inputs: what ``open_data`` takes.
        metric: Which metric; by default the first that fits the data.

    Raises:
        VerificationError: The pruned model does not load or run.
        DataError: The data do not fit, or no inputs are found that the original runs with.
    """
    data = None if eval_data is None else open_data(original, eval_data)
    batches, before = _observe(original, ModelError, seed=seed, measure=_Measure(data, metric))
    _, after = _observe(pruned, VerificationError, batches=batches, measure=_Measure(data, metric, before.meter))
    shapes = runtime.concrete_shapes(original, batches[0], size.counted_values(original))
    new_shapes = runtime.concrete_shapes(pruned, batches[0], size.counted_values(pruned))
    figures = size.figures(original, shapes), size.figures(pruned, new_shapes)
    # Zeros change no graph; two sessions of a large model side by side would need its size twice to tell nothing new.
    same_and_large = figures[0].parameters == figures[1].parameters and model_io.serialized_size(original) > _LARGE
    return Verdict(
        before=figures[0],
        after=figures[1],
        removed_vs_masked=removed_vs_masked,
        output_change=_difference(before.outputs, after.outputs),
        latency_ratio=latency_ratio(original, pruned, batches[0]) if latency and not same_and_large else None,
        metric=_metric(before, after),
        batches=len(batches),
    )


def sample_inputs(model: ir.Model, *, seed: int = 0, eval_data: AnyData | None = None) -> list[runtime.Feeds]:
    """Return the inputs that `verify` runs a model on.

    Raises:
        DataError: No inputs are found that the model runs with.
    """
    session = runtime.make_session(model)
    return _batches(model, session, seed, None if eval_data is None else open_data(model, eval_data))


def latency_ratio(a: ir.Model, b: ir.Model, feeds: Mapping[str, Any]) -> float:
    """Return the latency of ``b`` over that of ``a``: alternating runs, one thread, all optimisations."""
    sessions = [runtime.make_session(m, optimize="all", threads=1) for m in (a, b)]
    return runtime.alternate(sessions[0], sessions[1], dict(feeds), rounds=_ROUNDS).ratio


@dataclass(frozen=True)
class _Measure:
    """Labelled data, the metric asked for, and how the original was measured, where that is done."""

    data: Data | None = None
    metric: str | None = None
    meter: Meter | None = None


@dataclass(frozen=True)
class _Observed:
    """What one model does: its outputs on each batch, how its metric is measured, and its value."""

    outputs: list[dict[str, Any]]
    meter: Meter | None = None
    value: float = 0.0


def _observe(
    model: ir.Model,
    error: type[OnnxPruneError],
    *,
    batches: list[runtime.Feeds] | None = None,
    seed: int = 0,
    measure: _Measure = _Measure(),  # noqa: B008 (immutable)
) -> tuple[list[runtime.Feeds], _Observed]:
    """Run a model in a session of its own, which is gone afterwards: large models are never held twice."""
    session = runtime.make_session(model, error=error)
    if batches is None:
        batches = _batches(model, session, seed, measure.data)
    outputs = [runtime.run(session, feeds, error=error) for feeds in batches]
    if measure.data is None:
        return batches, _Observed(outputs)
    if measure.meter is not None:
        return batches, _Observed(outputs, measure.meter, measure.meter.read(model, session))
    return batches, _Observed(outputs, *start(model, session, measure.data, measure.metric))


def _batches(model: ir.Model, session: ort.InferenceSession, seed: int, data: Data | None) -> list[runtime.Feeds]:
    """Return random inputs that the model runs with; where none are found, the first samples of the user's data."""
    try:
        return runtime.working_inputs(model, seed=seed, count=2, session=session)
    except DataError:
        if data is None:
            raise
        batch, names = first_samples(data.source, 2), [spec.name for spec in input_specs(model)]
        first = [batch.rows(np.arange(min(count, len(batch)))) for count in (1, 2)]
        samples = [dict(zip(names, part.inputs, strict=True)) for part in first]
        return [feeds for feeds in samples if _runs(session, feeds)] or samples[:1]


def _runs(session: ort.InferenceSession, feeds: runtime.Feeds) -> bool:
    try:
        runtime.run(session, feeds)
    except DataError:
        return False
    return True


def difference_to_masked(masked: ir.Model, expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> float:
    """Return the largest difference as `_difference` does, that of bounded outputs to their range where it is noise."""
    in_a_range = bounded.bounded_outputs(masked)
    found = [
        (n, o) for a, b in zip(expected, actual, strict=True) for n, o in runtime.compare_outputs(a, b).outputs.items()
    ]
    noise = {n for n in in_a_range if all(o.max_abs <= bounded.ROUNDING for name, o in found if name == n)}
    return max((min(o.max_rel, o.max_abs) if n in noise else o.max_rel for n, o in found), default=0.0)


def _difference(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> float:
    """Return the largest difference over all batches, relative to the largest expected output."""
    return max(runtime.compare_outputs(a, b).max_rel for a, b in zip(expected, actual, strict=True))


def _metric(before: _Observed, after: _Observed) -> MeasuredMetric | None:
    return None if before.meter is None else result(before.meter, before.value, after.value)


def ensure_same_interface(original: ir.Model, model: ir.Model) -> None:
    """Check that a trained model has the inputs and outputs of the original.

    Raises:
        VerificationError: Names, types or shapes differ.
    """
    for what, a, b in (
        ("inputs", graph_inputs(original), graph_inputs(model)),
        ("outputs", original.graph.outputs, model.graph.outputs),
    ):
        if [(v.name, v.dtype, str(v.shape)) for v in a] != [(v.name, v.dtype, str(v.shape)) for v in b]:
            raise VerificationError(f"the {what} of the retrained model are not those of the original")
