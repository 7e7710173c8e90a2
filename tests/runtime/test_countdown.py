"""The time left follows from the parts that are done."""

from __future__ import annotations

import pytest

from onnxprune.runtime import countdown
from onnxprune.runtime.countdown import Countdown


def test_time_left_is_that_of_the_speed_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 100.0, 160.0])
    monkeypatch.setattr(countdown.time, "perf_counter", lambda: next(now))
    lines: list[str] = []
    count = Countdown("calibrate: block", 4, lines.append)
    count()
    count()
    count(2)
    assert lines == [
        "calibrate: block 1 of 4",
        "calibrate: block 2 of 4, 5:00 left",
        "calibrate: block 4 of 4, 2:40 left",
    ]


def test_nobody_need_listen() -> None:
    Countdown("calibrate: block", 4, None)()
