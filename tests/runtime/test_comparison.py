"""Differences of outputs: relative to the largest reference value, infinite where there is nothing to compare."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from onnx import parser

from onnxprune.errors import ModelError, VerificationError
from onnxprune.runtime import compare, compare_outputs, relative_difference

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [2.0, -4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [1e-9, 0.0], INF),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([NAN, 1.0], [0.0, 1.0], INF),
        ([0.0, 1.0], [NAN, 1.0], INF),
        ([INF, 2.0], [INF, 1.0], 0.5),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([True, False], [True, True], 1.0),
        ([3, 4], [3, 2], 0.5),
        (["a"], ["a"], 0.0),
        (["a"], ["b"], INF),
        ([1.0, 2.0], [[1.0, 2.0]], INF),
        ([], [], 0.0),
    ],
)
def test_relative_difference(a: list, b: list, expected: float) -> None:
    assert relative_difference(np.array(a), np.array(b)) == expected


def test_half_floats_and_sequences() -> None:
    half = np.array([1.0, 2.0], ml_dtypes.bfloat16)
    assert relative_difference(half, half * np.array(2, ml_dtypes.bfloat16)) == 1.0
    assert relative_difference([half, half], [half, half]) == 0.0
    assert relative_difference([half], [half, half]) == INF
    assert relative_difference(np.uint8([0, 255]), np.uint8([255, 255])) == 1.0


def test_outputs_are_matched_by_name() -> None:
    result = compare_outputs({"a": np.ones(2), "b": np.ones(2)}, {"b": np.full(2, 1.5), "a": np.ones(2)})
    assert (result.max_rel, result.max_abs) == (0.5, 0.5)
    assert result.outputs["a"].max_rel == 0.0 and result.finite
    assert not compare_outputs({"a": np.array([NAN])}, {"a": np.array([NAN])}).finite
    with pytest.raises(VerificationError, match="'b'"):
        compare_outputs({"a": np.ones(2)}, {"b": np.ones(2)})


def test_models_are_compared_in_onnxruntime() -> None:
    def model(body: str) -> bytes:
        return parser.parse_model(
            f'<ir_version: 8, opset_import: ["":17]> g (float[2] x) => (float[2] y) {{ {body} }}'
        ).SerializeToString()

    feeds = {"x": np.array([1, -2], np.float32)}
    assert compare(model("y = Relu(x)"), model("y = Relu(x)"), feeds).max_rel == 0
    assert compare(model("y = Identity(x)"), model("y = Neg(x)"), feeds).max_rel == 2
    with pytest.raises(VerificationError):
        compare(model("y = Relu(x)"), model("y = NoSuch(x)"), feeds)
    with pytest.raises(ModelError):
        compare(model("y = NoSuch(x)"), model("y = Relu(x)"), feeds)
