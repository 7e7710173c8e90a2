"""Quantised operators: they tie axes as their real-valued twins do, and zero means the zero point.

A quantised constant is zeroed by writing its zero point. The zero flag of a quantised activation says that removed
indices hold the zero point of the operator that made it; a reader with another zero point sees something else, which
`same_zero_point` finds out. Scales and zero points with one entry for each index of an axis are cut with it; blocks
that share a scale go as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.graph.operators import operator_of
from onnxprune.structure.axes import Dynamic
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rules.contraction import convolution, gemm_axes, matmul_like, rewrite_conv
from onnxprune.structure.rules.elementwise import ZeroPolicy, aligned
from onnxprune.structure.rules.movement import joined
from onnxprune.structure.rules.normalisation import softmax_of_opset
from onnxprune.structure.rules.pooling import pool
from onnxprune.structure.view import RuleMismatch, View

# -- zero points and scales -----------------------------------------------------------------------------------------


def same_zero_point(view: View, value: ir.Value, point: ir.Value | None) -> bool:
    """Say whether a quantised value holds numbers counted from zero point ``point`` (None is 0)."""
    if value.is_initializer():
        fill = view.filled_with(value)
        return fill is not None and _same_numbers(view, fill.zero_point, point)
    node = value.producer()
    if node is None:
        return False
    operator = operator_of(node)
    if operator.result_quantised is not None:
        i = operator.result_quantised[1]
        return _same_numbers(view, node.inputs[i] if i < len(node.inputs) else None, point)
    if operator.result_zero_point is not None:
        return node.outputs[operator.result_zero_point] is point
    if not operator.keeps_zero_point or operator.has_body:
        return False
    return all(v is None or same_zero_point(view, v, point) for i, v in enumerate(node.inputs) if operator.reads(i))


def _same_numbers(view: View, a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return True
    numbers = [np.zeros(1) if v is None else view.facts.data(v) for v in (a, b)]
    return all(n is not None and n.size == 1 and n.reshape(()) == numbers[0].reshape(()) for n in numbers)  # type: ignore[union-attr]


def _require_zero_point(view: View, operand: int, point: int) -> None:
    """Refuse an operand whose removed indices hold another zero point than the one it is read with."""
    value = view.need(operand)
    if any(view.zero(value)) and not same_zero_point(view, value, view.x(point)):
        raise RuleMismatch(f"its input {value.name} was quantised with another zero point")


def _constant(view: View, operand: int, point: int | None, axis: int) -> None:
    """Zero a constant operand by writing its zero point; check that of one that is computed."""
    value = view.x(operand)
    if value is None:
        return
    if value.is_initializer():
        if not view.fill(value, None if point is None else view.x(point), axis):
            raise RuleMismatch(f"{value.name} has no zero point of its own that is a constant")
    elif point is not None:
        _require_zero_point(view, operand, point)


def tie_scales(view: View, value: ir.Value, axis: int, *scales: int) -> None:
    """Tie scales and zero points, where there is one for each index, to the axis that they belong to."""
    for i in scales:
        scale = view.x(i)
        if scale is None or all(n == 1 for n in view.shape(scale)):
            continue
        if view.rank(scale) == 1:
            view.unify(view.axis(value, axis), view.axis(scale, 0))
        elif view.rank(scale) == view.rank(value):
            _tie_blocks(view, value, scale, axis % view.rank(value))
        else:
            raise RuleMismatch("its scale has a shape that does not fit")
        if not scale.is_initializer():
            for one in view.axes(scale):
                view.pin(one, "its scale is not a constant")


def _tie_blocks(view: View, value: ir.Value, scale: ir.Value, axis: int) -> None:
    """One scale for each block of an axis: blocks go as a whole. All other axes have the same extents."""
    for i in range(view.rank(value)):
        if view.shape(scale)[i] == view.shape(value)[i]:
            view.unify(view.axis(value, i), view.axis(scale, i))
        elif i != axis or isinstance(view.axis(value, i), Dynamic):
            raise RuleMismatch("its scale has a shape that does not fit")
        else:
            block, ids = view.int_attr("block_size", 0), view.ids(value, i)
            block = block or -(-len(ids) // len(view.ids(scale, i)))
            view.terms.unify(ids, np.repeat(view.ids(scale, i), block)[: len(ids)])


# -- Q and DQ -------------------------------------------------------------------------------------------------------


@rule("QuantizeLinear", "com.microsoft::QuantizeLinear")
def quantize(view: View) -> None:
    """Zero becomes the zero point."""
    x = view.need(0)
    tie_scales(view, x, view.int_attr("axis", 1), 1, 2)
    view.give(view.out(), view.axes(x), view.zero(x))


@rule("DequantizeLinear", "com.microsoft::DequantizeLinear")
def dequantize(view: View) -> None:
    """The zero point becomes zero."""
    x, axis = view.need(0), view.int_attr("axis", 1)
    tie_scales(view, x, axis, 1, 2)
    if x.is_initializer():
        view.fill(x, view.x(2), axis)
    same = same_zero_point(view, x, view.x(2))
    view.give(view.out(), view.axes(x), [z and same for z in view.zero(x)])


@rule("DynamicQuantizeLinear")
def dynamic_quantize(view: View) -> None:
    """The scale comes from the range of all values, which zero is always part of."""
    x = view.need(0)
    _mix_range(view, 0)
    view.give(view.out(), view.axes(x), view.zero(x))
    for i in (1, 2):
        view.give(view.out(i), [], [])


def _mix_range(view: View, operand: int) -> None:
    for i, zero in enumerate(view.zero(view.need(operand))):
        if not zero:
            view.mix(operand, i, "its scale comes from the range of all values")


# -- contractions ---------------------------------------------------------------------------------------------------


@rule("QLinearConv", "com.microsoft::QLinearConv")
def qlinear_conv(view: View) -> None:
    """Conv on x (0), w (3), bias (8)."""
    if view.node.domain and view.int_attr("channels_last", 0):
        raise RuleMismatch("its channels are the last axis")
    _constant(view, 3, 5, 0)
    _constant(view, 8, None, 0)
    _require_zero_point(view, 0, 2)
    tie_scales(view, view.need(3), 0, 4, 5)
    convolution(view, x=0, w=3, bias=8)


@rule("ConvInteger")
def conv_integer(view: View) -> None:
    """Conv on x (0) and w (1) with 32-bit results."""
    _constant(view, 1, 3, 0)
    _require_zero_point(view, 0, 2)
    tie_scales(view, view.need(1), 0, 3)
    convolution(view, x=0, w=1, bias=None)


rewriter("com.microsoft::QLinearConv")(rewrite_conv)


@rule("QLinearMatMul")
def qlinear_matmul(view: View) -> None:
    """MatMul of a (0) and b (3)."""
    _integer_matmul(view, (0, 1, 2), (3, 4, 5))


@rule("MatMulInteger", "com.microsoft::MatMulInteger16")
def matmul_integer(view: View) -> None:
    """MatMul of a (0) and b (1) with 32-bit results."""
    _integer_matmul(view, (0, 2), (1, 3))


@rule("com.microsoft::MatMulIntegerToFloat")
def matmul_integer_to_float(view: View) -> None:
    """MatMul of a (0) and b (1) with real results and a bias."""
    _integer_matmul(view, (0, 2, 4), (1, 3, 5), bias=6)


@rule("com.microsoft::DynamicQuantizeMatMul")
def dynamic_quantize_matmul(view: View) -> None:
    """MatMul of a real a (0), quantised on the way, and b (1)."""
    _mix_range(view, 0)
    _integer_matmul(view, (0,), (1, 2, 3), bias=4)


def _integer_matmul(view: View, a: Sequence[int], b: Sequence[int], bias: int | None = None) -> None:
    """MatMul of two operands, each given as (its input, scale and zero point inputs...)."""
    for operand, side in ((a, -2), (b, -1)):
        if len(operand) > 1:
            _constant(view, operand[0], operand[-1], side)
            tie_scales(view, view.need(operand[0]), side, *operand[1:])
    matmul_like(view, a[0], b[0], trans_a=False, trans_b=False)
    out, addend = view.out(), view.x(bias) if bias is not None else None
    if out is not None and addend is not None:
        view.unify(view.axis(out, -1), view.axis(addend, -1))
        columns = view.zero(out)[-1] and view.zero(addend)[-1]
        view.give(out, view.axes(out), [*[False] * (view.rank(out) - 1), columns])


@rule("com.microsoft::QGemm")
def qgemm(view: View) -> None:
    """Gemm of A (0) and B (3), with C (6)."""
    columns = 0 if view.int_attr("transB", 0) else 1
    _constant(view, 3, 5, columns)
    _constant(view, 6, None, 0)
    _require_zero_point(view, 0, 2)
    tie_scales(view, view.need(3), columns, 4, 5)
    gemm_axes(view, 0, 3, 6)


# -- elementwise, pooling and movement ------------------------------------------------------------------------------


def _elementwise(view: View, operands: Sequence[int], policy: ZeroPolicy) -> None:
    for i in operands:
        _constant(view, i, i + 2, 0)
    out = view.out()
    if out is not None:
        view.give(out, *aligned(view, [view.need(i) for i in operands], out, policy))


@rule("com.microsoft::QLinearAdd")
def qlinear_add(view: View) -> None:
    """A (0) + B (3)."""
    _elementwise(view, (0, 3), all)


@rule("com.microsoft::QLinearMul")
def qlinear_mul(view: View) -> None:
    """A (0) x B (3)."""
    _elementwise(view, (0, 3), any)


@rule("com.microsoft::QLinearLeakyRelu")
def qlinear_leaky_relu(view: View) -> None:
    """Zero stays zero."""
    _elementwise(view, (0,), all)


@rule("com.microsoft::QLinearSigmoid")
def qlinear_sigmoid(view: View) -> None:
    """Zero becomes one half."""
    _elementwise(view, (0,), lambda _: False)


@rule("com.microsoft::QLinearWhere")
def qlinear_where(view: View) -> None:
    """Condition (0) picks from X (1) or Y (4)."""
    for i in (1, 4):
        _constant(view, i, i + 2, 0)
    out = view.out()
    if out is not None:
        values = [view.need(i) for i in (0, 1, 4)]
        view.give(out, *aligned(view, values, out, lambda flags: flags[1] and flags[2]))


@rule("com.microsoft::QLinearSoftmax")
def qlinear_softmax(view: View) -> None:
    """As Softmax of the opset that the node names."""
    softmax_of_opset(view, view.int_attr("opset", 13))


@rule("com.microsoft::QLinearAveragePool", "com.microsoft::QLinearGlobalAveragePool")
def qlinear_pool(view: View) -> None:
    """As the pools of real values."""
    if view.int_attr("channels_last", 0):
        raise RuleMismatch("its channels are the last axis")
    _require_zero_point(view, 0, 2)
    pool(view)


@rule("com.microsoft::QLinearConcat")
def qlinear_concat(view: View) -> None:
    """Inputs are laid end to end: Y scale, Y zero point, then (value, scale, zero point) of each."""
    operands = range(2, len(view.node.inputs), 3)
    for i in operands:
        _constant(view, i, i + 2, 0)
    values = [view.need(i) for i in operands]
    along = view.int_attr("axis", 1) % view.rank(values[0])
    view.give(view.out(), *joined(view, values, along))
