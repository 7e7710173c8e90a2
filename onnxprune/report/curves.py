"""Loss and metric of a training, epoch by epoch, as lines of an SVG with axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 384, 128


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        name: What it shows.
        points: Places in the plot, one an epoch, as an SVG polyline has them.
        low, high: The values at the bottom and at the top.
        first, last: The values at both ends.
        epochs: How many epochs there are.
        prunings: Where, from left to right, the network was pruned again.
    """

    name: str
    points: str
    low: float
    high: float
    first: float
    last: float
    epochs: int
    prunings: tuple[float, ...]


def training_curves(retraining: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return a curve of the loss, and one of the metric where it was measured; none without training.

    Args:
        retraining: The iterations of a run, as `Result.retraining` has them. Their trainings follow each other.
    """
    trainings = [training for iteration in retraining for training in iteration["trainings"]]
    epochs = [epoch for training in trainings for epoch in training["history"]]
    starts = [sum(len(t["history"]) for t in trainings[:i]) for i in range(1, len(trainings))]
    metric = next((str(t["metric_name"]) for t in trainings if t["metric_name"]), "metric")
    rows = {"training loss": [e["loss"] for e in epochs], metric: [e["metric"] for e in epochs]}
    curves = (_curve(name, values, starts) for name, values in rows.items())
    return [curve for curve in curves if curve is not None]


def _curve(name: str, values: Sequence[float | None], starts: Sequence[int]) -> Curve | None:
    known = [(i, float(v)) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    if not known:
        return None
    low, high = min(v for _, v in known), max(v for _, v in known)
    across, up = max(len(values) - 1, 1), (high - low) or 1.0
    points = " ".join(f"{WIDTH * i / across:.1f},{HEIGHT * (1 - (v - low) / up):.1f}" for i, v in known)
    prunings = tuple(round(WIDTH * (start - 0.5) / across, 1) for start in starts)
    return Curve(name, points, low, high, known[0][1], known[-1][1], len(values), prunings)
