"""What a network is, in one line, and what its units are called: read off operators and groups, not off names."""

from __future__ import annotations

from pathlib import Path

import decoders
import numpy as np
import onnx_ir as ir
import pytest
import text_models
from small_models import graph, random

from onnxprune import model_io
from onnxprune.graph.narrowing import free_caches
from onnxprune.pipeline.inspect import inspect
from onnxprune.pipeline.prepare import prepare
from onnxprune.structure.architecture import Architecture, attentions, called

MICROSOFT = ', "com.microsoft" : 1'
MODELS = Path(__file__).resolve().parents[2] / "models"


def renamed(model: ir.Model) -> ir.Model:
    """The same with names that tell nothing, but for those of inputs and outputs."""
    outside = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
        for j, value in enumerate(node.outputs):
            if value.name not in outside:
                value.name = f"v{i}_{j}"
    for i, value in enumerate(list(model.graph.initializers.values())):
        value.name = f"c{i}"
    return model


def test_the_line_of_each_trained_model() -> None:
    lines = {
        name: inspect(MODELS / f"{name}.onnx").line for name in ("digits_mlp", "digits_resnet", "digits_transformer")
    }
    assert lines == {
        "digits_mlp": "MLP, 3 fully connected layers, 50.6 k parameters",
        "digits_resnet": "CNN, 10 convolutions, 1 fully connected layer, 170.8 k parameters",
        "digits_transformer": "vision transformer, 3 layers, 4 heads, head size 16, MLP 192, 1 convolution, 127.3 k "
        "parameters",
    }


def test_a_decoder_of_fused_operators_whatever_its_names() -> None:
    model = renamed(ir.from_proto(decoders.fused(layers=3)))
    inspection = inspect(model)
    assert inspection.line.startswith("decoder, 3 layers, 8 heads in 4 KV groups, head size 16, MLP 48, ")
    assert inspection.architecture is not None and inspection.architecture.kv_groups == decoders.KV_HEADS
    assert {group.called for group in inspection.groups} == {"query heads per group", "neurons", "hidden"}
    assert inspection.caches is not None and inspection.caches.units["KV groups"] == decoders.KV_HEADS


def test_a_decoder_of_plain_operators_whatever_its_names() -> None:
    """Its norms, rotations and repeated keys are spelled out."""
    inspection = inspect(renamed(model_io.load(MODELS / "shakespeare_decoder.onnx")))
    line = "decoder, 6 layers, 8 heads in 4 KV groups, head size 16, MLP 160, 497.7 k parameters"
    assert inspection.line == line
    assert {group.called for group in inspection.groups} == {"query heads per group", "neurons", "hidden"}
    assert inspection.caches is not None and inspection.caches.units == {"KV groups": 4, "head size": 8}


def test_an_attention_with_its_projection_inside() -> None:
    """Queries and keys are 24 wide, values 32."""
    model = graph(
        """g (float[batch, tokens, 32] x) => (float[batch, tokens, 8] y) {
             a = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [24, 24, 32]> (x, w, b)
             y = MatMul(a, v) }""",
        {"w": random(32, 80), "b": random(80), "v": random(32, 8)}, domains=MICROSOFT,
    )  # fmt: skip
    assert inspect(model).line.startswith("transformer, 1 layer, 4 heads, head size 6, ")


@pytest.mark.parametrize("settings", ["", ", qkv_hidden_sizes = [32, 32, 32]"])
def test_a_projection_for_all_three_is_divided_by_three(settings: str) -> None:
    model = graph(
        f"""g (float[batch, tokens, 32] x) => (float[batch, tokens, 8] y) {{
             a = com.microsoft.Attention <num_heads = 4{settings}> (x, w, b) y = MatMul(a, v) }}""",
        {"w": random(32, 96), "b": random(96), "v": random(32, 8)}, domains=MICROSOFT,
    )  # fmt: skip
    assert inspect(model).line.startswith("transformer, 1 layer, 4 heads, head size 8, ")


