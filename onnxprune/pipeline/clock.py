"""The clock of a run: it tells which stage begins and notes how long each stage took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

LOG = logging.getLogger(__name__)
Outcome = TypeVar("Outcome")
Progress = Callable[[str], None]
"""Called with the name of each stage as it begins."""


class Clock:
    """Runs the stages of a run.

    Attributes:
        progress: Called with the name of each stage; None where nobody listens.
        seconds: The time that each stage took, by its name. Stages of one name are added up.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, stage: Callable[[], Outcome]) -> Outcome:
        """Run one stage and return what it returns."""
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        outcome = stage()
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        LOG.info("%s: %.2f s", name, seconds)
        return outcome
