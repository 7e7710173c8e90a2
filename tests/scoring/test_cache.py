"""What data say of a model is found once, however often a ranking or a search asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from small_models import conv_net, random, two_layers

import onnxprune
from onnxprune.pipeline.prepare import prepare
from onnxprune.scoring import Context, evidence, find_criterion, prunable_weights
from onnxprune.scoring.cache import ScoreCache, cached
from onnxprune.scoring.registry import Criterion
from onnxprune.selection import allocation, unit_allocation


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Count the calls of a function."""
    calls: list[str] = []
    real: Callable[..., Any] = getattr(module, name)

    def call(*given: Any, **named: Any) -> Any:
        calls.append(name)
        return real(*given, **named)

    monkeypatch.setattr(module, name, call)
    return calls


def test_what_was_found_of_one_analysis_holds_for_the_next() -> None:
    asked: list[str] = []

    def saliency(weight: Any, context: Context) -> Any:
        asked.append(weight.name)
        return np.abs(weight.numbers())

    cache = ScoreCache()
    plain = find_criterion("magnitude")
    for looks_at, times in (("weights", 2), ("activations", 1)):
        asked.clear()
        own = Criterion("own", saliency, None, "nothing", "", "", looks_at=looks_at)  # type: ignore[arg-type]
        for _ in range(2):
            weights = prunable_weights(prepare(two_layers(16)))
            for weight in weights:
                found = cached(own, cache).saliency(weight, np.random.default_rng(0))
                assert np.array_equal(found, np.sqrt(plain.saliency(weight, np.random.default_rng(0))))
        assert len(asked) == times * len(weights)


_MOMENTS = "streamed_channel_moments"


@pytest.mark.parametrize(
    ("model", "settings", "module", "name"),
    [
        (two_layers(64), {"structure": "channels", "criterion": "activation"}, evidence, _MOMENTS),
        (two_layers(64), {"structure": "channels", "allocation": "sensitivity"}, unit_allocation, "scan_units"),
        (
            conv_net(64),
            {"structure": "channels", "criterion": "wanda", "iterations": 2, "round_to": 8},
            evidence,
            _MOMENTS,
        ),
        (two_layers(64), {"allocation": "sensitivity", "pack": "auto"}, allocation, "scan"),
    ],
    ids=["scores of units", "a scan of units", "two steps", "a scan of weights"],
)  # fmt: skip
def test_a_search_looks_at_the_original_once(
    model: ir.Model, settings: dict[str, Any], module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = [int(n) if isinstance(n, int) else 32 for n in model.graph.inputs[0].shape or ()]
    data = {str(model.graph.inputs[0].name): random(32, *shape[1:])}
    target = {"target_size": 0.6} if "pack" in settings else {"target_macs": 0.4}
    calls = counted(monkeypatch, module, name)
    given: dict[str, Any] = {"calibration": data, "latency": False, "recover": "no", "round_to": "none", **settings}
    found = onnxprune.prune(model, **target, **given)
    assert found.target is not None and len(found.target.tries) > 1
    assert len(calls) == settings.get("iterations", 1), "each step looks at its own model once"
    if "pack" not in settings:
        return
    again = onnxprune.prune(model, sparsity=found.target.sparsity, **given)
    for initial in found.model.graph.initializers.values():
        other = again.model.graph.initializers[str(initial.name)]
        assert initial.const_value is not None and other.const_value is not None
        assert np.array_equal(initial.const_value.numpy(), other.const_value.numpy())
