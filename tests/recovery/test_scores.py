"""Layers that give scores of classes are fitted only where the inputs are enough to tell what they read apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.graph.linear import linear_layers
from onnxprune.recovery import recover
from onnxprune.recovery.scores import giving_scores
from onnxprune.runtime.stream.gather import Batches

from .models_to_recover import constant, cut, network

WIDE = """<ir_version: 8, opset_import: ["": 13]>
wide (float[N, 8] x) => (float[N, 12] y) {
  a = Gemm<transB = 1>(x, w1, b1) h = Relu(a) c = Gemm<transB = 1>(h, w2, b2) r = Relu(c)
  s = Gemm<transB = 1>(r, w3, b3) y = Softmax(s)
}"""
SHAPES = {"w1": (32, 8), "b1": (32,), "w2": (64, 32), "b2": (64,), "w3": (12, 64), "b3": (12,)}


def samples(count: int) -> dict[str, np.ndarray]:
    """Inputs of the networks here."""
    return {"x": np.random.default_rng(5).standard_normal((count, 8)).astype(np.float32)}


def left(dense: ir.Model, name: str, gone: list[int]) -> np.ndarray:
    """The columns of a weight whose units stay."""
    return np.delete(constant(dense, name), gone, axis=1)


def test_a_classifier_with_more_inputs_than_samples_stays_as_it_is() -> None:
    dense, gone = network(WIDE, SHAPES), [0, 3, 5, 9]
    pruned, kept = cut(dense.clone(), "w2", 0, gone)
    done = recover(dense, pruned, kept, samples(48))
    assert np.array_equal(constant(pruned, "w3"), left(dense, "w3", gone))
    assert done.skipped["s"] == "it gives scores of classes, and 48 samples are fewer than its 60 inputs"


def test_with_samples_enough_it_is_fitted() -> None:
    dense, gone = network(WIDE, SHAPES), [0, 3, 5, 9]
    pruned, kept = cut(dense.clone(), "w2", 0, gone)
    done = recover(dense, pruned, kept, samples(480))
    assert not np.array_equal(constant(pruned, "w3"), left(dense, "w3", gone)) and "s" not in done.skipped


@pytest.mark.parametrize(
    ("text", "named"), [(WIDE, {"w3"}), (WIDE.replace("y = Softmax(s)", "t = Neg(s) y = Tanh(t)"), set())]
)
def test_they_are_told_from_the_outputs(text: str, named: set[str]) -> None:
    dense = network(text, SHAPES)
    assert giving_scores(dense, linear_layers(dense)[0], Batches.of(dense, samples(64))) == named
