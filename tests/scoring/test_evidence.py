"""Statistics of many layers are gathered in few passes over the data, and are what one pass for each gives."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import conv_net, random

from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import evidence
from onnxprune.scoring.evidence import Evidence


@pytest.mark.parametrize(("together", "passes"), [(1, 3), (2**27, 1)])
def test_layers_share_passes_as_far_as_memory_allows(
    together: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure = prepare(conv_net(8))
    feed = structure.model.graph.inputs[0]
    inputs = {str(feed.name): random(16, *(int(n) for n in structure.facts.shape(feed)[1:]))}  # type: ignore[index, arg-type]
    alone = {name: Evidence(structure, inputs).moments(name) for name in Evidence(structure, inputs).layers}
    calls: list[int] = []
    real = evidence.gather
    monkeypatch.setattr(
        evidence,
        "gather",
        lambda *a: calls.append(1) or real(*a),  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr(evidence, "TOGETHER", together)
    known = Evidence(structure, inputs)
    for name, expected in alone.items():
        found = known.moments(name)
        assert found.rows == expected.rows
        assert np.allclose(found.aa, expected.aa, rtol=1e-5) and np.allclose(found.a, expected.a, rtol=1e-5)
    assert len(alone) == 3 and len(calls) == passes
