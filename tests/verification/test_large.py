"""Latency of large models is measured where two sessions side by side tell something and do not take a multiple."""

from __future__ import annotations

import pytest
from small_models import halved, two_layers

import onnxprune
from onnxprune.verification import verdict


@pytest.mark.parametrize(("structure", "half", "timed"), [
    ("channels", False, True), ("channels", True, False), ("weights", False, False),
])  # fmt: skip
def test_latency_of_a_large_model(structure: str, half: bool, timed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = halved(two_layers(64)) if half else two_layers(64)
    small = onnxprune.prune(model, sparsity=0.5, structure=structure)
    assert small.verdict is not None and small.verdict.latency is not None
    monkeypatch.setattr(verdict, "_LARGE", 0)
    large = onnxprune.prune(model, sparsity=0.5, structure=structure)
    assert large.verdict is not None and (large.verdict.latency is not None) == timed
