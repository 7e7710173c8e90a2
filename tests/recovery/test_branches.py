"""Recovery of a merged decoder: layers inside the branch that the samples take are fitted."""

from __future__ import annotations

from typing import Any

import merged
import numpy as np
import onnx_ir as ir
import oracle
import pytest

import onnxprune as api
from onnxprune import model_io
from onnxprune.graph.branches import taken_branch, with_branch_inlined
from onnxprune.runtime.session import make_session, run


def samples(past: int, rows: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """More rows than `merged.feeds` has, of one branch."""
    rng = np.random.default_rng(seed)
    feeds = merged.feeds(past)
    out = {name: rng.standard_normal((rows, *array.shape[1:])).astype(np.float32)
           for name, array in feeds.items() if name.startswith("past")}  # fmt: skip
    return {"input_ids": rng.integers(0, merged.VOCABULARY, (rows, 6)),
            "attention_mask": np.ones((rows, 6 + past), np.int64), **out,
            "use_cache_branch": feeds["use_cache_branch"]}  # fmt: skip


def error(model: Any, past: int) -> float:
    feeds = samples(past, seed=5)
    dense, ours = (run(make_session(m), feeds)["logits"] for m in (model_io.load_any(merged.decoder()), model))
    return float(np.square(ours - dense).mean() / np.square(dense).mean())


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("settings", [{"structure": "weights", "sparsity": 0.5, "criterion": "magnitude"},
                                      {"structure": "channels", "sparsity": 0.3, "kinds": ("neurons",),
                                       "criterion": "magnitude"}])  # fmt: skip
def test_layers_of_a_branch_are_fitted(settings: dict[str, Any], past: int) -> None:
    calibration = samples(past)
    plain = api.prune(merged.decoder(), latency=False, **settings)
    fitted = api.prune(merged.decoder(), latency=False, calibration=calibration, recover="least-squares", **settings)
    assert error(fitted.model, past) < 0.9 * error(plain.model, past)
    assert fitted.sparsity == pytest.approx(plain.sparsity, abs=0.01)
    assert (fitted.recovered or {})["steps"]


@pytest.mark.parametrize("past", [0, 3])
def test_a_branch_put_in_the_place_of_its_if_computes_the_same(past: int) -> None:
    model, feeds = oracle.normalised(merged.decoder()), merged.feeds(past)
    branch = taken_branch(model, feeds)
    assert branch == ("then_branch" if past else "else_branch")
    inlined = with_branch_inlined(model, str(branch))
    assert not [node for node in inlined.graph if node.op_type == "If"]
    expected, actual = (run(make_session(m), feeds) for m in (model, inlined))
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5)


def test_samples_of_both_branches_take_none() -> None:
    model: ir.Model = oracle.normalised(merged.decoder())
    assert taken_branch(model, {"use_cache_branch": np.array([True, False])}) is None
    assert taken_branch(model, {}) is None


@pytest.mark.parametrize("past", [0, 3])
def test_wanda_scores_weights_by_what_reaches_them_in_a_branch(past: int) -> None:
    settings: dict[str, Any] = {"structure": "weights", "sparsity": 0.5, "latency": False, "recover": "no"}
    wanda = api.prune(merged.decoder(), criterion="wanda", calibration=samples(past), **settings)
    assert wanda.sparsity == pytest.approx(0.5, abs=0.01)
    assert error(wanda.model, past) < error(api.prune(merged.decoder(), **settings).model, past)
