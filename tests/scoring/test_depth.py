"""Scores of residual blocks, by hand, and which of them are chosen."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.errors import RecipeError
from onnxprune.passes import Normalise
from onnxprune.scoring import Evidence, find_criterion, prunable_weights
from onnxprune.scoring.depth import score_blocks
from onnxprune.selection.depth import select_blocks
from onnxprune.structure.analysis import analyse
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure

TWO = """<ir_version: 8, opset_import: ["": 13]>
g (float[N, 2] x) => (float[N, 2] y) {
  a = MatMul(x, w1) s = Add(x, a)
  h = MatMul(s, w2) b = MatMul(h, w3) y = Add(b, s)
}"""
WEIGHTS = {
    "w1": np.array([[0.0, 0.5], [-0.5, 0.0]]),  # turns by a right angle, half as long
    "w2": np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    "w3": np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]),  # w2 w3 is the identity: doubles its input
}
X = np.array([[1.0, 2.0], [0.0, -3.0], [4.0, 1.0]], np.float32)


def structure() -> Structure:
    proto = onnx.parser.parse_model(TWO)
    for name, array in WEIGHTS.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    model = ir.from_proto(proto)
    Normalise()(model)
    return analyse(model)


def scores(name: str) -> list[float]:
    found = structure()
    criterion = find_criterion(name).on(Evidence(found, {"x": X}))
    blocks, weights = residual_blocks(found), prunable_weights(found)
    assert [b.name for b in blocks] == ["s", "y"]
    return score_blocks(found, blocks, weights, criterion, 0).tolist()


def test_influence_is_how_far_a_block_turns_its_input() -> None:
    """x + x rotated by 90 degrees / 2: cosine 1 / sqrt(1.25). The second block only doubles."""
    assert scores("block-influence") == pytest.approx([1 - 1 / np.sqrt(1.25), 0.0], abs=1e-6)


def test_output_change_is_that_of_the_model_without_the_block() -> None:
    """y = 2 (x + Rx/2). Without the first 2 x: |Rx|^2 / |2x + Rx|^2 = 1/5; without the second, half: 1/4."""
    assert scores("block-output") == pytest.approx([0.2, 0.25], rel=1e-5)


def test_saliencies_of_weights_are_summed() -> None:
    assert scores("magnitude") == pytest.approx([0.5, 5.0])


def test_what_scores_neither_is_refused() -> None:
    with pytest.raises(RecipeError, match="whole units"):
        scores("bn-scale")


@pytest.mark.parametrize(
    ("sparsity", "values", "expected", "gone"),
    [
        (0.3, [1.0, 1.0], ["s"], 4),
        (0.2, [1.0, 1.0], [], 0),  # of 16 weights the blocks hold 4 and 12: a fifth fits neither
        (0.8, [1.0, 1.0], ["y"], 12),  # 12 weights for the same loss are cheaper than 4
        (0.8, [1.0, 4.0], ["s"], 4),  # then the other is too large
        (0.999, [1.0, 4.0], ["s", "y"], 16),
    ],
)
def test_blocks_go_by_score_per_parameter(sparsity: float, values: list[float], expected: list[str], gone: int) -> None:
    found = structure()
    blocks, count = select_blocks(residual_blocks(found), np.array(values), prunable_weights(found), sparsity)
    assert ([b.name for b in blocks], count) == (expected, gone)


def test_a_block_inside_another_is_not_counted_twice() -> None:
    """y = x + W3 (s + W2 s), s = W1 x: the outer block holds the inner one."""
    text = """<ir_version: 8, opset_import: ["": 13]>
    g (float[N, 2] x) => (float[N, 2] y) {
      s = MatMul(x, w1) h = MatMul(s, w2) t = Add(s, h) f = MatMul(t, w3) y = Add(x, f)
    }"""
    proto = onnx.parser.parse_model(text)
    for name in WEIGHTS:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), name))
    found = analyse(ir.from_proto(proto))
    inner, outer = residual_blocks(found)
    assert (inner.size, outer.size) == (4, 12)
    for values in ([0.0, 1.0], [1.0, 0.0]):
        chosen, gone = select_blocks([inner, outer], np.array(values), prunable_weights(found), 0.999)
        assert ([b.name for b in chosen], gone) == (["y"], 12)


def test_cosines_of_rows() -> None:
    model = structure().model
    found = runtime.statistics.row_cosines(model, [("x", "x"), ("x", "a")], [{"x": X[:2]}, {"x": X[2:]}])
    np.testing.assert_allclose(found, [1.0, 0.0], atol=1e-6)