def test_heads_that_are_an_axis_of_the_operands() -> None:
    model = graph(
        """g (float[batch, tokens, 32] x) => (float[batch, tokens, 8] y) {
             q1 = MatMul(x, wq) q2 = Reshape(q1, sq) q = Transpose <perm = [0, 2, 1, 3]> (q2)
             k1 = MatMul(x, wk) k2 = Reshape(k1, sk) k = Transpose <perm = [0, 2, 1, 3]> (k2)
             v1 = MatMul(x, wv) v2 = Reshape(v1, sk) v = Transpose <perm = [0, 2, 1, 3]> (v2)
             a = Attention(q, k, v) t = Transpose <perm = [0, 2, 1, 3]> (a) r = Reshape(t, so) y = MatMul(r, u) }""",
        {"wq": random(32, 32), "wk": random(32, 16), "wv": random(32, 16), "u": random(32, 8),
         "sq": np.array([0, 0, 4, 8]), "sk": np.array([0, 0, 2, 8]), "so": np.array([0, 0, 32])},
        opset=23,
    )  # fmt: skip
    inspection = inspect(model)
    assert inspection.line.startswith("transformer, 1 layer, 4 heads in 2 KV groups, head size 8, ")
    assert {"KV groups", "query heads per group"} <= {group.called for group in inspection.groups}


def test_a_recurrent_network() -> None:
    model = graph(
        """g (float[steps, batch, 8] x) => (float[steps, batch, 4] y) {
             h = LSTM <hidden_size = 6> (x, w, r) s = Squeeze(h, one) y = MatMul(s, v) }""",
        {"w": random(1, 24, 8), "r": random(1, 24, 6), "one": np.array([1]), "v": random(6, 4)},
    )
    assert inspect(model).line.startswith("recurrent network, 1 recurrent layer, 1 fully connected layer, ")


def test_heads_are_called_by_who_shares_them() -> None:
    model = ir.from_proto(decoders.fused(layers=2))
    free_caches(model)
    structure = prepare(model)
    found = attentions(structure)
    heads = {called(g, found): len(g) for g in structure.groups if g.kind == "heads"}
    assert heads == {"kv-groups": 4, "query-heads": 2}
    plain = prepare(model_io.load(MODELS / "digits_transformer.onnx"))
    assert {called(g, attentions(plain)) for g in plain.groups if g.kind == "heads"} == {"heads"}


def test_a_network_without_attention_is_no_transformer() -> None:
    assert inspect(text_models.encoder()).line.startswith("MLP, 1 fully connected layer, ")


@pytest.mark.parametrize(
    ("n", "said"),
    [(7_241_732_096, "7.2 G"), (25_557_032, "25.6 M"), (960_000, "1.0 M"), (50_610, "50.6 k"), (12, "12")],
)
def test_parameters_are_told_in_short(n: int, said: str) -> None:
    assert Architecture("MLP", n).line == f"MLP, {said} parameters"


def test_the_line_of_a_large_decoder() -> None:
    big = Architecture("decoder", 7_241_732_096, layers=32, heads=32, kv_groups=8, head_size=128, mlp=14_336)
    assert big.line == "decoder, 32 layers, 32 heads in 8 KV groups, head size 128, MLP 14,336, 7.2 G parameters"


def test_heads_that_lie_beside_the_batch() -> None:
    """As DeBERTa has them: queries [batch x heads, tokens, size]."""
    model = graph(
        """g (float[batch, tokens, 32] x) => (float[batch, tokens, 8] y) {
             q1 = MatMul(x, wq) q2 = Reshape(q1, split) q3 = Transpose <perm = [0, 2, 1, 3]> (q2)
             k1 = MatMul(x, wk) k2 = Reshape(k1, split) k3 = Transpose <perm = [0, 2, 3, 1]> (k2)
             v1 = MatMul(x, wv) v2 = Reshape(v1, split) v3 = Transpose <perm = [0, 2, 1, 3]> (v2)
             shape = Shape(x) batch = Gather(shape, zero) tokens = Gather(shape, one) rows = Mul(batch, four)
             by_row = Concat <axis = 0> (rows, tokens, eight) by_column = Concat <axis = 0> (rows, eight, tokens)
             q = Reshape(q3, by_row) k = Reshape(k3, by_column) v = Reshape(v3, by_row)
             s = MatMul(q, k) p = Softmax <axis = -1> (s) a = MatMul(p, v)
             apart = Concat <axis = 0> (batch, four, tokens, eight) b = Reshape(a, apart)
             c = Transpose <perm = [0, 2, 1, 3]> (b) d = Reshape(c, joined) y = MatMul(d, u) }""",
        {"wq": random(32, 32), "wk": random(32, 32), "wv": random(32, 32), "u": random(32, 8),
         "split": np.array([0, 0, 4, 8]), "zero": np.array([0]), "one": np.array([1]), "four": np.array([4]),
         "eight": np.array([8]), "joined": np.array([0, 0, 32])},
    )  # fmt: skip
    assert inspect(model).line.startswith("transformer, 1 layer, 4 heads, head size 8, ")
