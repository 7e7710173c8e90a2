"""The verdict of a run, measured in ONNX Runtime: it loads, it runs, *removed == masked*, and how it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import RecipeError, VerificationError

TOLERANCE = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}
"""Largest difference between removed and masked, relative to the largest output; 1e-4 for all other types."""

_ROUNDS = 15


@dataclass(frozen=True)
class Metric:
    """A number on labelled data, before and after."""

    name: str
    before: float
    after: float
    samples: int


@dataclass(frozen=True)
class Verdict:
    """What was measured.

    Attributes:
        before, after: Parameters, multiply-adds and bytes.
        removed_vs_masked: Largest difference to the masked twin, relative to its largest output.
        output_change: Largest difference to the original, relative to its largest output.
        latency_ratio: After over before: median CPU time of alternating runs on one thread.
        metric: The metric on labelled data, where some were given.
        batches: The sizes of the dynamic dimensions that were run.
    """

    before: runtime.Figures
    after: runtime.Figures
    removed_vs_masked: float
    output_change: float
    latency_ratio: float | None
    metric: Metric | None
    batches: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def tolerance_of(model: ir.Model) -> float:
    """Return how far removed and masked may be apart: by the least precise float type among the weights."""
    types = {v.dtype for v in model.graph.initializers.values() if v.dtype is not None}
    return max((TOLERANCE.get(t, 1e-4) for t in types), default=1e-4)


def verify(
    original: ir.Model,
    pruned: ir.Model,
    masked: ir.Model | None,
    *,
    seed: int = 0,
    latency: bool = True,
    eval_data: str | Path | None = None,
    metric: str | None = None,
) -> Verdict:
    """Measure a pruned model against its original and its masked twin.

    Args:
        original: The model before.
        pruned: The model after.
        masked: The original with all removed weights zeroed; None where nothing was removed, only zeroed.
        seed: Of the random inputs.
        latency: Whether to measure the latency ratio.
        eval_data: An .npz with labelled inputs.
        metric: Which metric: ``accuracy``, ``top5`` or ``mse``; by default the first that fits the data.

    Raises:
        VerificationError: The pruned model does not load or run, or differs from its masked twin.
        DataError: The data do not fit, or no inputs are found that the original runs with.
    """
    session = runtime.make_session(original)
    batches = runtime.working_inputs(original, seed=seed, count=2, session=session)
    expected = [runtime.run(session, feeds) for feeds in batches]
    after = runtime.make_session(pruned, error=VerificationError)
    actual = [runtime.run(after, feeds, error=VerificationError) for feeds in batches]
    difference = 0.0
    if masked is not None:
        twin = runtime.make_session(masked, error=VerificationError)
        for feeds, got in zip(batches, actual, strict=True):
            wanted = runtime.run(twin, feeds, error=VerificationError)
            difference = max(difference, runtime.compare_outputs(wanted, got).max_rel)
        del twin
        limit = tolerance_of(original)
        if not difference <= limit:
            raise VerificationError(
                f"the pruned model differs from the original with the same weights zeroed by {difference:.2g} of the "
                f"largest output (allowed: {limit:.0e}); nothing was written, please report this model"
            )
    change = max(runtime.compare_outputs(a, b).max_rel for a, b in zip(expected, actual, strict=True))
    measured = None if eval_data is None else _metric(session, after, Path(eval_data), metric)
    shapes = runtime.concrete_shapes(original, batches[0], runtime.counted_values(original))
    new_shapes = runtime.concrete_shapes(pruned, batches[0], runtime.counted_values(pruned))
    del session, after
    return Verdict(
        before=runtime.figures(original, shapes),
        after=runtime.figures(pruned, new_shapes),
        removed_vs_masked=difference,
        output_change=change,
        latency_ratio=latency_ratio(original, pruned, batches[0]) if latency else None,
        metric=measured,
        batches=len(batches),
    )


def latency_ratio(a: ir.Model, b: ir.Model, feeds: Mapping[str, Any]) -> float:
    """Return the latency of ``b`` over that of ``a``: alternating runs, one thread, all optimisations."""
    sessions = [runtime.make_session(m, optimize="all", threads=1) for m in (a, b)]
    return runtime.alternate(sessions[0], sessions[1], dict(feeds), rounds=_ROUNDS).ratio


def _metric(before: Any, after: Any, path: Path, name: str | None) -> Metric:
    data = runtime.LabelledData.load(path, before)
    a, b = (runtime.evaluate(session, data) for session in (before, after))
    name = name or next(iter(a))
    if name not in a:
        raise RecipeError(f"--metric: there is no {name!r} on these data; choose from {', '.join(a)}")
    return Metric(name, a[name], b[name], data.samples)
