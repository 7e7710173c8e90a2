"""Quantised weights stored outputs first compute the same, and only those that need it are turned."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from small_models import array, graph

from onnxprune import runtime
from onnxprune.passes import StoreOutputsFirst

NUMBERS = np.random.default_rng(0)
CONSTANTS = {
    "q": NUMBERS.integers(-127, 127, (6, 4)).astype(np.int8),
    "scales": NUMBERS.random(4).astype(np.float32),
    "zeros": np.zeros(4, np.int8),
    "bias": NUMBERS.random(4).astype(np.float32),
}


def model(text: str) -> ir.Model:
    return graph(
        f"m (float[N,6] x) => (float[N,4] y) {{ w = DequantizeLinear <axis = 1> (q, scales, zeros) {text} }}", CONSTANTS
    )


@pytest.mark.parametrize("text", ["y = MatMul (x, w)", "y = Gemm (x, w, bias)"])
def test_outputs_first_computes_the_same(text: str) -> None:
    before, after = model(text), model(text)
    assert StoreOutputsFirst()(after).modified
    assert array(after, "q").tobytes() == np.ascontiguousarray(CONSTANTS["q"].T).tobytes()
    feeds = {"x": NUMBERS.random((3, 6)).astype(np.float32)}
    assert runtime.compare(before, after, feeds).max_rel < 1e-6
    assert not StoreOutputsFirst()(after).modified


@pytest.mark.parametrize("text", ["y = MatMul (x, w) z = MatMul (x, w)", "v = Relu (w) y = MatMul (x, v)"])
def test_weights_with_other_readers_stay(text: str) -> None:
    assert not StoreOutputsFirst()(model(text)).modified
