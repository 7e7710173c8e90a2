"""Contractions: the summed axes of both operands unify, the others carry over to the output."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph.caches import is_link
from onnxprune.structure.axes import Axis
from onnxprune.structure.registry import rewriter, rule
from onnxprune.structure.rewriter import Rewriter
from onnxprune.structure.view import RuleMismatch, View

KERNEL_SIDE = "it is a side of the kernel"


def contract(view: View, a: int, i: int, b: int, j: int) -> None:
    """Tie the summed axes: axis ``i`` of input ``a`` and axis ``j`` of input ``b``.

    The sum is the same without an index when one of the two is zero there; else the axis is mixed.
    """
    left, right = view.need(a), view.need(b)
    view.unify(view.axis(left, i), view.axis(right, j))
    if not (view.zero(left)[i] or view.zero(right)[j]):
        reason = "it sums products of values that are not zero when the unit is"
        view.mix(a, i, reason)
        view.mix(b, j, reason)


# -- MatMul and Gemm ------------------------------------------------------------------------------------------------


@rule("MatMul")
def matmul(view: View) -> None:
    """[..., M, K] x [..., K, N] -> [..., M, N], numpy's rules for vectors included."""
    matmul_like(view, 0, 1, trans_a=False, trans_b=False)


@rule("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def fused_matmul(view: View) -> None:
    """MatMul of operands whose last two axes may be transposed first."""
    if view.int_attr("transBatchA", 0) or view.int_attr("transBatchB", 0):
        raise RuleMismatch("transposed batch axes are not followed")
    matmul_like(view, 0, 1, trans_a=bool(view.int_attr("transA", 0)), trans_b=bool(view.int_attr("transB", 0)))


def matmul_like(view: View, ia: int, ib: int, *, trans_a: bool, trans_b: bool) -> None:
    """Tie the axes of a (batched) matrix product and name its units."""
    a, b = view.need(ia), view.need(ib)
    ra, rb = view.rank(a), view.rank(b)
    k_a = -1 if ra == 1 or not trans_a else -2
    k_b = -1 if rb == 1 or trans_b else -2
    contract(view, ia, k_a, ib, k_b)
    out = view.out()
    if out is None:
        return
    constant = view.weight(b) or view.weight(a)
    batch_rank = max(ra, rb, 2) - 2
    axes: list[Axis] = []
    zero: list[bool] = []
    for i in range(batch_rank):
        batch, flag = _batch_axis(view, a, b, i - batch_rank)
        axes.append(batch)
        zero.append(flag)
    if ra > 1:
        m = -1 if trans_a else -2
        axes.append(view.axis(a, m))
        zero.append(view.zero(a)[m])
    if rb > 1:
        n = -2 if trans_b else -1
        axes.append(view.axis(b, n))
        zero.append(view.zero(b)[n])
    if constant:
        for axis in (view.axis(a, k_a), *axes[batch_rank:]):
            view.tag(axis, "neurons")
        for axis in axes[:batch_rank]:
            view.tag(axis, "experts")
    elif ra > 2 and rb > 2:
        for axis in axes[:batch_rank]:
            view.tag(axis, "heads")
        view.tag(view.axis(a, k_a), "head-size")
        view.tag(axes[-1], "head-size")
    view.give(out, axes, zero)


def _batch_axis(view: View, a: ir.Value, b: ir.Value, offset: int) -> tuple[Axis, bool]:
    """Broadcast one batch axis, counted from the last two axes backwards."""
    candidates: list[tuple[Axis, bool, int | None]] = []
    for value in (a, b):
        i = view.rank(value) - 2 + offset
        if i >= 0:
            candidates.append((view.axis(value, i), view.zero(value)[i], view.shape(value)[i]))
    full = [f for f in candidates if f[2] != 1] or candidates[:1]
    for other in full[1:]:
        view.unify(full[0][0], other[0])
    return full[0][0], any(f[1] for f in full)


@rule("Gemm", "com.microsoft::FusedGemm", "com.microsoft::GemmFloat8")
def gemm(view: View) -> None:
    """alpha A' B' + beta C: [M, K] x [K, N] + C -> [M, N]."""
    gemm_axes(view, 0, 1, 2)


def gemm_axes(view: View, ia: int, ib: int, ic: int) -> None:
    """Tie the axes of a Gemm whose A, B and C are these inputs."""
    a, b, out = view.need(ia), view.need(ib), view.out()
    ta, tb = view.int_attr("transA", 0), view.int_attr("transB", 0)
    contract(view, ia, 0 if ta else 1, ib, 1 if tb else 0)
    if view.weight(b) or view.weight(a):
        view.tag(view.axis(b, 0), "neurons")
        view.tag(view.axis(b, 1), "neurons")
    m, n = (1 if ta else 0), (0 if tb else 1)
    axes = [view.axis(a, m), view.axis(b, n)]
    zero = [view.zero(a)[m], view.zero(b)[n]]
    c = view.x(ic)
    if c is not None and out is not None:
        bias, bias_zero = _bias(view, c, out)
        for i in (0, 1):
            if bias[i] is not None:
                view.unify(axes[i], bias[i])  # type: ignore[arg-type]
            zero[i] = zero[i] and bias_zero[i]
    activation = view.node.attributes.get_string("activation", "") if view.node.domain else ""
    if activation not in ("", "Relu", "LeakyRelu", "Tanh"):
        zero = [False, False]
    view.give(out, axes, zero)


def _bias(view: View, c: ir.Value, out: ir.Value) -> tuple[list[Axis | None], list[bool]]:
    """Return the axes of a bias, and its zero flags, aligned with an output of two axes."""
    axes: list[Axis | None] = [None, None]
    zero = [False, False]
    shape, full = view.shape(c), view.shape(out)
    for j in range(len(shape)):
        i = 2 - len(shape) + j
        if shape[j] != 1 or full[i] == 1:
            axes[i], zero[i] = view.axis(c, j), view.zero(c)[j]
    return axes, zero


# -- convolutions ---------------------------------------------------------------------------------------------------


@rule("Conv", "com.microsoft::FusedConv")
def conv(view: View) -> None:
    """[N, C, spatial...] with [O, C / groups, kernel...]; group (g, i) goes as a whole or i in every group."""
    convolution(view, x=0, w=1, bias=2)


def convolution(view: View, *, x: int, w: int, bias: int | None, transposed: bool = False) -> None:
    """Tie the channels of a (transposed, grouped) convolution."""
    data, weight = view.need(x), view.need(w)
    groups = view.int_attr("group", 1)
    view.weight(weight)
    for i in range(2, view.rank(weight)):
        view.pin(view.axis(weight, i), KERNEL_SIDE)
        view.pin(view.axis(data, i), "it is a spatial axis")
    outputs = _transposed_channels(view, x, w, groups) if transposed else _channels(view, x, w, groups)
    out = view.out()
    if out is None:
        return
    view.tag(outputs, "channels")
    view.tag(view.axis(data, 1), "channels")
    zero = view.zero(weight)[1 if transposed else 0]
    b = view.x(bias) if bias is not None else None
    if b is not None:
        view.unify(outputs, view.axis(b, 0))
        zero = zero and view.zero(b)[0]
    residual = view.x(3) if view.node.op_type == "FusedConv" else None
    if residual is not None:
        view.unify(view.axis(data, 0), view.axis(residual, 0))
        view.unify(outputs, view.axis(residual, 1))
        for i in range(2, view.rank(residual)):
            view.pin(view.axis(residual, i), "it is a spatial axis")
        zero = zero and view.zero(residual)[1]
    activation = view.node.attributes.get_string("activation", "") if view.node.domain else ""
    if activation not in ("", "Relu", "LeakyRelu", "Tanh"):
        zero = False
    spatial = [view.still_axis(out, i, "it is a spatial axis") for i in range(2, view.rank(out))]
    view.give(out, [view.axis(data, 0), outputs, *spatial], [False, zero, *(False for _ in spatial)])


def _channels(view: View, x: int, w: int, groups: int) -> Axis:
    data, weight = view.need(x), view.need(w)
    if groups == 1:
        contract(view, x, 1, w, 1)
        return view.axis(weight, 0)
    inputs, outputs = view.ids(data, 1), view.ids(weight, 0)
    if len(inputs) % groups or len(outputs) % groups:
        raise RuleMismatch("its channels cannot be divided by its groups")
    gx, ix = view.terms.split(inputs, (groups, len(inputs) // groups))
    gw, _ = view.terms.split(outputs, (groups, len(outputs) // groups))
    view.unify(gx, gw)
    view.unify(ix, view.axis(weight, 1))
    if not (view.zero(data)[1] or view.zero(weight)[1]):
        view.mix(x, 1, "it sums products of values that are not zero when the unit is")
    return outputs


def _transposed_channels(view: View, x: int, w: int, groups: int) -> Axis:
    """ConvTranspose: the weight is [C, O / groups, kernel...]."""
    weight = view.need(w)
    contract(view, x, 1, w, 0)
    if groups == 1:
        return view.axis(weight, 1)
    g, _ = view.terms.split(view.ids(weight, 0), (groups, len(view.ids(weight, 0)) // groups))
    return view.terms.product([g, view.ids(weight, 1)])


@rule("ConvTranspose")
def conv_transpose(view: View) -> None:
    """Like Conv with the weight's channel axes swapped."""
    convolution(view, x=0, w=1, bias=2, transposed=True)


@rule("DeformConv")
def deform_conv(view: View) -> None:
    """Conv whose sampling points are data: these stay; channels go unless groups of them have points of their own."""
    data = view.need(0)
    for i in (2, 4):
        value = view.x(i)
        if value is not None:
            view.unify(view.axis(data, 0), view.axis(value, 0))
            for axis in view.axes(value)[1:]:
                view.pin(axis, "it holds sampling offsets")
    if view.int_attr("offset_group", 1) > 1:
        view.pin(view.axis(data, 1), "its offsets are shared by groups of channels")
    convolution(view, x=0, w=1, bias=3)


@rewriter("Conv", "ConvInteger", "QLinearConv", "DeformConv", "com.microsoft::FusedConv")
def rewrite_conv(rw: Rewriter, node: ir.Node) -> None:
    """Count the groups that are left: channels in over channels a kernel sees."""
    w = 3 if node.op_type == "QLinearConv" else 1
    _set_groups(rw, node, rw.extent(node.inputs[0], 1), rw.extent(node.inputs[w], 1))


@rewriter("ConvTranspose")
def rewrite_conv_transpose(rw: Rewriter, node: ir.Node) -> None:
    """Count the groups that are left: channels out over channels a kernel makes."""
    _set_groups(rw, node, rw.extent(node.outputs[0], 1), rw.extent(node.inputs[1], 1))


def _set_groups(rw: Rewriter, node: ir.Node, channels: int | None, each: int | None) -> None:
    groups = node.attributes.get_int("group", 1)
    if groups != 1 and channels and each:
        rw.set_attribute(node, "group", channels // each)


# -- Einsum ---------------------------------------------------------------------------------------------------------


@rule("Einsum")
def einsum(view: View) -> None:
    """Axes with the same letter unify; a letter that is summed must be zero in one operand to be exact."""
    if is_link(view.node):
        cache_link(view)
        return
    equation = view.node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms).replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    operands = [view.need(i) for i in range(len(terms))]
    places: dict[str, list[tuple[int, int]]] = {}
    dots: list[list[int]] = []
    for i, (term, value) in enumerate(zip(terms, operands, strict=True)):
        labels, ellipsis = _labels(term, view.rank(value))
        dots.append(ellipsis)
        for axis, label in labels:
            places.setdefault(label, []).append((i, axis))
    constant = [view.weight(v) for v in operands]
    for label, where in places.items():
        _tie_label(view, operands, label, where, summed=label not in right, weights=any(constant))
    out = view.out()
    if out is None:
        return
    axes: list[Axis] = []
    zero: list[bool] = []
    labels, ellipsis = _labels(right, view.rank(out))
    by_axis = dict(labels)
    for i in range(view.rank(out)):
        if i in by_axis:
            where = places[by_axis[i]]
            axes.append(view.axis(operands[where[0][0]], where[0][1]))
            zero.append(any(view.zero(operands[o])[a] for o, a in where))
        else:
            batch, flag = _dots_axis(view, operands, dots, len(ellipsis) - ellipsis.index(i))
            axes.append(batch)
            zero.append(flag)
    view.give(out, axes, zero)


def cache_link(view: View) -> None:
    """A cache on its way in or out, through matrices whose columns are the heads and the positions inside a head."""
    equation = view.node.attributes["equation"].as_string()
    (letters, *pairs), inner = equation.partition("->")[0].split(","), equation.partition("->")[2]
    x, out = view.need(0), view.out()
    incoming = pairs[0][0] in letters
    axes, zero = list(view.axes(x)), [False] * view.rank(x)
    for i, pair in enumerate(pairs, start=1):
        matrix, place = view.need(i), (letters if incoming else inner).index(pair[0])
        outside, inside = view.axes(matrix)
        view.pin(outside, "it is an index of the interface")
        view.tag(inside, "heads" if i == 1 else "head-size")
        if incoming:
            view.unify(axes[place], outside)
            axes[place], zero[place] = inside, view.zero(matrix)[1]
        else:
            contract(view, 0, place, i, 1)
            axes[place] = outside
    view.give(out, axes, zero)


def _labels(term: str, rank: int) -> tuple[list[tuple[int, str]], list[int]]:
    """Return (axis, letter) pairs and the axes that ``...`` stands for."""
    before, dots, after = term.partition("...")
    if not dots:
        if len(term) != rank:
            raise RuleMismatch("its equation does not fit its operands")
        return list(enumerate(term)), []
    hidden = list(range(len(before), rank - len(after)))
    return [*enumerate(before), *((rank - len(after) + i, c) for i, c in enumerate(after))], hidden


def _tie_label(
    view: View, operands: Sequence[ir.Value], label: str, where: list[tuple[int, int]], *, summed: bool, weights: bool
) -> None:
    full = [(o, a) for o, a in where if view.shape(operands[o])[a] != 1] or where[:1]
    first = view.axis(operands[full[0][0]], full[0][1])
    if len({o for o, _ in where}) < len(where):
        for o, a in where:
            view.pin(view.axis(operands[o], a), "it takes a diagonal")
    for o, a in full[1:]:
        view.unify(first, view.axis(operands[o], a))
    if summed and not any(view.zero(operands[o])[a] for o, a in full):
        for o, a in full:
            view.mix(o, a, "it sums products of values that are not zero when the unit is")
    if weights:
        view.tag(first, "neurons" if summed or len(where) == 1 else "experts")
    elif len(operands) > 1 and len(where) > 1:
        view.tag(first, "head-size" if summed else "heads")


def _dots_axis(view: View, operands: Sequence[ir.Value], dots: list[list[int]], back: int) -> tuple[Axis, bool]:
    candidates = []
    for value, hidden in zip(operands, dots, strict=True):
        if back <= len(hidden) and view.shape(value)[hidden[-back]] != 1:
            candidates.append((view.axis(value, hidden[-back]), view.zero(value)[hidden[-back]]))
    if not candidates:
        for value, hidden in zip(operands, dots, strict=True):
            if back <= len(hidden):
                return view.axis(value, hidden[-back]), False
        raise RuleMismatch("its ... has no origin")
    for axis, _ in candidates[1:]:
        view.unify(candidates[0][0], axis)
    return candidates[0][0], any(z for _, z in candidates)
