"""Residual blocks: which sums have a side that can go, and what goes with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.structure.analysis import analyse
from onnxprune.structure.blocks import residual_blocks
from onnxprune.structure.structure import Structure

HEAD = '<ir_version: 8, opset_import: ["": 13]> g (float[N, 4] x{more}) => (float[N, 4] y) {{ {body} }}'


def structure_of(body: str, more: str = "") -> Structure:
    proto = onnx.parser.parse_model(HEAD.format(body=body, more=more))
    for name in ("w1", "w2", "w3"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), name))
    return analyse(ir.from_proto(proto))


def found(body: str, more: str = "") -> dict[str, tuple[str, int, set[str]]]:
    """Of each block: what it adds, how many nodes and which weights go with it."""
    structure = structure_of(body, more)
    return {
        b.name: (str(b.contribution.name), len(b.nodes), {str(v.name) for v in b.weights})
        for b in residual_blocks(structure)
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("h = MatMul(x, w1) r = Relu(h) f = MatMul(r, w2) y = Add(x, f)", {"y": ("f", 3, {"w1", "w2"})}),
        ("h = MatMul(x, w1) f = MatMul(h, w2) y = Add(f, x)", {"y": ("f", 2, {"w1", "w2"})}),
        ("h = MatMul(x, w1) s = Add(x, h) y = Relu(s)", {"s": ("h", 1, {"w1"})}),
        ("g = Sigmoid(x) h = MatMul(x, w1) f = Mul(g, h) y = Add(x, f)", {"y": ("f", 3, {"w1"})}),
        (
            "a = MatMul(x, w1) s = Add(x, a) b = MatMul(s, w2) y = Add(s, b)",
            {"s": ("a", 1, {"w1"}), "y": ("b", 1, {"w2"})},
        ),
    ],
    ids=["behind a relu", "either side of the sum", "relu behind the sum", "gated", "one after the other"],
)
def test_a_side_that_is_there_for_the_sum_alone_is_a_block(
    body: str, expected: dict[str, tuple[str, int, set[str]]]
) -> None:
    assert found(body) == expected


def test_what_else_reads_the_branch_keeps_it() -> None:
    assert found("h = MatMul(x, w1) f = Relu(h) s = Add(x, f) y = Add(s, h)") == {}


def test_a_side_without_weights_is_no_block() -> None:
    assert found("f = Relu(x) y = Add(x, f)") == {}


def test_beside_a_projection_the_side_with_more_weights_goes() -> None:
    body = "g = MatMul(x, w3) h = MatMul(x, w1) f = MatMul(h, w2) y = Add(f, g)"
    assert found(body) == {"y": ("f", 2, {"w1", "w2"})}


def test_two_sides_that_read_different_things_are_no_block() -> None:
    assert found("g = MatMul(z, w3) h = MatMul(x, w1) y = Add(g, h)", ", float[N, 4] z") == {}


def test_a_block_may_read_more_than_the_trunk() -> None:
    body = "h = MatMul(x, w1) f = Mul(h, mask) y = Add(x, f)"
    assert found(body, ", float[N, 4] mask") == {"y": ("f", 2, {"w1"})}


def test_a_sum_that_widens_the_trunk_is_no_block() -> None:
    """x of one row is added to f of four: without f the result would lose its shape."""
    body = "axes = Constant<value_ints = [0]>() m = ReduceSum(x, axes) h = MatMul(m, w1) e = Mul(h, x) y = Add(m, e)"
    assert found(body) == {}


def test_a_shared_weight_stays() -> None:
    body = "a = MatMul(x, w1) s = Add(x, a) h = MatMul(s, w1) b = MatMul(h, w2) y = Add(s, b)"
    assert found(body) == {"y": ("b", 2, {"w2"})}
