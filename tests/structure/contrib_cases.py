"""Cases for ONNX Runtime's contrib operators, and for what ONNX's own cases leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import helper

from onnxprune.graph.packed import packed

from .node_cases import Case
from .twins import Array

_MICROSOFT = "com.microsoft"
_OPSETS = {"": 23, _MICROSOFT: 1}
Inputs = Mapping[str, Array | None]
CASES: dict[str, list[Case]] = {}

_rng = np.random.default_rng(0)


def _reals(*shape: int) -> Array:
    return _rng.standard_normal(shape).astype(np.float32)


def _bytes(*shape: int, dtype: type = np.uint8) -> Array:
    low, high = (0, 256) if dtype is np.uint8 else (-128, 128)
    return _rng.integers(low, high, shape).astype(dtype)


def _scale(*shape: int) -> Array:
    return _rng.uniform(0.01, 0.1, shape).astype(np.float32)


def cases(operator: str) -> list[Case]:
    """Return the cases of one operator, named as rules name it."""
    return CASES.get(operator, [])


def _case(name: str, operator: str, inputs: Inputs, outputs: list[str], opsets: Any = None, **attributes: Any) -> None:
    domain, _, op_type = operator.rpartition("::")
    names = [k if v is not None else "" for k, v in inputs.items()]
    node = helper.make_node(op_type, names, outputs, domain=domain, **attributes)
    constants = {k: v for k, v in inputs.items() if v is not None}
    CASES.setdefault(operator, []).append(Case(name, node, constants, opsets or _OPSETS))


def _family(add: Callable[[], None]) -> None:
    add()


@_family
def _attention() -> None:
    grouped = {"q": _reals(2, 6, 3, 8), "k": _reals(2, 2, 3, 8), "v": _reals(2, 2, 3, 6)}
    _case("grouped, mask for each head", "Attention", {**grouped, "mask": _reals(1, 6, 3, 3)}, ["y"])
    past = {"mask": None, "past_key": _reals(2, 2, 4, 8), "past_value": _reals(2, 2, 4, 6)}
    _case("grouped, with cache", "Attention", {**grouped, **past}, ["y", "pk", "pv", "qk"], is_causal=1)
    flat = {"q": _reals(2, 3, 48), "k": _reals(2, 5, 16), "v": _reals(2, 5, 12)}
    _case("grouped, flat", "Attention", flat, ["y"], q_num_heads=6, kv_num_heads=2)

    operator = f"{_MICROSOFT}::MultiHeadAttention"
    qkv = {"q": _reals(2, 3, 32), "k": _reals(2, 5, 32), "v": _reals(2, 5, 24)}
    _case("plain", operator, qkv, ["y"], num_heads=4)
    _case("bias", operator, {**qkv, "b": _reals(88)}, ["y"], num_heads=4)
    even = {"q": _reals(2, 3, 32), "k": _reals(2, 3, 32), "v": _reals(2, 3, 32), "b": None, "mask": None}
    _case("score bias", operator, {**even, "scores": _reals(1, 4, 3, 3)}, ["y"], num_heads=4)
    past = {"scores": None, "pk": _reals(2, 4, 5, 8), "pv": _reals(2, 4, 5, 8)}
    _case("cache", operator, {**even, **past}, ["y", "pk2", "pv2"], num_heads=4)
    cross = {"q": _reals(2, 3, 32), "k": _reals(2, 4, 5, 8), "v": _reals(2, 4, 5, 8)}
    _case("keys by head", operator, cross, ["y"], num_heads=4)
    _case("packed, pinned", operator, {"q": _reals(2, 3, 4, 3, 8)}, ["y"], num_heads=4)

    operator = f"{_MICROSOFT}::Attention"
    packed = {"x": _reals(2, 3, 16), "w": _reals(16, 96), "b": _reals(96)}
    _case("plain", operator, packed, ["y"], num_heads=4)
    uneven = {"x": _reals(2, 3, 16), "w": _reals(16, 88), "b": _reals(88)}
    _case("narrow values", operator, uneven, ["y"], num_heads=4, qkv_hidden_sizes=[32, 32, 24])
    past = {"mask": None, "past": _reals(2, 2, 4, 5, 8)}
    _case("cache", operator, {**packed, **past}, ["y", "present"], num_heads=4, unidirectional=1)

    operator = f"{_MICROSOFT}::GroupQueryAttention"
    lengths = {"pk": None, "pv": None, "last": np.array([2, 2], np.int32), "total": np.array(3, np.int32)}
    grouped = {"q": _reals(2, 3, 96), "k": _reals(2, 3, 32), "v": _reals(2, 3, 32), **lengths}
    heads = {"num_heads": 6, "kv_num_heads": 2}
    _case("plain", operator, grouped, ["y", "pk2", "pv2"], **heads)
    _case("packed", operator, {"q": _reals(2, 3, 160), "k": None, "v": None, **lengths}, ["y", "pk2", "pv2"], **heads)
    turned = {**grouped, "cos": _reals(10, 8), "sin": _reals(10, 8)}
    _case("rotary", operator, turned, ["y", "pk2", "pv2"], **heads, do_rotary=1)
    thrice = {"q": _reals(2, 3, 144), "k": _reals(2, 3, 48), "v": _reals(2, 3, 48), **lengths}  # sizes of 24
    _case("size in steps", operator, thrice, ["y", "pk2", "pv2"], **heads)
    _case("packed, size in steps", operator, {"q": _reals(2, 3, 240), "k": None, "v": None, **lengths},
          ["y", "pk2", "pv2"], **heads)  # fmt: skip
    wide = {"q": _reals(2, 3, 288), "k": _reals(2, 3, 96), "v": _reals(2, 3, 96), **lengths}  # sizes of 48
    for interleaved in (0, 1):
        turned = {**wide, "cos": _reals(10, 24), "sin": _reals(10, 24)}
        _case(f"rotary, size in steps, interleaved {interleaved}", operator, turned, ["y", "pk2", "pv2"], **heads,
              do_rotary=1, rotary_interleaved=interleaved, scale=0.2)  # fmt: skip
    part = {**wide, "cos": _reals(10, 16), "sin": _reals(10, 16)}
    _case("part turns, size in steps", operator, part, ["y", "pk2", "pv2"], **heads, do_rotary=1)


@_family
def _linear_attention() -> None:
    for operator, opsets in ((f"{_MICROSOFT}::LinearAttention", None), ("LinearAttention", {"": 27})):
        qkv = {"q": _reals(2, 3, 32), "k": 0.3 * _reals(2, 3, 16), "v": _reals(2, 3, 12)}
        gates = {"state": None, "decay": -np.abs(_reals(2, 3, 16)), "beta": 0.3 * np.abs(_reals(2, 3, 2))}
        heads = {"q_num_heads": 4, "kv_num_heads": 2}
        _case("gated delta", operator, {**qkv, **gates}, ["y", "s"], opsets, **heads)
        _case(
            "linear", operator, {**qkv, "state": _reals(2, 2, 8, 6)}, ["y", "s"], opsets, update_rule="linear", **heads
        )
    for operator, opsets in ((f"{_MICROSOFT}::CausalConvWithState", None), ("CausalConvWithState", {"": 27})):
        inputs = {"x": _reals(2, 6, 5), "w": _reals(6, 1, 3), "b": _reals(6)}
        _case("silu", operator, inputs, ["y", "s"], opsets, activation="silu")
        _case("state", operator, {**inputs, "past": _reals(2, 6, 2)}, ["y", "s"], opsets)


@_family
def _rotary() -> None:
    positions, tables = np.array([[1, 2, 3], [3, 4, 5]]), {"cos": _reals(10, 4), "sin": _reals(10, 4)}
    operator = "RotaryEmbedding"
    _case("by head", operator, {"x": _reals(2, 4, 3, 8), **tables, "p": positions}, ["y"])
    _case("neighbours", operator, {"x": _reals(2, 3, 32), **tables, "p": positions}, ["y"], num_heads=4, interleaved=1)
    part = {"num_heads": 4, "rotary_embedding_dim": 8}
    _case("part", operator, {"x": _reals(2, 3, 48), **tables, "p": positions}, ["y"], **part)
    operator = f"{_MICROSOFT}::RotaryEmbedding"
    _case("part", operator, {"x": _reals(2, 3, 48), "p": positions, **tables}, ["y"], **part)
    _case("by head", operator, {"x": _reals(2, 4, 3, 8), "p": positions, **tables}, ["y"])


@_family
def _norms() -> None:
    x, affine = {"x": _reals(2, 3, 8), "s": _reals(2, 3, 8)}, {"g": _reals(8), "b": _reals(8)}
    _case("bias", f"{_MICROSOFT}::SkipLayerNormalization", {**x, **affine, "bias": _reals(8)}, ["y", "", "", "sum"])
    skip = {"x": _reals(2, 3, 8), "s": _reals(3, 8), "g": _reals(8)}
    _case("broadcast", f"{_MICROSOFT}::SkipSimplifiedLayerNormalization", skip, ["y", "", "", "sum"])
    ids = {"ids": np.array([[1, 2, 3]], np.int32), "segments": np.array([[0, 1, 0]], np.int32)}
    tables = {"words": _reals(5, 8), "places": _reals(6, 8), "kinds": _reals(2, 8)}
    operator = f"{_MICROSOFT}::EmbedLayerNormalization"
    _case("plain", operator, {**ids, **tables, **affine}, ["y", "mask", "sum"])
    _case("rms", "SimplifiedLayerNormalization", {"x": _reals(2, 3, 8), "g": _reals(8)}, ["y"], axis=-1)
    _case(
        "odd groups", "GroupNormalization", {"x": _reals(2, 6, 4), "g": _reals(6), "b": _reals(6)}, ["y"], num_groups=3
    )


@_family
def _fused() -> None:
    a, b = {"a": _reals(2, 4, 6)}, {"b": _reals(2, 5, 6)}
    _case("transposed", f"{_MICROSOFT}::FusedMatMul", {**a, **b}, ["y"], transB=1, alpha=0.5)
    _case("transposed", f"{_MICROSOFT}::TransposeMatMul", {**a, **b}, ["y"], transB=1)
    shorts = {"a": _bytes(3, 6).astype(np.int16), "b": _bytes(6, 5).astype(np.int16)}
    _case("plain", f"{_MICROSOFT}::MatMulInteger16", shorts, ["y"])
    _case(
        "relu",
        f"{_MICROSOFT}::FusedGemm",
        {"a": _reals(4, 6), "b": _reals(6, 5), "c": _reals(5)},
        ["y"],
        activation="Relu",
    )
    conv = {"x": _reals(2, 6, 5, 5), "w": _reals(8, 6, 3, 3), "b": _reals(8)}
    _case("sum and relu", f"{_MICROSOFT}::FusedConv", {**conv, "z": _reals(2, 8, 3, 3)}, ["y"], activation="Relu")
    for name in ("Gelu", "QuickGelu"):
        _case("plain", f"{_MICROSOFT}::{name}", {"x": _reals(3, 6)}, ["y"])
    for name in ("BiasGelu", "FastGelu"):
        _case("bias", f"{_MICROSOFT}::{name}", {"x": _reals(3, 6), "b": _reals(6)}, ["y"])


def quantised_experts(
    bits: int, block: int, points: bool, hidden: int = 48, inner: int = 64
) -> dict[str, Array | None]:
    """The inputs of a QMoE of four experts with SwiGLU; blocks of 0 are whole columns."""
    rng, inputs = np.random.default_rng(bits + block), {"x": _reals(5, hidden), "router": _reals(5, 4)}
    zero_points: dict[str, Array | None] = {}
    for i, n, k in ((1, 2 * inner, hidden), (2, hidden, inner)):
        blocks = (k // block,) if block else ()
        inputs[f"w{i}"] = rng.integers(0, 256, (4, n, k * bits // 8)).astype(np.uint8)
        inputs[f"s{i}"] = rng.uniform(0.02, 0.1, (4, n, *blocks)).astype(np.float32)
        inputs[f"b{i}"] = _reals(4, n)
        each = rng.integers(0, 1 << bits, (4, n, *blocks)).astype(np.uint8)
        zero_points[f"z{i}"] = packed(each, bits) if points else None
    return {**inputs, "w3": None, "s3": None, "b3": None, **zero_points}


@_family
def _experts() -> None:
    tokens, router = {"x": _reals(5, 8)}, {"router": _reals(5, 6)}
    fc2 = {"w2": _reals(6, 8, 12), "b2": _reals(6, 8)}
    plain = {**tokens, **router, "w1": _reals(6, 12, 8), "b1": _reals(6, 12), **fc2}
    operator = f"{_MICROSOFT}::MoE"
    _case("relu", operator, plain, ["y"], k=1, activation_type="relu", normalize_routing_weights=1)
    _case("no bias", operator, {**plain, "b1": None, "b2": None}, ["y"], k=1, activation_type="silu")
    gated = {**plain, "w1": _reals(6, 24, 8), "b1": _reals(6, 24)}
    swiglu = {"activation_type": "swiglu", "swiglu_fusion": 1}
    _case("swiglu", operator, gated, ["y"], k=1, **swiglu)
    batched = {**gated, "x": _reals(2, 3, 8), "router": _reals(6, 6)}
    _case("swiglu, batched", operator, batched, ["y"], k=1, **swiglu)
    old = {**tokens, **router, "w1": _reals(6, 8, 12), "b1": _reals(6, 12), "w2": _reals(6, 12, 8)}
    _case("older layout, pinned", operator, old, ["y"], k=1, activation_type="relu")

    operator = f"{_MICROSOFT}::QMoE"
    for bits, block, points in (
        (4, 16, False),
        (4, 16, True),
        (4, 0, False),
        (4, 0, True),
        (2, 16, True),
        (8, 0, True),
    ):
        inputs = quantised_experts(bits, block, points)
        settings = {"expert_weight_bits": bits, **({"block_size": block} if block else {})}
        name = f"{bits} bits, {block or 'no'} blocks{', zero points' * points}"
        _case(name, operator, inputs, ["y"], k=1, **swiglu, **settings)


def _quantised(name: str, *shape: int, dtype: type = np.uint8, rows: int = 0) -> dict[str, Array]:
    """A quantised operand, its scale and its zero point; ``rows`` of each where they differ by row."""
    each = (rows,) if rows else ()
    return {
        name: _bytes(*shape, dtype=dtype),
        f"{name}_scale": _scale(*each),
        f"{name}_zero": _bytes(*each, dtype=dtype),
    }


def _result(*outputs: str) -> dict[str, Array]:
    return {"y_scale": np.array(0.5, np.float32), "y_zero": np.array(117, np.uint8)}


@_family
def _quantised_contractions() -> None:
    for groups in (1, 2):
        weight = {**_quantised("w", 8, 6 // groups, 3, 3, dtype=np.int8, rows=8), "w_zero": np.zeros(8, np.int8)}
        inputs = {**_quantised("x", 2, 6, 5, 5), **weight, **_result(), "b": _rng.integers(-99, 99, 8).astype(np.int32)}
        _case(f"{groups} groups", "QLinearConv", inputs, ["y"], group=groups)
        # ONNX Runtime does not write this one with unsigned weights: see `runtime.overflow`. So they have seven bits.
        halved = {**inputs, "w": inputs["w"] // 2}
        _case(f"{groups} groups", f"{_MICROSOFT}::QLinearConv", halved, ["y"], group=groups)
    conv = {"x": _bytes(2, 6, 5, 5), "w": _bytes(8, 3, 3, 3), "x_zero": _bytes(), "w_zero": _bytes()}
    _case("groups", "ConvInteger", conv, ["y"], group=2)
    rows = {
        "a": _bytes(3, 4, 6),
        "b": _bytes(6, 5, dtype=np.int8),
        "a_zero": _bytes(),
        "b_zero": _bytes(5, dtype=np.int8),
    }
    _case("zero point for each column", "MatMulInteger", rows, ["y"])
    matmul = {**_quantised("a", 3, 4, 6), **_quantised("b", 6, 5, dtype=np.int8, rows=5), **_result()}
    _case("scale for each column", "QLinearMatMul", matmul, ["y"])
    gemm = {**_quantised("a", 4, 6), **_quantised("b", 5, 6, dtype=np.int8, rows=5), "c": _bytes(5).astype(np.int32)}
    _case("bias, result", f"{_MICROSOFT}::QGemm", {**gemm, **_result()}, ["y"], transB=1)
    _case("real result", f"{_MICROSOFT}::QGemm", gemm, ["y"], transB=1)
    columns = {**gemm, **_quantised("b", 6, 5, dtype=np.int8, rows=5)}
    _case("columns", f"{_MICROSOFT}::QGemm", {**columns, **_result()}, ["y"])
    weight = {"b": _bytes(6, 5, dtype=np.int8), "b_scale": _scale(5), "b_zero": _bytes(5, dtype=np.int8)}
    _case("bias", f"{_MICROSOFT}::DynamicQuantizeMatMul", {"a": _reals(3, 4, 6), **weight, "c": _reals(5)}, ["y"])
    mixed = {
        "a": _bytes(3, 4, 6), "b": _bytes(6, 5), "a_scale": _scale(), "b_scale": _scale(5),
        "a_zero": _bytes(), "b_zero": _bytes(5), "c": _reals(5),
    }  # fmt: skip
    _case("bias", f"{_MICROSOFT}::MatMulIntegerToFloat", mixed, ["y"])


@_family
def _quantised_elementwise() -> None:
    pair = {**_quantised("a", 2, 4, 6), **_quantised("b", 4, 6), **_result()}
    for name in ("QLinearAdd", "QLinearMul"):
        _case("broadcast", f"{_MICROSOFT}::{name}", pair, ["y"])
    one = {**_quantised("x", 2, 6, 4, 4), **_result()}
    _case("plain", f"{_MICROSOFT}::QLinearLeakyRelu", one, ["y"], alpha=0.2)
    _case("plain", f"{_MICROSOFT}::QLinearSigmoid", one, ["y"])
    _case("channels", f"{_MICROSOFT}::QLinearSoftmax", one, ["y"], axis=1, opset=13)
    _case("plain", f"{_MICROSOFT}::QLinearGlobalAveragePool", one, ["y"])
    _case("plain", f"{_MICROSOFT}::QLinearAveragePool", one, ["y"], kernel_shape=[2, 2])
    _case(
        "channels",
        f"{_MICROSOFT}::QLinearConcat",
        {**_result(), **_quantised("a", 2, 3), **_quantised("b", 2, 4)},
        ["y"],
        axis=1,
    )
    choice = {"c": _rng.integers(0, 2, (4, 6)).astype(bool), **_quantised("a", 4, 6), **_quantised("b", 6), **_result()}
    _case("broadcast", f"{_MICROSOFT}::QLinearWhere", choice, ["y"])
    for domain in ("", f"{_MICROSOFT}::"):
        rows = {"x": _reals(4, 6), "s": _scale(6), "z": _bytes(6)}
        _case("by column", f"{domain}QuantizeLinear", rows, ["y"], axis=1)
        rows = {"x": _bytes(4, 6), "s": _scale(4), "z": _bytes(4)}
        _case("by row", f"{domain}DequantizeLinear", rows, ["y"], axis=0)
    blocks = {"x": _bytes(8, 6), "s": _scale(3, 6), "z": _bytes(3, 6)}
    _case("blocks, the last one short", "DequantizeLinear", blocks, ["y"], axis=0, block_size=3)


@_family
def _packed_tables() -> None:
    operator = f"{_MICROSOFT}::GatherBlockQuantized"
    picks, rng = np.array([[0, 2], [3, 1]]), np.random.default_rng(3)
    for bits, points in ((4, False), (4, True), (2, True), (8, True)):
        table: dict[str, Array | None] = {"x": _bytes(5, 64 * bits // 8), "i": picks, "s": _scale(5, 4)}
        each = rng.integers(0, 1 << bits, (5, 4)).astype(np.uint8)
        table["z"] = packed(each, bits) if points else None
        _case(f"{bits} bits in bytes{', zero points' * points}", operator, table, ["y"], bits=bits, block_size=16)
    short = {"x": _bytes(5, 20), "i": picks, "s": _scale(5, 3)}
    _case("last block not full, pinned", operator, short, ["y"], bits=4, block_size=16)


@_family
def _more_of_onnx() -> None:
    """Axes longer than in ONNX's own cases, so that units can go."""
    for groups in (1, 2, 6):
        conv = {"x": _reals(2, 6, 5, 5), "w": _reals(12, 6 // groups, 3, 3), "b": _reals(12)}
        _case(f"{groups} groups", "Conv", conv, ["y"], group=groups)
        transposed = {"x": _reals(2, 6, 5, 5), "w": _reals(6, 12 // groups, 3, 3), "b": _reals(12)}
        _case(f"{groups} groups", "ConvTranspose", transposed, ["y"], group=groups)
    for name, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        cell = {
            "x": _reals(4, 2, 5),
            "w": _reals(2, gates * 6, 5),
            "r": _reals(2, gates * 6, 6),
            "b": _reals(2, gates * 12),
        }
        _case("both directions", name, cell, ["y", "h"], hidden_size=6, direction="bidirectional")
    table = {"x": _reals(5, 8), "i": np.array([[0, 2], [3, 1]])}
    _case("table", "Gather", table, ["y"], axis=0)
    _case("picked twice", "Gather", {"x": _reals(5, 8), "i": np.array([6, 0, -1, 0, 3])}, ["y"], axis=1)
    _case("shuffle", "Reshape", {"x": _reals(2, 12, 3), "s": np.array([2, 3, 4, 3])}, ["y"])
    _case("regrouped", "Reshape", {"x": _reals(2, 6, 4), "s": np.array([2, 4, 6])}, ["y"])
    bounds = {"a": np.array([7]), "b": np.array([0]), "c": np.array([0]), "d": np.array([-2])}
    _case("reversed", "Slice", {"x": _reals(9), **bounds}, ["y"])


@_family
def _more_images() -> None:
    image = {"x": _reals(2, 6, 4, 4)}
    offsets = {"w": _reals(8, 3, 2, 2), "offset": _reals(2, 8, 3, 3), "b": _reals(8), "mask": _reals(2, 4, 3, 3)}
    _case("2 groups", "DeformConv", {**image, **offsets}, ["y"], group=2)
    _case("channels", "GridSample", {**image, "grid": _rng.uniform(-1, 1, (2, 3, 3, 2)).astype(np.float32)}, ["y"])
    _case("sizes", "Resize", {**image, "roi": None, "scales": None, "sizes": np.array([2, 6, 8, 8])}, ["y"])
    _case("scales", "Resize", {**image, "roi": None, "scales": np.array([1, 1, 2, 2], np.float32)}, ["y"])
    _case("scales", "Upsample", {**image, "scales": np.array([1, 1, 2, 2], np.float32)}, ["y"], {"": 9})
    regions = {"rois": np.array([[0, 0, 2, 2], [1, 1, 3, 3]], np.float32), "batch": np.array([0, 1])}
    _case("channels", "RoiAlign", {**image, **regions}, ["y"], output_height=2, output_width=2)
    _case("channels", "MeanVarianceNormalization", image, ["y"])
    for name in ("GlobalAveragePool", "GlobalLpPool"):
        _case("channels", name, image, ["y"], {"": 21})
    regions = {"rois": np.array([[0, 0, 0, 2, 2], [1, 1, 1, 3, 3]], np.float32)}
    _case("channels", "MaxRoiPool", {**image, **regions}, ["y"], {"": 21}, pooled_shape=[2, 2])
    for blocksize, mode in ((2, "DCR"), (2, "CRD")):
        deep = {"x": _reals(2, 12, 2, 3)}
        _case(mode, "DepthToSpace", deep, ["y"], blocksize=blocksize, mode=mode)
    steps = {"x": _reals(4, 2, 5), "lengths": np.array([3, 4])}
    _case("features", "ReverseSequence", steps, ["y"], time_axis=0, batch_axis=1)
