"""What a sweep found: one trial a combination of settings, which of them are best, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune.pipeline.sweep_grid import label_of
from onnxprune.recipe.recipe import Recipe
from onnxprune.recipe.requirements import Limit
from onnxprune.verification.requirements import missed_limits

COSTS: Mapping[str, str] = {
    "latency": "latency, after / before",
    "size": "bytes of the file, after / before",
    "macs": "multiply-adds, after / before",
}
"""Figures that a model's quality is set against."""


_SHORT = {"latency": "the latency", "size": "the bytes", "macs": "the multiply-adds"}


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        varied: The settings that differ from run to run, by field.
        recipe: All settings.
        command: The command line that writes this model; "" where no flags say it.
        figures: What was measured, by the names of limits: ``latency``, ``size``, ``macs``, ``sparsity``, ...
        metric: The metric as `MeasuredMetric` has it, as plain data; None where none was measured.
        machine: The processor and the ONNX Runtime that measured the latency; "" where it was not measured.
        seconds: How long the run took.
        notes: What a person should know of the result.
        failed: Why there is no result; "" where there is one.
    """

    varied: Mapping[str, Any]
    recipe: Recipe
    command: str
    figures: Mapping[str, float] = field(default_factory=dict)
    metric: Mapping[str, Any] | None = None
    machine: str = ""
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    failed: str = ""

    @property
    def label(self) -> str:
        """The settings that differ, in one text."""
        return label_of(self.varied)

    @property
    def loss(self) -> float:
        """What was lost: of the metric, or where none was measured, how far outputs changed; NaN where it failed."""
        return self.figures.get("metric_drop", self.figures.get("output_change", math.nan))

    def __repr__(self) -> str:
        costs = ", ".join(
            f"{self.figures[cost]:.2f} of {name}" for cost, name in _SHORT.items() if cost in self.figures
        )
        lost = f"loses {self.loss:.4g}{f', {costs}' if costs else ''}"
        return f"<Trial {self.label}: {self.failed or lost}>"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in self.varied.items()},
            "command": self.command,
            "figures": dict(self.figures),
            "metric": None if self.metric is None else dict(self.metric),
            "machine": self.machine,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "failed": self.failed,
        }


def front(trials: Sequence[Trial], cost: str) -> tuple[Trial, ...]:
    """Return the trials on the Pareto front: no other trial, nor the original, is better in one thing and no worse.

    Args:
        trials: The trials of a sweep.
        cost: One of `COSTS`.
    """
    points = [(t.figures.get(cost, math.nan), t.loss, t) for t in trials if not t.failed]
    points = [(c, loss, t) for c, loss, t in points if math.isfinite(c) and math.isfinite(loss)]
    rivals = [(c, loss) for c, loss, _ in points] + [(1.0, 0.0)]
    return tuple(t for c, loss, t in points if not any(_beats(rival, (c, loss)) for rival in rivals))


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def best_first(trials: Iterable[Trial], limits: Sequence[Limit] = ()) -> Iterator[Trial]:
    """Yield the trials that keep all limits: the least loss first; of equals the fastest, then the smallest."""
    kept = [t for t in trials if not t.failed and not missed_limits(limits, t.figures)]
    costs = ("latency", "macs", "size")

    def order(trial: Trial) -> tuple[float, ...]:
        figures = (trial.loss, *(trial.figures.get(cost, math.nan) for cost in costs))
        return tuple(math.inf if math.isnan(figure) else figure for figure in figures)

    yield from sorted(kept, key=order)
