"""What a long run tells while it runs: plain events to a callback, and a rich display that shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


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
    """A rich progress bar; gives the callback that feeds it."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TimeElapsedColumn())
    with Bars(*columns) as bars:
        task = bars.add_task("training", figures="")

        def show(event: Event) -> None:
            bars.update(
                task,
                description=f"retrain {event.iteration}/{event.iterations}",
                completed=event.step,
                total=event.steps,
                figures=describe(event),
            )

        yield show


def describe(event: Event) -> str:
    """The event's figures on one line, the most wanted first: what lies behind may be cut."""
    metric = "" if event.metric is None else f"{event.metric_name} {event.metric:.4f}  "
    minutes, seconds = divmod(int(event.seconds_left) if event.seconds_left == event.seconds_left else 0, 60)
    return f"{metric}loss {event.loss:.3g}  {minutes}:{seconds:02d} left  sparsity {event.sparsity:.1%}"


class Ticker:
    """Says when it is time for another event: at most one each `every` seconds, so that telling costs nothing."""

    def __init__(self, every: float = 0.2) -> None:
        self.every = every
        self.start = time.monotonic()
        self._last = 0.0

    def due(self) -> bool:
        """True if the last event lies long enough back."""
        now = time.monotonic()
        if now - self._last < self.every:
            return False
        self._last = now
        return True

    def left(self, done: int, total: int) -> float:
        """Seconds still to go if `total - done` parts take as long as the `done` did."""
        return (time.monotonic() - self.start) / done * (total - done) if done else float("nan")
