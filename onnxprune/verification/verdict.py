"""The verdict of a run, measured in ONNX Runtime: it loads, it runs, *removed == masked*, and how it compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io, runtime
from onnxprune.data.readers import AnyData, Data, open_data
from onnxprune.data.working import give_samples
from onnxprune.errors import ModelError, OnnxPruneError, VerificationError
from onnxprune.graph import size
from onnxprune.graph.dims import graph_inputs
from onnxprune.graph.hints import hints_of
from onnxprune.runtime.in_blocks import check_session, run_each
from onnxprune.runtime.latency import LatencyFigure, latency_figure
from onnxprune.verification.candidates import working
from onnxprune.verification.change import changes_of, worst
from onnxprune.verification.comparable import seeded
from onnxprune.verification.evaluate import MeasuredMetric, Meter, measured_metric, start_meter
from onnxprune.verification.notebook import in_notebook

_LARGE = 512 << 20  # bytes


@dataclass(frozen=True)
class FigureRow:
    """A figure before and after, as texts, and after / before where it is a ratio."""

    name: str
    before: str
    after: str
    ratio: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What was measured.

    Attributes:
        before, after: Parameters, multiply-adds and bytes.
        removed_vs_masked: Largest difference to the masked twin, relative to its largest output.
        unproved: Why the comparison with the masked twin proved nothing; "" where it did or nothing was cut.
        output_change: Largest difference to the original, relative to the largest value of the part of an output that
            it lies in; NaN where no output says anything.
        output_changes: The same of each output.
        latency: The same in milliseconds, with the machine that measured it.
        latency_ratio: After over before: median CPU time of alternating runs on one thread; None where it was not
            measured (not asked for; or, in a model over 512 MiB, only zeros, or weights of 16 bits).
        metric: The metric on labelled data, where some were given.
        batches: The sizes of the dynamic dimensions that were run.
        input_shapes: The inputs that multiply-adds and latency are of: one sample, where the model takes one.
    """

    before: size.Figures
    after: size.Figures
    removed_vs_masked: float
    unproved: str
    output_change: float
    latency_ratio: float | None
    metric: MeasuredMetric | None
    batches: int
    output_changes: Mapping[str, float] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    latency: LatencyFigure | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @property
    def rows(self) -> tuple[FigureRow, ...]:
        """The figures before and after; those that were not measured are left out."""
        a, b = self.before, self.after
        counts: list[tuple[str, int | None, int | None]] = [
            ("file (bytes)", a.file_bytes, b.file_bytes),
            ("parameters", a.parameters, b.parameters),
            ("not zero", a.nonzero_parameters, b.nonzero_parameters),
            (f"multiply-adds{of_inputs(self.input_shapes)}", a.macs, b.macs),
        ]
        rows = [FigureRow(n, f"{x:,}", f"{y:,}", y / x) for n, x, y in counts if x and y is not None]
        if (latency := self.latency) is not None:
            name = f"latency (ms, {latency.threads} thread; {latency.processor}, ONNX Runtime {latency.onnxruntime})"
            rows.append(FigureRow(name, f"{latency.before_ms:.3g}", f"{latency.after_ms:.3g}", latency.ratio))
        if (m := self.metric) is not None:
            rows.append(FigureRow(f"{m.name} ({m.samples:,} samples)", f"{m.before:.4f}", f"{m.after:.4f}"))
        return tuple(rows)

    @property
    def headline(self) -> str:
        """Bytes, latency and metric in a few words."""
        sizes = self.before.file_bytes, self.after.file_bytes
        larger = "larger" if sizes[1] > sizes[0] else "smaller"
        parts = [f"{max(sizes) / max(min(sizes), 1):.2f}× {larger} file"]
        if self.latency_ratio is not None:
            parts.append(f"{self.latency_ratio:.2f} of the latency")
        if (m := self.metric) is not None:
            parts.append(f"{m.name} {m.before:.4f} → {m.after:.4f}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<Verdict: {self.headline}; outputs change by {self.output_change:.2g}>"

    def _repr_html_(self) -> str:
        rows = [(row.name, row.before, row.after, "" if row.ratio is None else row.ratio) for row in self.rows]
        note = f"Outputs change by {self.output_change:.2g} of their largest value."
        return in_notebook(self.headline, ("", "before", "after", "after / before"), rows, (note,))


def of_inputs(shapes: Mapping[str, Sequence[int]]) -> str:
    """Say at which input shapes a figure was taken, a few of many; empty where that is not known."""
    if not shapes:
        return ""
    first = [f"{name} {list(shape)}" for name, shape in list(shapes.items())[:2]]
    more = f", {len(shapes) - 2} more" if len(shapes) > 2 else ""
    return f" of {', '.join(first)}{more}"


def verify(
    original: ir.Model,
    pruned: ir.Model,
    *,
    removed_vs_masked: float = 0.0,
    unproved: str = "",
    seed: int = 0,
    latency: bool = True,
    eval_data: AnyData | None = None,
    metric: str | None = None,
) -> Verdict:
    """Measure a pruned model against its original.

    Args:
        original: The model before.
        pruned: The model after.
        removed_vs_masked: What `prove` found where units were removed; 0 where weights became zero.
        unproved: Why that proved nothing, or "".
        seed: Of the random inputs.
        latency: Whether to measure the latency ratio.
        eval_data: Labelled inputs: what ``open_data`` takes.
        metric: Which metric; by default the first that fits the data.

    Raises:
        VerificationError: The pruned model does not load or run.
        DataError: The data do not fit, or no inputs are found that the original runs with.
    """
    data = None if eval_data is None else open_data(original, eval_data)
    if data is not None:
        _know_samples(original, data)
    batches, before = _observe(original, ModelError, seed=seed, measure=_Measure(data, metric))
    _, after = _observe(pruned, VerificationError, batches=batches, measure=_Measure(data, metric, before.meter))
    changes = changes_of(original, pruned, batches, before.outputs, after.outputs, seed=seed)
    sample = runtime.one_sample(original, seed=seed, instead=batches[0], session=check_session(original))
    shapes = runtime.concrete_shapes(original, sample, size.counted_values(original))
    new_shapes = runtime.concrete_shapes(pruned, sample, size.counted_values(pruned))
    figures = size.figures(original, shapes), size.figures(pruned, new_shapes)
    timed = measure_latency(original, pruned, sample) if latency and _worth_timing(original, figures) else None
    return Verdict(
        before=replace(figures[0], file_bytes=model_io.size_of_files(original)),
        after=figures[1],
        removed_vs_masked=removed_vs_masked,
        unproved=unproved,
        output_change=worst(changes),
        output_changes=changes,
        latency_ratio=None if timed is None else timed.ratio,
        latency=timed,
        metric=_metric(before, after),
        batches=len(batches),
        input_shapes={name: np.shape(array) for name, array in sample.items()},
    )


def _worth_timing(original: ir.Model, figures: tuple[size.Figures, size.Figures]) -> bool:
    """Whether two sessions side by side tell something of a model, and do not take several times its size.

    Zeros change no graph. With all its optimisations ONNX Runtime holds 16-bit weights as float32 on the CPU, where
    nobody deploys such a model.
    """
    if model_io.serialized_size(original) <= _LARGE:
        return True
    half = any(v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for v in original.graph.initializers.values())
    return figures[0].parameters != figures[1].parameters and not half


def sample_inputs(model: ir.Model, *, seed: int = 0, eval_data: AnyData | None = None) -> list[runtime.Feeds]:
    """Return the inputs that `verify` runs a model on.

    Raises:
        DataError: No inputs are found that the model runs with.
    """
    if eval_data is not None:
        _know_samples(model, open_data(model, eval_data))
    return runtime.working_inputs(model, seed=seed, count=2)


def measure_latency(
    a: ir.Model, b: ir.Model, feeds: Mapping[str, Any], other: Mapping[str, Any] | None = None
) -> LatencyFigure:
    """Return the latency of both models: alternating runs, one thread, all optimisations.

    Args:
        a, b: The models.
        feeds: Inputs of both, or of the first.
        other: Inputs of the second, where it takes others.
    """
    return latency_figure(runtime.measure_models(a, b, feeds, feeds_b=other))


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
    model_run, session = seeded(model), None
    if measure.data is not None:  # a metric takes many runs, of the model as a whole
        session = runtime.make_session(model_run, error=error)
    if batches is None:
        ran = working(model_run, seed=seed, error=error, session=session)
        batches, outputs = [feeds for feeds, _ in ran], [outputs for _, outputs in ran]
    else:
        outputs = run_each(session or check_session(model_run, error=error), batches, error=error)
    if session is None or measure.data is None:
        return batches, _Observed(outputs)
    if measure.meter is not None:
        return batches, _Observed(outputs, measure.meter, measure.meter.read(model, session))
    return batches, _Observed(outputs, *start_meter(model, session, measure.data, measure.metric))


def _know_samples(model: ir.Model, data: Data) -> None:
    """Let the model carry samples of the user's data, for where made-up inputs do not run."""
    if not hints_of(model).samples:
        give_samples(model, data)


def _metric(before: _Observed, after: _Observed) -> MeasuredMetric | None:
    return None if before.meter is None else measured_metric(before.meter, before.value, after.value)


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
