"""Searches for a sparsity, on curves that are steps, noisy, or do not rise evenly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from onnxprune.pipeline.search import MOST, Outcome, five_percent_more, nearest_ratio
from onnxprune.pipeline.search import highest_within as highest_of_several

Curve = Callable[[float], float]


def highest_within(curve: Curve, limit: float, ahead: int = 1) -> Outcome:
    return highest_of_several(lambda sparsities: [curve(s) for s in sparsities], limit, ahead=ahead)


def steps(curve: Curve, count: int) -> Curve:
    return lambda s: curve(math.floor(s * count) / count)


CURVES: dict[str, Curve] = {
    "line": lambda s: 1 - s,
    "convex": lambda s: (1 - s) ** 2,
    "flat, then steep": lambda s: 1 - 0.95 * s**6,
    "steep, then flat": lambda s: 0.04 + 0.96 * (1 - s) ** 8,
}


@pytest.mark.parametrize("wanted", [0.9, 0.5, 0.25])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_ratio_is_found_in_few_runs(curve: Curve, wanted: float) -> None:
    found = nearest_ratio(curve, wanted, whole=1.0, under=False)
    assert found.best is not None and found.best.value == pytest.approx(wanted, rel=0.02)
    assert len(found.tries) <= 8


@pytest.mark.parametrize("count", [7, 20, 100])
@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_a_budget_is_not_exceeded_and_the_nearest_step_below_is_taken(curve: Curve, count: int) -> None:
    curve = steps(curve, count)
    found = nearest_ratio(curve, 0.5, whole=1.0, under=True, most_tries=30)
    below = [v for v in (curve((i + 0.5) / count) for i in range(count)) if v <= 0.5]
    if not below:
        assert found.best is None
        return
    assert found.best is not None and 0.49 <= found.best.value <= 0.5 or found.best.value == max(below)


def test_a_steep_part_after_a_flat_one_is_found_by_halves() -> None:
    """MobileNetV2 at .6 of the work: late layers hold the parameters, early ones the multiply-adds."""
    known = ([0, 0.12, 0.16, 0.161, 0.165, 0.174, 0.24, 1], [1, 0.623, 0.6008, 0.598, 0.577, 0.534, 0.515, 0])
    found = nearest_ratio(steps(lambda s: float(np.interp(s, *known)), 2000), 0.6, whole=1.0, under=True)
    assert found.best is not None and 0.597 < found.best.value <= 0.6 and len(found.tries) <= 16


def test_what_cannot_be_reached_is_told_with_the_least_that_can() -> None:
    found = nearest_ratio(lambda s: 1 - 0.4 * s, 0.5, whole=1.0, under=False)
    assert found.best is None
    assert found.tries[-1].sparsity == MOST and found.tries[-1].value == pytest.approx(0.6, abs=0.001)


def test_what_holds_already_needs_no_cut() -> None:
    found = nearest_ratio(lambda s: 0.25 * (1 - s), 0.3, under=True)
    assert found.best is not None and found.best.sparsity == 0 and len(found.tries) == 1


def test_noise_does_not_keep_it_from_ending() -> None:
    rng = np.random.default_rng(0)
    found = nearest_ratio(lambda s: (1 - s) * rng.uniform(0.97, 1.03), 0.5, whole=1.0, under=False)
    assert found.best is not None and found.best.value == pytest.approx(0.5, rel=0.05)
    assert len(found.tries) <= 12


@pytest.mark.parametrize("edge", [0.013, 0.2, 0.5, 0.77, 0.96])
def test_the_edge_is_found(edge: float) -> None:
    found = highest_within(lambda s: 0.0 if s <= edge else 1.0, 0.5)
    assert found.best is not None and found.best.sparsity <= edge
    assert all(s > edge for s in five_percent_more(found.best.sparsity))
    assert len(found.tries) <= 16


def test_a_loss_that_comes_and_goes_is_followed_upwards() -> None:
    """It holds up to .5 and again from .51 to .54."""
    found = highest_within(lambda s: 0.0 if s <= 0.5 or 0.51 <= s <= 0.54 else 1.0, 0.5)
    assert found.best is not None and 0.51 <= found.best.sparsity <= 0.54
    assert all(s > 0.54 for s in five_percent_more(found.best.sparsity))


def test_nothing_holds_and_everything_holds() -> None:
    assert highest_within(lambda s: 1.0, 0.5).best is None
    assert highest_within(lambda s: math.nan, 0.5).best is None
    best = highest_within(lambda s: 0.0, 0.5).best
    assert best is not None and best.sparsity == pytest.approx(MOST, abs=0.001)


@pytest.mark.parametrize("edge", [0.013, 0.5, 0.77])
@pytest.mark.parametrize("ahead", [2, 3, 8, 100])
def test_measuring_ahead_comes_to_the_same_end_in_fewer_rounds(edge: float, ahead: int) -> None:
    """It holds up to the edge, and once more above it."""
    rounds: list[list[float]] = []

    def measure(sparsities: Sequence[float]) -> list[float]:
        rounds.append(list(sparsities))
        return [0.0 if s <= edge or edge + 0.02 < s < edge + 0.05 else 1.0 for s in sparsities]

    alone = highest_of_several(measure, 0.5)
    steps = len(rounds)
    rounds.clear()
    assert highest_of_several(measure, 0.5, ahead=ahead) == alone
    assert len(rounds) <= math.ceil(steps / math.log2(ahead + 1)) + 2 and len(rounds) < steps
    assert all(len(one) <= ahead and len(set(one)) == len(one) for one in rounds)


def test_what_failed_ahead_is_asked_for_again_where_it_matters() -> None:
    asked: list[float] = []

    def measure(sparsities: Sequence[float]) -> list[float | None]:
        asked.append(sparsities[0])
        return [0.0 if sparsities[0] <= 0.3 else 1.0, *(None for _ in sparsities[1:])]

    found = highest_of_several(measure, 0.5, ahead=4)
    assert found == highest_within(lambda s: 0.0 if s <= 0.3 else 1.0, 0.5) and asked == [
        t.sparsity for t in found.tries
    ]
