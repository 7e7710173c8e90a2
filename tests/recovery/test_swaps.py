"""SparseSwaps: the change of an exchange by hand, and an error that never rises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxprune.recovery.alps import keep_pattern
from onnxprune.recovery.swaps import mask_error, refine


def case(seed: int, outputs: int = 16, inputs: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((200, inputs)) @ rng.standard_normal((inputs, inputs))
    return rng.standard_normal((1, outputs, inputs)), (a.T @ a / 200)[None]


def test_an_exchange_by_hand() -> None:
    """w = (1, 1, 0.5), G_12 = 1: pruning (1, 2) costs 4, (1, 3) costs 1.25, (2, 3) too; the first of these is taken.

    From the mask that keeps 3: p = 3, q = 2 changes the error of 4 by .25 - 2 * 1 * 2 + 1 = -2.75.
    """
    gram = np.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    weight = np.array([[[1.0, 1.0, 0.5]]])
    before = np.array([[[False, False, True]]])
    after = refine(weight, gram, before)
    assert mask_error(weight, gram, before).item() == pytest.approx(4)
    assert mask_error(weight, gram, after).item() == pytest.approx(1.25)
    assert after.sum() == 1
    assert not after[0, 0, 2]


@pytest.mark.parametrize("seed", range(5))
def test_the_error_of_no_output_rises_and_each_keeps_as_many(seed: int) -> None:
    weight, gram = case(seed)
    before = np.random.default_rng(seed).random(weight.shape) < 0.4
    after = refine(weight, gram, before)
    assert (mask_error(weight, gram, after) <= mask_error(weight, gram, before) * (1 + 1e-12)).all()
    assert (after.sum(axis=2) == before.sum(axis=2)).all()
    assert mask_error(weight, gram, after).sum() < mask_error(weight, gram, before).sum()


def test_no_exchange_is_left_that_lowers_the_error() -> None:
    weight, gram = case(0, outputs=3, inputs=10)
    after = refine(weight, gram, np.random.default_rng(0).random(weight.shape) < 0.5)
    least = mask_error(weight, gram, after)
    for row in range(3):
        for p, q in itertools.product(np.flatnonzero(after[0, row]), np.flatnonzero(~after[0, row])):
            other = after.copy()
            other[0, row, p], other[0, row, q] = False, True
            assert mask_error(weight, gram, other)[0, row] >= least[0, row] * (1 - 1e-6)


@pytest.mark.parametrize("places", [1, 3])
def test_n_of_m_stays_n_of_m(places: int) -> None:
    weight, gram = case(1)
    before = keep_pattern(2, 4, places)(weight)
    after = refine(weight, gram, before, (2, 4, places))
    assert (after.reshape(1, 16, -1, 4, places).sum(axis=3) == 2).all()
    assert (mask_error(weight, gram, after) <= mask_error(weight, gram, before) * (1 + 1e-12)).all()
    assert (after != before).any()
