"""Looking for the sparsity that gives what was asked for, in few runs. Pure arithmetic: what a run is, the caller says.

Both searches ask ``measure(sparsity)`` for a number, remember every answer, and are deterministic where it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MOST = 0.999
"""The sparsity at which everything goes that can."""

_CLOSE = 0.02  # a ratio this near to the wanted one, relative to it, ends the search
_CLOSE_UNDER = 0.005  # the same of a budget that must not be exceeded
_FINEST = 1 / 2048  # no two sparsities closer than this are tried; under a budget, than this share of what is left
_FINEST_OF_COST = 0.005  # the same where what goes is divided anew for each, so that nothing lies between
_INTERPOLATED = 6  # so many tries at most are guesses between two points
_WORLDS = 4  # so many possible outcomes are thought through for each sparsity that is measured ahead
_LEAST = 1e-9  # in the place of 0, where a logarithm is taken

Measure = Callable[[float], float]
MeasureEach = Callable[[Sequence[float]], Sequence[float | None]]
"""From sparsities to what is measured of each; None, which the first never is, where it was not to be had."""


@dataclass(frozen=True)
class Try:
    """One run: the sparsity asked for, and what was measured."""

    sparsity: float
    value: float


@dataclass(frozen=True)
class Outcome:
    """What a search ended with.

    Attributes:
        best: The run to keep; None where none does.
        tries: All runs, in their order.
    """

    best: Try | None
    tries: tuple[Try, ...]


def nearest_ratio(
    measure: Measure,
    wanted: float,
    *,
    under: bool,
    of_cost: bool = False,
    least: float = 0.0,
    whole: float | None = None,
    most_tries: int = 16,
) -> Outcome:
    """Find the sparsity at which a figure that falls with it is what is wanted: by interpolation, then by halves.

    Near its end the figure is a staircase of units, of which some save far more than others: halves find the step.

    Args:
        measure: From a sparsity to the figure, after / before.
        wanted: The figure.
        under: Keep only what is no more than ``wanted``; otherwise the nearest is kept, by its ratio to ``wanted``.
        of_cost: Whether sparsities are shares of what the figure is of, and are used as fully as units allow.
        least: The least sparsity that makes sense.
        whole: The figure at ``least``, where it is known without a run.
        most_tries: Runs at most, but for one at `MOST`.

    Returns:
        No ``best`` where even `MOST` is not enough; the last try is that at `MOST`.
    """
    search = _Runs(measure)
    low = Try(least, whole) if whole is not None else search.at(least)
    high: Try | None = None
    same_side = 0
    while low.value > wanted and len(search.tries) < most_tries:
        end = MOST if high is None else high.sparsity
        left = 1 - low.sparsity if under or of_cost else 1.0
        if end - low.sparsity <= left * (_FINEST_OF_COST if of_cost else _FINEST):
            break
        halve = abs(same_side) > 1 or len(search.tries) >= _INTERPOLATED
        new = search.at(_between(low, high, wanted, halve=halve))
        if (new.value <= wanted or not under) and abs(new.value / wanted - 1) <= (_CLOSE_UNDER if under else _CLOSE):
            break
        if new.value > wanted:
            low, same_side = new, max(same_side, 0) + 1
        else:
            high, same_side = new, min(same_side, 0) - 1
    reached = [t for t in (low, *search.tries) if t.value <= wanted or (not under and t.value <= wanted * (1 + _CLOSE))]
    if not reached and (last := search.at(MOST)).value <= wanted:
        reached = [last]
    if not reached:
        return Outcome(None, search.tries)
    fits = reached if under else [low, *search.tries]
    return Outcome(min(fits, key=lambda t: abs(math.log(max(t.value, _LEAST) / wanted))), search.tries)


def _between(low: Try, high: Try | None, wanted: float, halve: bool) -> float:
    """The sparsity to try next, between two that are too little and too much (None: not known yet).

    Between two points figures go about as a power of what is left; where one end stays for long, by halves.
    """
    end = MOST if high is None else high.sparsity
    left, at_end = math.log(1 - low.sparsity), math.log(1 - end)
    if high is None:
        guess = left + math.log(wanted / low.value)
    else:
        share = math.log(low.value / wanted) / max(math.log(low.value / max(high.value, _LEAST)), _LEAST)
        guess = left + share * (at_end - left)
    share = 0.5 if halve else (1 - math.exp(guess) - low.sparsity) / (end - low.sparsity)
    return low.sparsity + min(max(share, 0.1), 0.9) * (end - low.sparsity)


def highest_within(
    measure: MeasureEach, limit: float, *, least: float = 0.0, most_tries: int = 24, ahead: int = 1
) -> Outcome:
    """Find the highest sparsity whose loss is within the limit, and 5 % more of which is not.

    Losses need not rise evenly: a search by halves ends at a sparsity that holds, with one just above it that does not;
    then 5 % more (both times 1.05 and 5 points more) is tried, and where that holds the search goes on from there.

    Args:
        measure: From sparsities to their losses; NaN holds no limit.
        limit: The loss that is allowed.
        least: The least sparsity that makes sense.
        most_tries: Runs at most.
        ahead: Sparsities that are measured at a time: the next one, and those that it may lead to, whether it holds
            or not. The outcome is the same for any number.

    Returns:
        No ``best`` where nothing holds.
    """
    known: dict[float, bool] = {}  # whether it holds
    values: dict[float, float] = {}
    while True:
        wanted = _next_ones(known, ahead, least, most_tries)
        if not wanted:
            best, path = _by_halves(known, least, most_tries)
            tries = {sparsity: Try(sparsity, values[sparsity]) for sparsity in path}
            return Outcome(None if best is None else tries[best], tuple(tries.values()))
        for sparsity, value in zip(wanted, measure(wanted), strict=True):
            if value is not None:
                values[sparsity], known[sparsity] = value, value <= limit


class _Unknown(Exception):
    """A sparsity that has to be measured before the search can go on."""

    def __init__(self, sparsity: float) -> None:
        self.sparsity = sparsity


def _next_ones(known: Mapping[float, bool], count: int, least: float, most_tries: int) -> list[float]:
    """The sparsity that the search needs next, and up to `count` in all that it may need after that, nearest first."""
    wanted: list[float] = []
    worlds = deque([dict(known)])
    for _ in range(_WORLDS * count):
        if not worlds or len(wanted) == count:
            break
        world = worlds.popleft()
        try:
            _by_halves(world, least, most_tries)
        except _Unknown as unknown:
            if unknown.sparsity not in wanted:
                wanted.append(unknown.sparsity)
            worlds += [{**world, unknown.sparsity: holds} for holds in (True, False)]
    return wanted


def _by_halves(known: Mapping[float, bool], least: float, most_tries: int) -> tuple[float | None, list[float]]:
    """The highest sparsity that holds and all that were looked at, as `highest_within` says.

    Raises:
        _Unknown: It is not known whether a sparsity holds.
    """
    path: dict[float, bool] = {}

    def holds(sparsity: float) -> bool:
        if sparsity not in known:
            raise _Unknown(sparsity)
        path[sparsity] = known[sparsity]
        return path[sparsity]

    best: float | None = None
    low, high = least, MOST
    while len(path) < most_tries:
        if high - low > _resolution(low):
            middle = round((low + high) / 2, 6)
            if holds(middle):
                best = low = middle
            else:
                high = middle
            continue
        further = next((s for s in five_percent_more(low) if holds(s)), None)
        if further is None:
            break
        best = low = further
        high = min((s for s, held in path.items() if s > low and not held), default=MOST)
    return best, list(path)


def five_percent_more(sparsity: float) -> list[float]:
    """Both readings of 5 % more, none above `MOST`."""
    return [round(min(s, MOST), 6) for s in (sparsity * 1.05, sparsity + 0.05) if sparsity < MOST]


def _resolution(low: float) -> float:
    """A hundredth of the sparsity, a tenth of what it leaves, whichever is less."""
    return max(_FINEST, min(0.01 * low, 0.1 * (1 - low)))


class _Runs:
    """The runs of a search, each sparsity once."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._known: dict[float, Try] = {}

    @property
    def tries(self) -> tuple[Try, ...]:
        """All runs so far."""
        return tuple(self._known.values())

    def at(self, sparsity: float) -> Try:
        """Run, or remember."""
        sparsity = round(sparsity, 6)
        if sparsity not in self._known:
            self._known[sparsity] = Try(sparsity, self._measure(sparsity))
        return self._known[sparsity]
