"""More blocks for random graphs: every other way to write a product with weights, and bodies that run many times.

`IMAGE` and `SEQUENCE` hold the blocks of grown.py and these: quantised products, the operators of ONNX Runtime's own
domain, Loop and Scan.
"""

from __future__ import annotations

from collections.abc import Callable

import grown
import numpy as np
from grown import MICROSOFT, Block, Grown, Tensor
from onnx import TensorProto, helper

IMAGE: list[Block] = list(grown.IMAGE)
SEQUENCE: list[Block] = list(grown.SEQUENCE)


def _on(kind: list[Block]) -> Callable[[Block], Block]:
    def register(block: Block) -> Block:
        kind.append(block)
        return block

    return register


def _scale(g: Grown, *shape: int, low: float = 0.01) -> str:
    return g.constant(g.rng.uniform(low, 3 * low, shape))


def _small(g: Grown, *shape: int, dtype: type = np.int8) -> str:
    low, high = (-60, 60) if dtype is np.int8 else (68, 188)
    return g.constant(g.rng.integers(low, high, shape), dtype)


def _quantised(g: Grown, x: Tensor) -> tuple[str, str, str]:
    """The tensor as uint8, with its scale and zero point."""
    scale, zero = g.constant(0.05), g.constant(128, np.uint8)
    return g.one("QuantizeLinear", x.name, scale, zero), scale, zero


