"""What a long run tells while it runs: plain events to a callback, and a rich display that shows them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onnxprune.runtime.countdown import time_left


@dataclass(frozen=True)
class Event:
    """Where a run stands.

    Attributes:
        iteration, iterations: Of prune and retrain, counted from 1.
        step, steps: Optimiser steps done and to do in this training.
        loss: Mean over the last batches (NaN before the first).
        metric_name, metric: The last value on the validation data; None before the first, or without such data.
        sparsity: Share of the masked weights that is zero.
        seconds_left: Of this training, from its speed so far.
    """

    iteration: int
    iterations: int
    step: int
    steps: int
    loss: float
    metric_name: str
    metric: float | None
    sparsity: float
    seconds_left: float


Progress = Callable[[Event], None]


@contextmanager
def display() -> Iterator[Progress]:
    """A progress bar of one line; gives the callback that feeds it."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    with Bars(TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), expand=True) as bars:
        task = bars.add_task("training")

        def show(event: Event) -> None:
            bars.update(task, description=describe(event), completed=event.step, total=event.steps)

        yield show


_LONGEST_NAME = 16


def describe(event: Event) -> str:
    """Say where a training is in one line, short enough to leave room for a bar on 80 columns."""
    parts = [f"retrain {event.iteration}/{event.iterations}"]
    if event.metric is not None:
        name = event.metric_name.rpartition(":")[2][:_LONGEST_NAME]
        parts.append(f"{name} {event.metric:.4g}")
    if not math.isnan(event.loss):
        parts.append(f"loss {event.loss:.3g}")
    if not math.isnan(event.seconds_left):
        parts.append(time_left(event.seconds_left))
    return "  ".join(parts)


class Ticker:
    """Says when it is time for another event: at most one each `every` seconds, so that telling costs nothing."""

    def __init__(self, every: float = 0.2) -> None:
        self.every = every
        self.start = time.monotonic()
        self._last = 0.0
        self._before: int | None = None

    def due(self) -> bool:
        """True if the last event lies long enough back."""
        now = time.monotonic()
        if now - self._last < self.every:
            return False
        self._last = now
        return True

    def left(self, done: int, total: int) -> float:
        """Seconds still to go at the speed so far; NaN before the second call.

        Args:
            done: Parts that are done. Those of the first call took no time here, as in a training that goes on.
            total: All parts.
        """
        if self._before is None:
            self._before, self.start = done, time.monotonic()
        here = done - self._before
        return (time.monotonic() - self.start) / here * (total - done) if here else float("nan")
