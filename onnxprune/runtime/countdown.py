"""What a long stage tells while it runs: where it is, and how long the rest will take at the speed so far."""

from __future__ import annotations

import time
from collections.abc import Callable


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
            line += f", {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        self._tell(line)
