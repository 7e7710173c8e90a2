"""Which of two models is faster, and by how much: alternating runs, thread CPU time, the median of many rounds.

Measured noise of 15 rounds is 1 to 3 %, where wall clock gives 2 to 19 % on a shared machine. Two sessions of the same
models differ by up to 3 % however often they run, which may be where their weights lie in memory: `measure_models`
takes the middle one of three pairs. `alternate` wants sessions made with threads=1: only then the calling thread does
all of the work.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.runtime.session import make_session
from onnxprune.structure.machine import processor

_SHORTEST_SAMPLE = 0.005  # seconds; faster models are run several times per sample
_MOST_ROUNDS = 61
_PAIRS, _ROUNDS_OF_PAIR = 3, 7
_SETTLED = 2.0  # CPU seconds for a ratio that something is decided by


@dataclasses.dataclass(frozen=True)
class Latency:
    """CPU seconds of one run of each model, the median over the rounds.

    Attributes:
        a: Of the reference.
        b: Of the model compared with it.
        rounds: How many samples of each.
        least_a, least_b: The fastest samples.
    """

    a: float
    b: float
    rounds: int
    least_a: float
    least_b: float

    @property
    def ratio(self) -> float:
        """b / a: below 1 the second is faster."""
        return self.b / self.a

    @property
    def least_ratio(self) -> float:
        """b / a of the fastest samples, which other work on the machine disturbs least."""
        return self.least_b / self.least_a


@dataclasses.dataclass(frozen=True)
class LatencyFigure:
    """What a person is told of the latency of two models.

    Attributes:
        before_ms, after_ms: CPU milliseconds of one run, the median.
        ratio: After over before.
        processor: The machine's processor.
        threads: Of ONNX Runtime.
        onnxruntime: Its version.
    """

    before_ms: float
    after_ms: float
    ratio: float
    processor: str
    threads: int
    onnxruntime: str


def latency_figure(measured: Latency) -> LatencyFigure:
    """Return what was measured, with the machine that measured it."""
    milliseconds = 1000 * measured.a, 1000 * measured.b
    return LatencyFigure(*milliseconds, measured.ratio, processor(), 1, ort.__version__)


def measure_models(
    a: ir.Model,
    b: ir.Model,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    feeds_b: Mapping[str, npt.NDArray[Any]] | None = None,
    settled: bool = False,
    error: type[OnnxPruneError] = ModelError,
) -> Latency:
    """Measure two models: the middle one, by its ratio, of three pairs of sessions.

    Args:
        a: The reference.
        b: The model compared with it.
        feeds: Inputs of both.
        feeds_b: Inputs of `b`, where they differ.
        settled: Take more rounds, for two CPU seconds or 61 of each pair, so that searches end at the same model.
        error: What is raised where `b` does not load.

    Raises:
        ModelError: ONNX Runtime does not load `a`.
    """

    def pair() -> Latency:
        sessions = make_session(a, optimize="all", threads=1), make_session(b, optimize="all", threads=1, error=error)
        return alternate(
            *sessions, feeds, feeds_b=feeds_b, rounds=_ROUNDS_OF_PAIR, seconds=_SETTLED / _PAIRS if settled else 0.0
        )

    return sorted((pair() for _ in range(_PAIRS)), key=lambda latency: latency.ratio)[_PAIRS // 2]


def alternate(
    a: ort.InferenceSession,
    b: ort.InferenceSession,
    feeds: Mapping[str, npt.NDArray[Any]],
    *,
    feeds_b: Mapping[str, npt.NDArray[Any]] | None = None,
    rounds: int = 15,
    seconds: float = 0.0,
    warmup: int = 3,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Measure two sessions in alternation.

    Args:
        a: Session of the reference; make it with threads=1 and optimize="all".
        b: Session of the model compared with it.
        feeds: Inputs of both.
        feeds_b: Inputs of `b`, where they differ.
        rounds: Samples of each; each round takes one of both, in alternating order.
        seconds: As many more rounds, 61 in all, as end in so many CPU seconds.
        warmup: Runs of each beforehand, which are not counted.
        progress: Called with (rounds done, rounds) after each round.

    Raises:
        ValueError: Fewer than one round.
    """
    runs = _runner(a, feeds), _runner(b, feeds if feeds_b is None else feeds_b)
    return alternate_runs(*runs, rounds=rounds, seconds=seconds, warmup=warmup, progress=progress)


def alternate_runs(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    rounds: int = 15,
    seconds: float = 0.0,
    warmup: int = 3,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> Latency:
    """Measure two functions in alternation, each of which runs a model once.

    Args:
        a: Runs the reference.
        b: Runs the model compared with it.
        rounds, seconds, warmup, progress: See `alternate`.
        clock: Tells seconds; by default of CPU of the calling thread.

    Raises:
        ValueError: Fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    runs = a, b
    for _ in range(max(warmup, 1)):
        for once in runs:
            once()
    repeats = [_repeats(once, clock) for once in runs]
    samples: tuple[list[float], list[float]] = ([], [])
    done, started = 0, clock()
    while done < rounds or (done < _MOST_ROUNDS and clock() - started < seconds):
        for which in (0, 1) if done % 2 == 0 else (1, 0):
            samples[which].append(_sample(runs[which], repeats[which], clock))
        done += 1
        if progress is not None:
            progress(done, max(done, rounds))
    a_, b_ = samples
    return Latency(statistics.median(a_), statistics.median(b_), done, min(a_), min(b_))


def _runner(session: ort.InferenceSession, feeds: Mapping[str, npt.NDArray[Any]]) -> Callable[[], None]:
    inputs = dict(feeds)

    def once() -> None:
        session.run(None, inputs)

    return once


def _repeats(once: Callable[[], object], clock: Callable[[], float]) -> int:
    """How many runs fill the shortest sample."""
    return max(1, round(_SHORTEST_SAMPLE / max(_sample(once, 1, clock), 1e-7)))


def _sample(once: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one run, averaged over `repeats` in a row."""
    start = clock()
    for _ in range(repeats):
        once()
    return (clock() - start) / repeats
