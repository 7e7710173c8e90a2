"""A quantised model of a float original over real numbers: the same graph without its rounding.

Rounded numbers are those of no masked twin. Without the rounding they can be compared: weights are what the integers
stand for, and a pair of QuantizeLinear and DequantizeLinear on an activation only cuts off what lies out of its range.
The masked twin gets the same cuts, for the quantiser drops a Relu or Clip in front of such a pair.

Read are the forms that `--quantize` writes: QDQ, dynamic int8 (MatMulInteger, ConvInteger), int4 in blocks
(MatMulNBits) and half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxprune import model_io
from onnxprune.errors import ModelError
from onnxprune.graph.edit import Editor
from onnxprune.graph.layers import channel_axis
from onnxprune.graph.operators import operator_of
from onnxprune.graph.packed import ENDING, layout_of
from onnxprune.graph.tensors import Array, read
from onnxprune.model_io.bodies import nodes_of

_ENDINGS = ("_quantized", "_QuantizeLinear_Input", ENDING)
_OF_INTEGERS = "Integer"  # ends the names of products whose operands come quantised and whose result does not


@dataclass(frozen=True)
class RealNumbers:
    """A quantised model without its rounding.

    Attributes:
        model: The model.
        ranges: What lies outside of these two numbers is cut off, by the name of the value in the float model.
    """

    model: ir.Model
    ranges: Mapping[str, tuple[float, float]]


def is_quantised(model: ir.Model) -> bool:
    """Whether a model rounds: it holds quantised operators, or float16 constants."""
    return any(_rounds(node) for node in nodes_of(model.graph)) or any(map(_is_half, model_io.all_initializers(model)))


def is_half(model: ir.Model) -> bool:
    """Whether float16 constants are all that rounds in a model."""
    return is_quantised(model) and not any(_rounds(node) for node in nodes_of(model.graph))


def over_real_numbers(quantised: ir.Model) -> RealNumbers:
    """Return a quantised model without its rounding; the model itself stays as it is.

    Raises:
        ModelError: It holds a quantised operator that is not read here.
    """
    model = quantised.clone()
    edit = Editor(model)
    ranges: dict[str, tuple[float, float]] = {}
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            _dequantise(edit, node, ranges)
        elif _multiplies_integers(node):
            _product(edit, node)
    for node in list(nodes_of(model.graph)):
        if operator_of(node).packs(1):
            _packed_product(edit, node)
    _in_full_precision(model)
    RemoveUnusedNodesPass()(model)
    left = next((node for node in nodes_of(model.graph) if _rounds(node)), None)
    if left is not None:
        raise ModelError(f"it holds {left.op_type}, which is not read over real numbers")
    return RealNumbers(model, ranges)


def store_as(model: ir.Model, original: ir.Model) -> None:
    """Turn matrices, in place, that a model stores the other way round than its original, as some engines want them."""
    edit = Editor(model)
    for name, value in list(model.graph.initializers.items()):
        other, uses = original.graph.initializers.get(name), list(value.uses())
        if other is None or len(uses) != 1 or value.const_value is None or len(value.const_value.shape) != 2:
            continue
        axes = channel_axis(value), channel_axis(other)
        if None in axes or axes[0] == axes[1]:
            continue
        value.const_value = ir.Tensor(np.ascontiguousarray(read(value.const_value).T), name=name)
        value.shape = ir.Shape(value.const_value.shape.numpy())
        (reader, index), *_ = uses
        reader.replace_input_with(index, edit.before(reader, "Transpose", [value], {"perm": [1, 0]}))


def cut_off(model: ir.Model, ranges: Mapping[str, tuple[float, float]]) -> bool:
    """Cut off what lies outside of ranges, in place; return whether the model has all of their values."""
    edit = Editor(model)
    values = {str(v.name): v for v in (*model.graph.inputs, *(o for node in model.graph for o in node.outputs))}
    for name, bounds in ranges.items():
        if name in values:
            _cut(edit, values[name], bounds)
    return set(ranges) <= set(values)


def _rounds(node: ir.Node) -> bool:
    return operator_of(node).knows_zero_points or node.op_type == "DynamicQuantizeLinear" or _multiplies_integers(node)


def _multiplies_integers(node: ir.Node) -> bool:
    return node.domain == "" and node.op_type.endswith(_OF_INTEGERS)


def _is_half(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT16


def _plain_name(value: ir.Value) -> str:
    """The name in the float model."""
    name = str(value.name)
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def _content(value: ir.Value | None) -> Array | None:
    return None if value is None or value.const_value is None else read(value.const_value)


def _real(integers: Array, scale: Array, zero_point: Array | None, axis: int) -> Array:
    """What quantised numbers stand for, with a scale for all of them or for each index of an axis."""

    def along(array: Array) -> npt.NDArray[np.float32]:
        shape = [-1 if i == axis % integers.ndim else 1 for i in range(integers.ndim)]
        return array.reshape(shape if array.size > 1 else ()).astype(np.float32)

    zero = np.zeros((), np.float32) if zero_point is None else along(zero_point)
    real: npt.NDArray[np.float32] = (integers.astype(np.float32) - zero) * along(scale)
    return real


def _dequantise(edit: Editor, node: ir.Node, ranges: dict[str, tuple[float, float]]) -> None:
    source, scale = node.inputs[0], _content(node.inputs[1])
    zero_point = _content(node.inputs[2]) if len(node.inputs) > 2 else None
    if source is None or scale is None or scale.ndim > 1:
        return
    integers = _content(source)
    if integers is not None:
        array = _real(integers, scale, zero_point, node.attributes.get_int("axis", 1) or 0)
        _stand_in(edit, node, array, _plain_name(source))
        return
    before = source.producer()
    activation = before.inputs[0] if before is not None and before.op_type == "QuantizeLinear" else None
    if activation is None or scale.size > 1:
        return
    limits = ir.DataType.UINT8 if zero_point is None else ir.DataType.from_numpy(zero_point.dtype)
    kind = np.iinfo(limits.numpy())
    zero = 0 if zero_point is None else int(zero_point.reshape(-1)[0])
    bounds = tuple(float(np.float32(end - zero) * np.float32(scale.reshape(-1)[0])) for end in (kind.min, kind.max))
    ranges[_plain_name(activation)] = (bounds[0], bounds[1])
    new = _clipped(edit, node, activation, (bounds[0], bounds[1]))
    edit.take_place(node.outputs[0], new)


def _stand_in(edit: Editor, node: ir.Node, array: Array, name: str) -> None:
    """Let a constant of a known name take the place of what a node computes."""
    graph, out = edit.model.graph, node.outputs[0]
    if str(out.name) == name or name not in {str(v.name) for v in model_io.all_initializers(edit.model)}:
        out.name = edit.fresh(f"{out.name}_before")
    else:
        name = edit.fresh(name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.Tensor(array, name=name)
    graph.register_initializer(value)
    out.replace_all_uses_with(value, replace_graph_outputs=True)


def _product(edit: Editor, node: ir.Node) -> None:
    """A product of integers, then Cast and a Mul by both scales: the product of the numbers that they stand for."""
    out, weight = node.outputs[0], node.inputs[1]
    dynamic = None if node.inputs[0] is None else node.inputs[0].producer()
    cast = next((user for user, _ in out.uses()), None)
    scaled = None if cast is None or cast.op_type != "Cast" else next((u for u, _ in cast.outputs[0].uses()), None)
    if dynamic is None or dynamic.op_type != "DynamicQuantizeLinear" or scaled is None or scaled.op_type != "Mul":
        return
    scales = next((v.producer() for v in scaled.inputs if v is not None and v is not cast.outputs[0]), None)  # type: ignore[union-attr]
    scale = next((s for s in map(_content, scales.inputs if scales is not None else ()) if s is not None), None)
    integers = _content(weight)
    if weight is None or integers is None or scale is None:
        return
    axis = 0 if node.op_type.startswith("Conv") else integers.ndim - 1
    zero_point = _content(node.inputs[3]) if len(node.inputs) > 3 else None
    constant = edit.constant(_real(integers, scale, zero_point, axis), _plain_name(weight))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    new = edit.after(scaled, node.op_type.removesuffix(_OF_INTEGERS), [dynamic.inputs[0], constant], attributes)
    edit.take_place(scaled.outputs[0], new)


def _packed_product(edit: Editor, node: ir.Node) -> None:
    """A product with a packed matrix: with the numbers that it stands for."""
    layout, content = layout_of(node), _content(node.inputs[1])
    if isinstance(layout, str) or layout.lead or content is None:
        return
    numbers = layout.numbers(content).reshape(layout.outputs, -1)[:, : layout.inputs]
    constant = edit.constant(np.ascontiguousarray(numbers.T), _plain_name(node.inputs[1]))  # type: ignore[arg-type]
    new = edit.before(node, "MatMul", [node.inputs[0], constant])
    if len(node.inputs) > 5 and node.inputs[5] is not None:
        new = edit.before(node, "Add", [new, node.inputs[5]])
    edit.take_place(node.outputs[0], new)


def _clipped(edit: Editor, near: ir.Node, value: ir.Value, bounds: tuple[float, float]) -> ir.Value:
    low, high = (edit.constant(np.array(bound, np.float32), "range") for bound in bounds)
    least = edit.after(near, "Max", [value, low])
    producer = least.producer()
    assert producer is not None
    return edit.after(producer, "Min", [least, high])


def _cut(edit: Editor, value: ir.Value, bounds: tuple[float, float]) -> None:
    readers = list(value.uses())
    near, graph = value.producer(), edit.model.graph
    if near is not None:
        edit.take_place(value, _clipped(edit, near, value, bounds), readers=readers)
        return
    first = graph[0]
    low, high = (edit.constant(np.array(bound, np.float32), "range") for bound in bounds)
    new = edit.before(first, "Min", [edit.before(first, "Max", [value, low]), high])
    for node, index in readers:
        node.replace_input_with(index, new)


def _in_full_precision(model: ir.Model) -> None:
    """Turn float16 into float32, constants and casts."""
    if not any(map(_is_half, model_io.all_initializers(model))):
        return
    for value in model_io.all_initializers(model):
        if _is_half(value) and value.const_value is not None:
            value.const_value = ir.Tensor(read(value.const_value).astype(np.float32), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in nodes_of(model.graph):
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        for out in node.outputs:
            if out.dtype == ir.DataType.FLOAT16:
                out.type = ir.TensorType(ir.DataType.FLOAT)  # a type may be shared with the model that was cloned
