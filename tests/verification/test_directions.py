"""Limits and targets follow the direction of the metric, a user's own too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, parser

import onnxprune
from onnxprune import model_io, runtime
from onnxprune.errors import VerificationError

X = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)


def error(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    """The mean distance from the targets: less is better."""
    return float(np.abs(outputs[0] - targets[0]).mean())


error.higher_is_better = False  # type: ignore[attr-defined]


def closeness(outputs: tuple[np.ndarray, ...], targets: tuple[np.ndarray, ...]) -> float:
    """The same the other way round: more is better, as nothing says otherwise."""
    return -error(outputs, targets)


def regression() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A network, and its own outputs as targets, so that every change makes it worse."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[N, 8] x) => (float[N, 4] y) '
        "{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"
    )
    rng = np.random.default_rng(1)
    for name, shape in {"w1": (8, 32), "w2": (32, 4)}.items():
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(helper.make_tensor(name, 1, shape, values.ravel()))
    model = model_io.load_any(proto)
    return model, {"x": X, "y": runtime.run(runtime.make_session(model), {"x": X})["y"]}


@pytest.mark.parametrize("metric", ["mse", f"{__name__}:error", f"{__name__}:closeness"])
def test_a_limit_on_the_drop_is_missed_where_the_metric_gets_worse(metric: str) -> None:
    model, data = regression()
    settings: dict[str, Any] = {"sparsity": 0.6, "eval_data": data, "metric": metric, "latency": False, "ends": "prune"}
    with pytest.raises(VerificationError, match="metric_drop is"):
        onnxprune.prune(model, require=("metric_drop<=0",), **settings)
    result = onnxprune.prune(model, require=("metric_drop>0",), **settings)
    assert result.verdict is not None and result.verdict.metric is not None and result.verdict.metric.drop > 0


@pytest.mark.parametrize("metric", ["mse", f"{__name__}:error", f"{__name__}:closeness"])
def test_the_highest_sparsity_within_a_drop_keeps_it(metric: str) -> None:
    model, data = regression()
    allowed = 0.3
    result = onnxprune.prune(model, max_drop=allowed, eval_data=data, metric=metric, latency=False, ends="prune")
    assert result.verdict is not None and result.verdict.metric is not None
    assert 0 < result.verdict.metric.drop <= allowed and 0 < result.sparsity < 0.9
