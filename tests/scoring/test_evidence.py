"""Statistics of many layers are gathered in one pass over the data where they are asked for in order."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import conv_net, random

from onnxprune.pipeline.prepare import prepare
from onnxprune.runtime.stream import gather
from onnxprune.scoring import evidence
from onnxprune.scoring.evidence import Evidence


@pytest.mark.parametrize(
    ("together", "backwards", "passes"), [(1, False, 1), (1, True, 2), (2**27, False, 1), (2**27, True, 1)]
)
def test_layers_share_passes_as_far_as_memory_and_their_order_allow(
    together: int, backwards: bool, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    structure = prepare(conv_net(8))
    feed = structure.model.graph.inputs[0]
    inputs = {str(feed.name): random(16, *(int(n) for n in structure.facts.shape(feed)[1:]))}  # type: ignore[index, arg-type]
    alone = {name: Evidence(structure, inputs).moments(name) for name in Evidence(structure, inputs).layers}
    calls: list[int] = []
    real = gather.Cursor
    monkeypatch.setattr(gather, "Cursor", lambda *a: calls.append(1) or real(*a))  # type: ignore[func-returns-value]
    monkeypatch.setattr(evidence, "TOGETHER", together)
    known = Evidence(structure, inputs)
    for name in reversed(alone) if backwards else alone:
        found, expected = known.moments(name), alone[name]
        assert found.rows == expected.rows
        assert np.allclose(found.aa, expected.aa, rtol=1e-5) and np.allclose(found.a, expected.a, rtol=1e-5)
    assert len(alone) == 3 and len(calls) == passes
