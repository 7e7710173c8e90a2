"""ONNX Runtime's own operators, each against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from .models import assert_like_runtime, generator, model

MASK = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], dtype=np.int32)


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return generator(seed).standard_normal(shape).astype(np.float32)


def quantized(*shape: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    info = np.iinfo(dtype)
    return generator(seed).integers(info.min, info.max + 1, shape).astype(dtype)


S = np.float32  # scales
U = np.uint8  # zero points

CASES: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "FusedMatMul": ("FusedMatMul", [rand(2, 4, 3), rand(2, 5, 4, seed=1)], {"transA": 1, "transB": 1, "alpha": 0.5}, 1),
    "FusedMatMul batch": ("FusedMatMul", [rand(4, 2, 3), rand(2, 3, 5, seed=1)], {"transBatchA": 1}, 1),
    "Gelu": ("Gelu", [rand(3, 4)], {}, 1),
    "FastGelu": ("FastGelu", [rand(3, 4), rand(4, seed=1)], {}, 1),
    "BiasGelu": ("BiasGelu", [rand(3, 4), rand(4, seed=1)], {}, 1),
    "QuickGelu": ("QuickGelu", [rand(3, 4)], {"alpha": 1.5}, 1),
    "SkipLayerNormalization": (
        "SkipLayerNormalization",
        [rand(2, 3, 8), rand(2, 3, 8, seed=1), rand(8, seed=2), rand(8, seed=3), rand(8, seed=4)],
        {"epsilon": 1e-5}, 1),
    "SkipSimplifiedLayerNormalization": (
        "SkipSimplifiedLayerNormalization",
        [rand(2, 3, 8), rand(2, 3, 8, seed=1), rand(8, seed=2)], {"epsilon": 1e-5}, 1),
    "EmbedLayerNormalization": (
        "EmbedLayerNormalization",
        [np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32), np.array([[0, 0, 1], [0, 1, 1]], dtype=np.int32),
         rand(9, 8), rand(4, 8, seed=1), rand(2, 8, seed=2), rand(8, seed=3), rand(8, seed=4),
         np.array([[1, 1, 0], [1, 1, 1]], dtype=np.int32)], {}, 2),
    "Attention": ("Attention", [rand(2, 5, 8), rand(8, 24, seed=1), rand(24, seed=2)], {"num_heads": 2}, 1),
    "Attention mask": ("Attention", [rand(2, 5, 8), rand(8, 24, seed=1), rand(24, seed=2), MASK], {"num_heads": 4}, 1),
    "Attention lengths": (
        "Attention", [rand(2, 5, 8), rand(8, 24, seed=1), rand(24, seed=2), np.array([5, 3], dtype=np.int32)],
        {"num_heads": 2}, 1),
    "Attention causal": (
        "Attention", [rand(2, 5, 8), rand(8, 24, seed=1), rand(24, seed=2)], {"num_heads": 2, "unidirectional": 1}, 1),
    "MultiHeadAttention": (
        "MultiHeadAttention", [rand(2, 5, 8), rand(2, 7, 8, seed=1), rand(2, 7, 8, seed=2), rand(24, seed=3)],
        {"num_heads": 2}, 1),
    "MultiHeadAttention mask": (
        "MultiHeadAttention", [rand(2, 5, 8), rand(2, 5, 8, seed=1), rand(2, 5, 8, seed=2), None, MASK,
                               rand(1, 2, 5, 5, seed=5)], {"num_heads": 2, "scale": 0.3}, 1),
    "RotaryEmbedding": (
        "RotaryEmbedding",
        [rand(2, 2, 5, 8), np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]]), rand(9, 4), rand(9, 4, seed=1)],
        {"interleaved": 1}, 1),
    "GroupQueryAttention": (
        "GroupQueryAttention",
        [rand(1, 5, 64), rand(1, 5, 32, seed=1), rand(1, 5, 32, seed=2), None, None, np.array([4], dtype=np.int32),
         np.array(5, dtype=np.int32), rand(9, 8, seed=3), rand(9, 8, seed=4)],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}, 1),
    "FusedConv": (
        "FusedConv",
        [rand(1, 2, 5, 5), rand(3, 2, 3, 3, seed=1), rand(3, seed=2)], {"activation": "Relu", "pads": [1] * 4}, 1),
    "FusedGemm": ("FusedGemm", [rand(3, 4), rand(4, 5, seed=1), rand(5, seed=2)], {"activation": "Relu"}, 1),
    "QLinearAdd": (
        "QLinearAdd",
        [quantized(3, 4), S(0.1), U(100), quantized(3, 4, seed=1), S(0.2), U(120), S(0.25), U(110)], {}, 1),
    "QLinearMul": (
        "QLinearMul",
        [quantized(3, 4), S(0.1), U(100), quantized(3, 4, seed=1), S(0.2), U(120), S(2.5), U(110)], {}, 1),
    "QLinearSigmoid": ("QLinearSigmoid", [quantized(3, 4), S(0.05), U(128), S(1 / 256), U(0)], {}, 1),
    "QLinearLeakyRelu": ("QLinearLeakyRelu", [quantized(3, 4), S(0.05), U(128), S(0.05), U(100)], {"alpha": 0.1}, 1),
    "QLinearGlobalAveragePool": (
        "QLinearGlobalAveragePool", [quantized(1, 3, 4, 4), S(0.05), U(128), S(0.05), U(120)], {"channels_last": 0}, 1),
    "QLinearConcat": (
        "QLinearConcat",
        [S(0.1), U(99), quantized(2, 3), S(0.05), U(128), quantized(2, 4), S(0.2), U(90)], {"axis": 1}, 1),
    "QGemm": ("QGemm", [quantized(3, 4), S(0.1), U(100), quantized(4, 5, seed=1), S(0.02), U(120),
                        np.arange(5, dtype=np.int32), S(0.3), U(110)], {}, 1),
    "MatMulIntegerToFloat": (
        "MatMulIntegerToFloat",
        [quantized(3, 4), quantized(4, 5, seed=1), S(0.1), S(0.2), U(100), U(120), rand(5)], {}, 1),
    "DynamicQuantizeMatMul": ("DynamicQuantizeMatMul", [rand(3, 4), quantized(4, 5, seed=1), S(0.2), U(120)], {}, 1),
    "CDist": ("CDist", [rand(3, 4), rand(5, 4, seed=1)], {"metric": "euclidean"}, 1),
    "CDist squared": ("CDist", [rand(3, 4), rand(5, 4, seed=1)], {"metric": "sqeuclidean"}, 1),
    "Inverse": ("Inverse", [rand(2, 3, 3)], {}, 1),
    "Trilu": ("Trilu", [rand(3, 4), np.array(1)], {"upper": 0}, 1),
    "GridSample": (
        "GridSample", [rand(1, 2, 4, 5), np.tanh(rand(1, 3, 3, 2))], {"mode": "bicubic", "align_corners": 1}, 1),
    "NhwcMaxPool": ("NhwcMaxPool", [quantized(1, 5, 6, 2)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 1),
    "MatMulNBits": (
        "MatMulNBits",
        [rand(3, 32), quantized(5, 1, 16), rand(5)], {"K": 32, "N": 5, "bits": 4, "block_size": 32}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_contrib_operator(name: str) -> None:
    operator, arrays, attributes, outputs = CASES[name]
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(arrays)]
    feeds = {names[0]: arrays[0]}
    constants = {n: np.asarray(a) for n, a in zip(names[1:], arrays[1:], strict=True) if a is not None}
    if np.ndim(arrays[0]) == 0:  # a scale comes first
        feeds = {}
        constants[names[0]] = np.asarray(arrays[0])
    results = [f"y{index}" for index in range(outputs)]
    node = oh.make_node(operator, names, results, domain="com.microsoft", **attributes)
    inputs = {n: (onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()}
    assert_like_runtime(model([node], inputs, results, constants, opset=17, microsoft=True), feeds, 1e-5)
