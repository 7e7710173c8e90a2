"""How many multiply-adds an operator takes, from the shapes of its inputs and outputs.

One multiply-add counts as one (FLOPs are about twice that). Only products of matrices count: convolutions, matrix
products, Einsum, recurrent cells and attention. Formulas are those of the definitions of the operators
(https://onnx.ai/onnx/operators/ and ONNX Runtime's ContribOperators.md). Causal masks are not taken off.

A formula takes the node, the shapes of its inputs and those of its outputs; None stands for a shape that is not known.
It raises TypeError or IndexError where it needs one of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

Shape = tuple[int, ...]
Formula = Callable[[ir.Node, "list[Any]", "list[Any]"], "int | None"]


def no_products(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """The operator multiplies no matrices."""
    return 0


def not_counted(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> None:
    """The operator may multiply matrices, and no formula is known: it is named in the result."""
    return None


def convolution(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Output elements x (C / group x kernel): W is [M, C / group, *kernel]. Interpolation of samples is left out."""
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])


def qlinear_convolution(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """As a convolution; W is input 3."""
    return math.prod(outputs[0]) * math.prod(inputs[3][1:])


def transposed_convolution(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Input elements x (M / group x kernel): W is [C, M / group, *kernel]. Padding crops afterwards."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def qlinear_transposed_convolution(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """As a transposed convolution; W is input 3."""
    return math.prod(inputs[0]) * math.prod(inputs[3][1:])


def gemm(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """M x N x K."""
    return math.prod(outputs[0]) * int(inputs[0][0 if node.attributes.get_int("transA", 0) else 1])


def matmul(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Output elements x K; transA swaps the last two axes of A, transBatchA moves its first one in between."""
    left = list(inputs[0])
    if node.attributes.get_int("transBatchA", 0):
        left = [*left[1:-1], left[0], left[-1]]
    transposed = node.attributes.get_int("transA", 0) and len(left) > 1
    return math.prod(outputs[0]) * int(left[-2 if transposed else -1])


def einsum(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Product of the extents of all letters, times one less than the operands; an ellipsis takes what is left."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    operands = equation.split("->")[0].split(",")
    extents: dict[str, int] = {}
    for operand, shape in zip(operands, inputs, strict=True):
        head, dots, tail = operand.partition("...")
        hidden = len(shape) - len(head) - len(tail) if dots else 0
        letters = [*head, *(f"...{hidden - i}" for i in range(hidden)), *tail]
        for letter, extent in zip(letters, shape, strict=True):
            extents[letter] = max(extents.get(letter, 1), extent)
    return math.prod(extents.values()) * max(len(operands) - 1, 1)


def recurrent(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Steps x batch x (elements of W and R): W [directions, gates x H, I], R [directions, gates x H, H]."""
    x, w, r = inputs[:3]
    return int(x[0] * x[1]) * (math.prod(w) + math.prod(r))


def experts(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """com.microsoft MoE and QMoE: each token goes through k experts, with weights [experts, outputs, inputs].

    Several numbers of QMoE lie in a byte.
    """
    quantised = node.op_type == "QMoE"
    bits = node.attributes.get_int("expert_weight_bits", 4) if quantised else 8
    places = (2, 5, 8) if quantised else (2, 4, 6)
    each = 0
    for number, place in enumerate(places, start=1):
        if place < len(inputs) and inputs[place]:
            own_bits = node.attributes.get_int(f"fc{number}_expert_weight_bits", bits)
            each += math.prod(inputs[place][1:]) * 8 // own_bits
    return int(inputs[1][0] * node.attributes.get_int("k", 1) * each)


def attention(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Scores and weighted sum of ai.onnx Attention: inputs q, k, v, mask, past_key, past_value.

    Q is [batch, heads, length, size] or [batch, length, heads x size]; with L keys in all (the past included), both
    products take batch x heads x length x L x size each.
    """
    past = inputs[4][2] if len(inputs) > 4 and inputs[4] else 0
    return _scores_and_sum(node, inputs, past, heads="q_num_heads")


def multi_head_attention(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """The same for com.microsoft MultiHeadAttention: its past is input 6, and q, k and v may be packed in one."""
    past = inputs[6][2] if len(inputs) > 6 and inputs[6] else 0
    if len(inputs[0]) == 5:  # [batch, length, heads, 3, size]
        batch, length, heads, _, size = inputs[0]
        return int(2 * batch * heads * length * (length + past) * size)
    if len(inputs[1]) == 5:  # keys and values packed: [batch, length, heads, 2, size]
        return int(2 * math.prod(inputs[0]) * (inputs[1][1] + past))
    return _scores_and_sum(node, inputs, past, heads="num_heads")


def _scores_and_sum(node: ir.Node, inputs: list[Any], past: int, heads: str) -> int:
    q, k, v = inputs[0], inputs[1], inputs[2]
    keys = (k[2] if len(k) == 4 else k[1]) + past
    if len(q) == 4:
        batch, count, length, size = q
        return int(batch * count * length * keys * (size + v[3]))
    batch, length, width = q
    count = node.attributes.get_int(heads, 1)
    if len(v) == 4:
        return int(batch * length * keys * (width + count * v[3]))
    kv_count = node.attributes.get_int("kv_num_heads", count)
    return int(batch * length * keys * (width + v[2] * count // kv_count))


def fused_attention(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """com.microsoft Attention: x W for q, k and v in one, W [input width, 3 x hidden], then both products."""
    (batch, length, _), weights = inputs[0], inputs[1]
    past = inputs[4][3] if node.op_type == "Attention" and len(inputs) > 4 and inputs[4] else 0  # [2, batch, heads, ..]
    widths = node.attributes.get_ints("qkv_hidden_sizes") or [weights[1] // 3] * 3
    return int(batch * length * math.prod(weights) + batch * length * (length + past) * (widths[0] + widths[2]))


def group_query_attention(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Both products, with as many keys as the cache that comes out holds (output 1: [batch, heads, keys, size])."""
    batch, length, width = outputs[0]
    past = inputs[3][2] if len(inputs) > 3 and inputs[3] else 0
    present = outputs[1][2] if len(outputs) > 1 and outputs[1] else length + past
    return int(2 * batch * length * width * present)


def linear_attention(node: ir.Node, inputs: list[Any], outputs: list[Any]) -> int:
    """Each step writes to a state [d_k, d_v] for each head of the keys, and reads it for each head of the queries.

    Update rules with `delta` in their name also read it for each head of the keys, to write a difference.
    """
    batch, length, key_width = inputs[1]
    kv_heads = node.attributes.get_int("kv_num_heads", 1)
    q_heads = node.attributes.get_int("q_num_heads", kv_heads)
    state = (key_width // kv_heads) * (inputs[2][2] // kv_heads)
    reads_first = "delta" in node.attributes.get_string("update_rule", "gated_delta")
    return int(batch * length * state * (kv_heads + q_heads + (kv_heads if reads_first else 0)))
