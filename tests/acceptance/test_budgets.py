"""Budgets on real models: what is asked for is not exceeded, and no more than a step of units is given away."""

from __future__ import annotations

from pathlib import Path

import oracle
import pytest

import onnxprune

COARSE = {"mnist_cntk"}  # two convolutions of 8 and 16 channels
NEVER = {"dtln_1"}  # nothing to prune
MODELS = [path for path in oracle.shared_zoo() if path.stem not in NEVER]


@pytest.mark.zoo
@pytest.mark.skipif(not MODELS, reason="no folder of real models (ONNXPRUNE_SHARED)")
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_multiply_adds(path: Path) -> None:
    found = onnxprune.prune(path, structure="channels", target_macs=0.7, latency=False)
    assert found.target is not None
    assert (0.3 if path.stem in COARSE else 0.6) < found.target.reached <= 0.7
