"""Fused and turned products written as plain ones, for tools that know MatMul(x, W), Gemm and Conv alone.

    FusedGemm, FusedConv             Gemm, Conv and the activation behind it
    FusedMatMul(x, W, transB)        MatMul(x, W') with the weight stored turned
    MatMul(x, Transpose(W))          the same
    MatMul(W, x)                     Transpose(MatMul(Transpose(x), W')), so that its outputs lie on the last axis
    Gemm(x, W, b, beta)              Gemm with beta times b, for ONNX Runtime's quantiser loses beta
    Gemm(x, W, b)                    MatMul and Add, for tools that do not know Gemm either (`without_gemm`)

The function stays the same, but for the rounding of a FusedMatMul's alpha, which goes into the weight.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune.graph.edit import Editor
from onnxprune.graph.inference import infer
from onnxprune.graph.layers import (
    activation_of,
    activation_settings,
    axes_at_node,
    data_axis,
    matrix_axes,
    result_axis,
    slots_of,
)
from onnxprune.graph.linear import read_once, source_of, tensor_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Slot
from onnxprune.graph.shapes import Facts
from onnxprune.model_io.bodies import nodes_of


def plain_products(model: ir.Model, *, without_gemm: bool = False) -> None:
    """Rewrite the products of the main graph that have constant weights, in place.

    Args:
        model: The model.
        without_gemm: Whether a product with a bias becomes MatMul and Add, those in bodies as well.
    """
    edit, facts = Editor(model), infer(model)
    for node in list(model.graph):
        product = _without_activation(edit, node) if activation_of(node) else node
        operator = operator_of(product)
        if operator.kind != "fc" or operator.knows_zero_points:
            continue
        _scale_bias(edit, product)
        slot = next((s for s in slots_of(product) if source_of(product.inputs[s.input]) is not None), None)
        if slot is not None:
            _store_plainly(edit, facts, product, slot)
    for node in list(nodes_of(model.graph)) if without_gemm else ():
        if operator_of(node).kind == "fc" and operator_of(node).biases and not operator_of(node).knows_zero_points:
            _apart_from_bias(edit, node)
    RemoveUnusedNodesPass()(model)


def _without_activation(edit: Editor, node: ir.Node) -> ir.Node:
    """Put the activation of a fused node behind it; return the product, the node itself where that cannot be done."""
    activation, plain = activation_of(node), operator_of(node).plain
    settings = activation_settings(node)
    if settings is None or not plain:
        return node
    kept = {name: a.value for name, a in node.attributes.items() if not name.startswith("activation")}
    result = product = edit.before(node, plain, node.inputs[:3], kept)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        result = edit.before(node, "Add", [result, node.inputs[3]])
    _replace(edit, node, edit.before(node, activation, [result], settings))
    maker = product.producer()
    assert maker is not None
    return maker


def _scale_bias(edit: Editor, node: ir.Node) -> None:
    """Let a Gemm add its constant bias as it is, with its factor `beta` in it."""
    beta, places = node.attributes.get_float("beta", 1.0), operator_of(node).biases
    bias = node.inputs[places[0]] if places and len(node.inputs) > places[0] else None
    if beta == 1 or bias is None or bias.const_value is None:
        return
    array = bias.const_value.numpy()
    node.replace_input_with(places[0], edit.constant((array * beta).astype(array.dtype), str(bias.name)))
    node.attributes["beta"] = ir.AttrFloat32("beta", 1.0)


def _store_plainly(edit: Editor, facts: Facts, node: ir.Node, slot: Slot) -> None:
    """Let the operands of a product be data and an initializer that needs no turning."""
    operand, data = node.inputs[slot.input], node.inputs[slot.data]
    weight = source_of(operand)
    axes = None if weight is None else matrix_axes(weight, node)
    if weight is None or operand is None or data is None or axes is None or not read_once(weight, node):
        return
    array = tensor_of(weight).numpy()
    if array.ndim != 2 or data.const_value is not None:
        return
    if operator_of(node).biases:
        output, _ = axes_at_node(slot, node, 2)
        if operand is not weight:
            node.replace_input_with(slot.input, _stored(weight, array if output == axes.output else array.T))
    elif operand is not weight or node.domain != "" or slot.input != 1:
        shape = facts.shape(data)
        turned = array if axes.output == 1 else array.T
        if shape is None or len(shape) < 2:
            return
        scaled = (turned * node.attributes.get_float("alpha", 1.0)).astype(array.dtype)
        if data_axis(slot, node, None) == -2:
            data = edit.before(node, "Transpose", [data], {"perm": _swapped(len(shape))})
        result = edit.before(node, "MatMul", [data, _stored(weight, scaled)])
        if result_axis(slot, node) == -2:
            result = edit.before(node, "Transpose", [result], {"perm": _swapped(len(shape))})
        _replace(edit, node, result)


def _apart_from_bias(edit: Editor, node: ir.Node) -> None:
    """Multiply and add by a node each, where the operands lie as MatMul takes them or the weight can be turned."""
    data, weight, *bias = node.inputs
    settings = {name: node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")}
    if node.attributes.get_int("transA", 0) or settings["beta"] != 1 or weight is None or weight.const_value is None:
        return
    if node.attributes.get_int("transB", 0) or settings["alpha"] != 1:
        if not read_once(weight, node):
            return
        array = tensor_of(weight).numpy()
        turned = array.T if node.attributes.get_int("transB", 0) else array
        weight = _stored(weight, (turned * settings["alpha"]).astype(array.dtype))
    result = edit.before(node, "MatMul", [data, weight])
    _replace(edit, node, edit.before(node, "Add", [result, bias[0]]) if bias and bias[0] is not None else result)


def _stored(weight: ir.Value, array: npt.NDArray[np.generic]) -> ir.Value:
    """Give a weight that one node reads other content, laid out in another way."""
    old = tensor_of(weight)
    weight.const_value = ir.Tensor(np.ascontiguousarray(array), dtype=old.dtype, name=weight.name)
    weight.shape = ir.Shape(array.shape)
    return weight


def _swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _replace(edit: Editor, node: ir.Node, result: ir.Value) -> None:
    """Let a value take the place of a node's result, and remove the node."""
    edit.take_place(node.outputs[0], result)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