@_on(IMAGE)
def _qlinear_conv(g: Grown, x: Tensor, option: int) -> Tensor:
    width = x.shape[0]
    groups = 2 if option % 2 and width % 2 == 0 else 1
    q = _quantised(g, x)
    zero = g.constant(np.zeros(8), np.int8) if option % 3 else g.constant(0, np.int8)
    scale = _scale(g, 8) if option % 3 else _scale(g)
    weights = _small(g, 8, width // groups, 3, 3)
    bias = [g.constant(g.rng.integers(-99, 99, 8), np.int32)] if option % 2 else []
    result = [g.constant(0.06), g.constant(128, np.uint8)]
    y = g.add("QLinearConv", [*q, weights, scale, zero, *result, *bias], group=groups, pads=[1] * 4)[0]
    return Tensor(g.one("DequantizeLinear", y, *result), (8, *x.shape[1:]))


@_on(IMAGE)
def _qdq_conv(g: Grown, x: Tensor, option: int) -> Tensor:
    """Float numbers between pairs of QuantizeLinear and DequantizeLinear, as quantisers write them."""
    inner = g.one("DequantizeLinear", *_quantised(g, x))
    if option % 2 and g.opset >= 13:
        weights = g.one("DequantizeLinear", _small(g, 8, x.shape[0], 1, 1), _scale(g, 8), axis=0)
    else:
        weights = g.one("DequantizeLinear", _small(g, 8, x.shape[0], 1, 1), _scale(g))
    y = Tensor(g.one("Conv", inner, weights), (8, *x.shape[1:]))
    return Tensor(g.one("DequantizeLinear", *_quantised(g, y)), y.shape)


@_on(IMAGE)
def _conv_integer(g: Grown, x: Tensor, _: int) -> Tensor:
    q, scale, zero = g.add("DynamicQuantizeLinear", [x.name], 3)
    y = g.one("ConvInteger", q, _small(g, 6, x.shape[0], 1, 1, dtype=np.uint8), zero, g.constant(128, np.uint8))
    real = g.one("Mul", g.one("Cast", y, to=TensorProto.FLOAT), g.one("Mul", scale, g.constant(0.01)))
    return Tensor(real, (6, *x.shape[1:]))


@_on(IMAGE)
def _fused_conv(g: Grown, x: Tensor, option: int) -> Tensor:
    extra = {"activation": ("Relu", "Tanh", "Sigmoid")[option % 3], "domain": MICROSOFT}
    y = g.one("FusedConv", x.name, g.weight(6, x.shape[0], 3, 3), g.weight(6), pads=[1] * 4, **extra)
    return Tensor(y, (6, *x.shape[1:]))


@_on(IMAGE)
def _deform_conv(g: Grown, x: Tensor, _: int) -> Tensor:
    offset = g.one("Conv", x.name, g.constant(0.05 * g.rng.standard_normal((18, x.shape[0], 3, 3))), pads=[1] * 4)
    y = g.one("DeformConv", x.name, g.weight(6, x.shape[0], 3, 3), offset, g.weight(6), pads=[1] * 4)
    return Tensor(y, (6, *x.shape[1:]))


@_on(SEQUENCE)
def _qlinear_matmul(g: Grown, x: Tensor, option: int) -> Tensor:
    result = [g.constant(0.06), g.constant(128, np.uint8)]
    scale, zero = ((), ()) if option % 2 else ((8,), (8,))
    weights = [_small(g, x.shape[1], 8), _scale(g, *scale), g.constant(np.zeros(zero), np.int8)]
    y = g.one("QLinearMatMul", *_quantised(g, x), *weights, *result)
    return Tensor(g.one("DequantizeLinear", y, *result), (x.shape[0], 8))


@_on(SEQUENCE)
def _qdq_matmul(g: Grown, x: Tensor, _: int) -> Tensor:
    inner = g.one("DequantizeLinear", *_quantised(g, x))
    weights = g.one("DequantizeLinear", _small(g, x.shape[1], 10), _scale(g))
    return Tensor(g.one("MatMul", inner, weights), (x.shape[0], 10))


@_on(SEQUENCE)
def _matmul_integer(g: Grown, x: Tensor, option: int) -> Tensor:
    q, scale, zero = g.add("DynamicQuantizeLinear", [x.name], 3)
    weights = _small(g, x.shape[1], 8)
    if option % 2:
        weight_scale = _scale(g)
        y = g.one("MatMulIntegerToFloat", q, weights, scale, weight_scale, zero, domain=MICROSOFT)
        return Tensor(y, (x.shape[0], 8))
    y = g.one("MatMulInteger", q, weights, zero)
    real = g.one("Mul", g.one("Cast", y, to=TensorProto.FLOAT), g.one("Mul", scale, g.constant(0.01)))
    return Tensor(real, (x.shape[0], 8))


@_on(SEQUENCE)
def _dynamic_matmul(g: Grown, x: Tensor, option: int) -> Tensor:
    inputs = [x.name, _small(g, x.shape[1], 8), _scale(g, 8), g.constant(np.zeros(8), np.int8)]
    bias = [g.weight(8)] if option % 2 else []
    return Tensor(g.one("DynamicQuantizeMatMul", *inputs, *bias, domain=MICROSOFT), (x.shape[0], 8))


@_on(SEQUENCE)
def _fused_matmul(g: Grown, x: Tensor, option: int) -> Tensor:
    name = ("FusedMatMul", "TransposeMatMul")[option % 2]
    y = g.one(name, x.name, g.weight(8, x.shape[1]), transB=1, alpha=0.5, domain=MICROSOFT)
    return Tensor(y, (x.shape[0], 8))


def _flat_gemm(g: Grown, x: Tensor, product: Callable[[str], str], width: int) -> Tensor:
    flat = g.one("Reshape", x.name, g.ints(-1, x.shape[1]))
    return Tensor(g.one("Reshape", product(flat), g.ints(-1, x.shape[0], width)), (x.shape[0], width))


@_on(SEQUENCE)
def _fused_gemm(g: Grown, x: Tensor, option: int) -> Tensor:
    def product(flat: str) -> str:
        settings = {"transB": 1, "activation": ("Relu", "Tanh")[option % 2], "domain": MICROSOFT}
        return g.one("FusedGemm", flat, g.weight(8, x.shape[1]), g.weight(8), **settings)

    return _flat_gemm(g, x, product, 8)


@_on(SEQUENCE)
def _qgemm(g: Grown, x: Tensor, option: int) -> Tensor:
    def product(flat: str) -> str:
        q = _quantised(g, Tensor(flat, x.shape))
        weights = [_small(g, 8, x.shape[1]), _scale(g), g.constant(0, np.int8)]
        bias = g.constant(g.rng.integers(-99, 99, 8), np.int32)
        if option % 2:
            return g.one("QGemm", *q, *weights, bias, transB=1, domain=MICROSOFT)
        result = [g.constant(0.06), g.constant(128, np.uint8)]
        y = g.one("QGemm", *q, *weights, bias, *result, transB=1, domain=MICROSOFT)
        return g.one("DequantizeLinear", y, *result)

    return _flat_gemm(g, x, product, 8)


@_on(SEQUENCE)
def _few_bits(g: Grown, x: Tensor, _: int) -> Tensor:
    """MatMulNBits: four bits a weight, in blocks along the reduced axis."""
    inner = Tensor(g.one("MatMul", x.name, g.weight(x.shape[1], 32)), (x.shape[0], 32))
    packed = g.constant(g.rng.integers(0, 256, (8, 1, 16)), np.uint8)
    settings = {"K": 32, "N": 8, "bits": 4, "block_size": 32, "domain": MICROSOFT}
    return Tensor(g.one("MatMulNBits", inner.name, packed, _scale(g, 8, 1, low=0.02), **settings), (x.shape[0], 8))


@_on(SEQUENCE)
def _contrib_attention(g: Grown, x: Tensor, option: int) -> Tensor:
    heads, size = 2 + option % 2, 4
    wide, features = heads * size, x.shape[1]
    settings = {"num_heads": heads, "domain": MICROSOFT}
    if option % 3 == 0:
        y = g.one("Attention", x.name, g.weight(features, 3 * wide), g.weight(3 * wide), **settings)
    elif option % 3 == 1:
        q, k, v = (g.one("MatMul", x.name, g.weight(features, wide)) for _ in range(3))
        y = g.one("MultiHeadAttention", q, k, v, **settings)
    else:
        q, scale, zero = g.add("DynamicQuantizeLinear", [x.name], 3)
        weights, weight_scale = _small(g, features, 3 * wide), _scale(g)
        rest = ["", zero, g.constant(0, np.int8)]
        y = g.one("QAttention", q, weights, g.weight(3 * wide), scale, weight_scale, *rest, **settings)
    return Tensor(g.one("MatMul", y, g.weight(wide, features)), x.shape)


@_on(SEQUENCE)
def _dynamic_lstm(g: Grown, x: Tensor, _: int) -> Tensor:
    hidden = 5
    steps = g.one("Transpose", x.name, perm=[1, 0, 2])
    w, r = _small(g, 1, x.shape[1], 4 * hidden), _small(g, 1, hidden, 4 * hidden)
    scales = [_scale(g, 1), g.constant([0], np.int8), _scale(g, 1), g.constant([0], np.int8)]
    inputs = [steps, w, r, g.weight(1, 8 * hidden), "", "", "", "", *scales]
    y = g.add("DynamicQuantizeLSTM", inputs, hidden_size=hidden, domain=MICROSOFT)[0]
    moved = g.one("Transpose", y, perm=[2, 0, 1, 3])
    return Tensor(g.one("Reshape", moved, g.ints(0, x.shape[0], hidden)), (x.shape[0], hidden))


@_on(SEQUENCE)
def _looped(g: Grown, x: Tensor, option: int) -> Tensor:
    """A loop that carries the tensor through the same product several times."""
    name, width = f"loop{len(g.nodes)}", x.shape[1]
    weight = g.weight(width, width)
    nodes = [
        helper.make_node("MatMul", [f"{name}_in", weight], [f"{name}_mid"], name=f"{name}_matmul"),
        helper.make_node("Tanh", [f"{name}_mid"], [f"{name}_out"], name=f"{name}_tanh"),
        helper.make_node("Identity", [f"{name}_c"], [f"{name}_c2"], name=f"{name}_go_on"),
    ]
    inputs = [
        helper.make_tensor_value_info(f"{name}_i", TensorProto.INT64, []),
        helper.make_tensor_value_info(f"{name}_c", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"{name}_in", TensorProto.FLOAT, ["n", *x.shape]),
    ]
    outputs = [
        helper.make_tensor_value_info(f"{name}_c2", TensorProto.BOOL, []),
        helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", *x.shape]),
    ]
    body = helper.make_graph(nodes, name, inputs, outputs)
    count, condition = g.constant(1 + option % 3, np.int64), g.constant(True, np.bool_)
    return Tensor(g.one("Loop", count, condition, x.name, body=body), x.shape)


@_on(SEQUENCE)
def _scanned(g: Grown, x: Tensor, _: int) -> Tensor:
    """A recurrent cell written as a Scan over time."""
    name, hidden = f"scan{len(g.nodes)}", 6
    state = g.one("MatMul", g.one("ReduceMean", x.name, g.ints(1), keepdims=0), g.weight(x.shape[1], hidden))
    steps = g.one("Transpose", x.name, perm=[1, 0, 2])
    w, r = g.weight(x.shape[1], hidden), g.weight(hidden, hidden)
    nodes = [
        helper.make_node("MatMul", [f"{name}_x", w], [f"{name}_a"], name=f"{name}_input"),
        helper.make_node("MatMul", [f"{name}_h", r], [f"{name}_b"], name=f"{name}_state"),
        helper.make_node("Add", [f"{name}_a", f"{name}_b"], [f"{name}_s"], name=f"{name}_add"),
        helper.make_node("Tanh", [f"{name}_s"], [f"{name}_h2"], name=f"{name}_tanh"),
        helper.make_node("Identity", [f"{name}_h2"], [f"{name}_y"], name=f"{name}_out"),
    ]
    names = {"_h": hidden, "_x": x.shape[1], "_h2": hidden, "_y": hidden}
    values = {n: helper.make_tensor_value_info(name + n, TensorProto.FLOAT, ["n", size]) for n, size in names.items()}
    body = helper.make_graph(nodes, name, [values["_h"], values["_x"]], [values["_h2"], values["_y"]])
    y = g.add("Scan", [state, steps], 2, body=body, num_scan_inputs=1)[1]
    return Tensor(g.one("Transpose", y, perm=[1, 0, 2]), (x.shape[0], hidden))
