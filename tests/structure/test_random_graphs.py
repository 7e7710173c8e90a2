"""removed == masked on random graphs: 300 at every run, half of images and half of sequences."""

from __future__ import annotations

import grown
import oracle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_STEP = st.tuples(st.integers(0, 40), st.integers(0, 5), st.integers(0, 11))
_STEPS = st.lists(_STEP, min_size=2, max_size=9)
_CHOICE = {"share": st.sampled_from([0.2, 0.5, 0.8]), "exact": st.booleans(), "seed": st.integers(0, 1000)}
_MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))


def _check(kind: list[grown.Block], steps: list[grown.Step], share: float, exact: bool, seed: int) -> oracle.Verdict:
    model = grown.grow(kind, steps, seed)
    verdict = oracle.check(lambda: oracle.normalised(model), share, seed, exact=exact)
    assert verdict.good, verdict
    return verdict


@_MANY
@given(steps=_STEPS, **_CHOICE)
def test_images(steps: list[grown.Step], share: float, exact: bool, seed: int) -> None:
    _check(grown.IMAGE, steps, share, exact, seed)


@_MANY
@given(steps=_STEPS, **_CHOICE)
def test_sequences(steps: list[grown.Step], share: float, exact: bool, seed: int) -> None:
    _check(grown.SEQUENCE, steps, share, exact, seed)


@pytest.mark.parametrize("kind", ["IMAGE", "SEQUENCE"])
def test_every_block_alone_has_units_to_remove(kind: str) -> None:
    blocks = getattr(grown, kind)
    for number in range(len(blocks)):
        for option in range(6):
            _check(blocks, [(number, 0, option)], 0.5, False, option)
    verdict = _check(blocks, [(0, 0, 0)], 0.5, True, 0)
    assert verdict.removed > 0
