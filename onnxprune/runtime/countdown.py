"""What a long stage tells while it runs: where it is, and how long the rest will take at the speed so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class Portion(str):
    """A line that tells of a stage, and which share of the stage is done: what can be shown as a bar.

    Attributes:
        done: From 0 to 1.
    """

    done: float

    def __new__(cls, line: str, done: float) -> Portion:
        """Put the line and the share together."""
        portion = super().__new__(cls, line)
        portion.done = min(max(done, 0.0), 1.0)
        return portion


def time_left(seconds: float) -> str:
    """Say how long something will take: 3:10 left, or 1:03:10 left."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


class Countdown:
    """Tells of each part of a stage as it begins.

    Args:
        what: The stage.
        total: How many parts it has.
        tell: Called with one line; None where nobody listens.

    Example:
        countdown = Countdown("calibrate: block", 24, print)
        countdown()         # calibrate: block 1 of 24
        countdown()         # calibrate: block 2 of 24, 3:10 left
    """

    def __init__(self, what: str, total: int, tell: Callable[[str], None] | None) -> None:
        self._what, self._total, self._tell = what, total, tell
        self._start, self._begun = time.perf_counter(), 0

    def __call__(self, parts: int = 1) -> None:
        """A part begins, or several that are done together."""
        done, self._begun = self._begun, self._begun + parts
        if self._tell is None:
            return
        line = f"{self._what} {self._begun} of {self._total}"
        if done:
            seconds = (time.perf_counter() - self._start) / done * (self._total - done)
            line += f", {time_left(seconds)}"
        self._tell(Portion(line, done / self._total) if self._total else line)
