"""Parameters, multiply-adds and bytes of a model.

One multiply-add counts as one (FLOPs are about twice that). Counted are the operators that hold nearly all of them:
convolutions, matrix products, Einsum, recurrent cells and attention. Formulas are those of the definitions of the
operators (https://onnx.ai/onnx/operators/).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import model_io
from onnxprune.graph.tensors import read
from onnxprune.model_io.bodies import bodies

Shape = tuple[int, ...]
Shapes = Mapping[ir.Value, Shape]
_Rule = Callable[[ir.Node, "list[Shape | None]", "list[Shape | None]"], "int | None"]
_RULES: dict[str, _Rule] = {}

# Float inputs that configure an operator instead of being learnt: (operator, input).
_SETTINGS = {
    ("Resize", 1), ("Resize", 2), ("Upsample", 1), ("Clip", 1), ("Clip", 2), ("Pad", 2), ("QuantizeLinear", 1),
    ("DequantizeLinear", 1), ("OneHot", 2), ("Dropout", 1), ("Range", 0), ("Range", 1), ("Range", 2),
}  # fmt: skip
# Integer inputs that are quantised weights, and the input that says which integer is their zero.
_QUANTISED_WEIGHTS = {
    ("DequantizeLinear", 0): 2, ("QLinearConv", 3): 5, ("QLinearConv", 8): None, ("QLinearMatMul", 3): 5,
    ("QLinearMatMul", 0): 2, ("ConvInteger", 1): 3, ("MatMulInteger", 0): 2, ("MatMulInteger", 1): 3,
    ("DynamicQuantizeMatMul", 1): 3, ("QGemm", 3): 5, ("QGemm", 6): None,
}  # fmt: skip
_VIEWS = {"Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather"}


@dataclasses.dataclass(frozen=True)
class Figures:
    """The size of a model.

    Attributes:
        parameters: Elements of all weights and biases; shapes, indices and quantisation settings do not count.
        nonzero_parameters: Those that are not zero.
        macs: Multiply-adds of one run, without the nodes in `uncounted`; None when no shape at all is known.
        file_bytes: Of the saved model, external data included.
        uncounted: Nodes that have multiply-adds, but shapes that are not known.
    """

    parameters: int
    nonzero_parameters: int
    macs: int | None
    file_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of the parameters that are zero."""
        return 1 - self.nonzero_parameters / self.parameters if self.parameters else 0.0


def figures(model: ir.Model, shapes: Shapes | None = None) -> Figures:
    """Count parameters, multiply-adds and bytes.

    Args:
        model: The model.
        shapes: Concrete shapes of values, such as from `concrete_shapes`; where one is missing, or for all by default,
            the static shape written in the model is taken.
    """
    found = list(parameters(model))
    uncounted: list[str] = []
    macs = _graph_macs(model.graph, shapes or {}, uncounted)
    return Figures(
        parameters=sum(parameter.tensor.size for parameter in found),
        nonzero_parameters=sum(parameter.nonzero() for parameter in found),
        macs=None if uncounted and not macs else macs,
        file_bytes=model_io.serialized_size(model),
        uncounted=tuple(uncounted),
    )


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Numbers that were learnt, and the one among them that stands for zero."""

    tensor: ir.TensorProtocol
    zero: int = 0

    def nonzero(self) -> int:
        """Return how many are not zero."""
        array = read(self.tensor)
        if array.dtype.kind == "V" or array.dtype.isbuiltin != 1:  # bfloat16 and kin count faster and surer as floats
            array = array.astype(np.float32)
        return int(np.count_nonzero(array != self.zero if self.zero else array))


def parameters(model: ir.Model) -> Iterator[Parameter]:
    """The weights and biases among initializers and Constant nodes, each once, subgraphs included."""
    seen: set[int] = set()
    for graph in model.graphs():
        values = list(graph.initializers.values())
        values += [node.outputs[0] for node in graph if node.op_type == "Constant" and node.domain == ""]
        for value in values:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or id(tensor) in seen or not _is_parameter(value, tensor):
                continue
            seen.add(id(tensor))
            yield Parameter(tensor, _zero_point(value))


def counted_values(model: ir.Model) -> set[ir.Value]:
    """The values whose shapes the count of multiply-adds needs."""
    nodes = [node for graph in model.graphs() for node in graph if node.op_type in _RULES]
    return {value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None}


def macs_of(node: ir.Node, shapes: Shapes) -> int | None:
    """Multiply-adds of one node without its subgraphs: 0 for operators not counted, None where a shape is missing."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return 0
    inputs = [_shape(value, shapes) if value is not None else None for value in node.inputs]
    outputs = [_shape(value, shapes) for value in node.outputs]
    try:
        return rule(node, inputs, outputs)
    except (TypeError, IndexError):  # a shape that the formula needs is None or left out
        return None


def nodes_with_times(graph: ir.Graph, shapes: Shapes, times: int = 1) -> Iterator[tuple[ir.Node, int]]:
    """All nodes of a graph and of the bodies in it, with how often each runs (of an If, both branches)."""
    for node in graph:
        yield node, times
        for body in bodies(node):
            yield from nodes_with_times(body, shapes, times * _iterations(node, shapes))


def _is_parameter(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    if len(tensor.shape) == 0 or tensor.dtype == ir.DataType.STRING:
        return False
    roles = {(node.op_type, index) for node, index in _final_uses(value)}
    if tensor.dtype.is_floating_point():
        return bool(roles - _SETTINGS) or not roles
    return bool(roles & _QUANTISED_WEIGHTS.keys())


def _final_uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Uses of a constant, looked at through casts, views and lookups of it."""
    for node, index in value.uses():
        if node.op_type in _VIEWS and index == 0:
            for output in node.outputs:
                yield from _final_uses(output)
        else:
            yield node, index


def _zero_point(value: ir.Value) -> int:
    """Return the integer that stands for zero in a quantised weight; 0 for all others, and where it differs within."""
    for node, index in _final_uses(value):
        place = _QUANTISED_WEIGHTS.get((node.op_type, index))
        point = node.inputs[place] if place is not None and place < len(node.inputs) else None
        tensor = None if point is None else ir.convenience.get_const_tensor(point)
        if tensor is not None and len(numbers := np.unique(tensor.numpy())) == 1 and numbers.dtype.kind in "iu":
            return int(numbers[0])
    return 0


def _graph_macs(graph: ir.Graph, shapes: Shapes, uncounted: list[str]) -> int:
    total = 0
    for node in graph:
        macs = macs_of(node, shapes)
        if macs is None:
            uncounted.append(node.name or f"{node.op_type} of '{node.outputs[0].name}'")
        total += (macs or 0) + _subgraph_macs(node, shapes, uncounted)
    return total


def _subgraph_macs(node: ir.Node, shapes: Shapes, uncounted: list[str]) -> int:
    """If: the costlier branch. Loop and Scan: the body times the number of iterations, once where that is not known."""
    inner = list(bodies(node))
    if not inner:
        return 0
    return max(_graph_macs(body, shapes, uncounted) for body in inner) * _iterations(node, shapes)


def _iterations(node: ir.Node, shapes: Shapes) -> int:
    if node.op_type == "Loop" and node.inputs and node.inputs[0] is not None:
        tensor = ir.convenience.get_const_tensor(node.inputs[0])
        count = int(np.asarray(tensor.numpy()).reshape(-1)[0]) if tensor is not None and tensor.size == 1 else 1
        return count if 0 <= count < 1 << 31 else 1
    if node.op_type == "Scan":
        scanned = node.attributes.get_int("num_scan_inputs", 0)
        value = node.inputs[-scanned] if scanned else None
        shape = _shape(value, shapes) if value is not None else None
        axes = node.attributes.get_ints("scan_input_axes", [0])
        return shape[axes[0]] if shape else 1
    return 1


def _shape(value: ir.Value, shapes: Shapes) -> Shape | None:
    if value in shapes:
        return tuple(shapes[value])
    tensor = ir.convenience.get_const_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        return None
    return tuple(int(dim) for dim in shape)  # type: ignore[arg-type]


def _rule(*operators: str) -> Callable[[_Rule], _Rule]:
    def register(function: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(operators, function))
        return function

    return register


@_rule("Conv", "FusedConv", "ConvInteger")
def _conv(node: ir.Node, inputs: Any, outputs: Any) -> int:
    """Output elements x (C / group x kernel): W is [M, C / group, *kernel]."""
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])


@_rule("DeformConv")
def _deform_conv(node: ir.Node, inputs: Any, outputs: Any) -> int:
    """As Conv; the interpolation of its samples is left out."""
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])


@_rule("QLinearConv")
def _qlinear_conv(node: ir.Node, inputs: Any, outputs: Any) -> int:
    return math.prod(outputs[0]) * math.prod(inputs[3][1:])


@_rule("ConvTranspose")
def _conv_transpose(node: ir.Node, inputs: Any, outputs: Any) -> int:
    """Input elements x (M / group x kernel): W is [C, M / group, *kernel]. Padding crops afterwards."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


@_rule("Gemm")
def _gemm(node: ir.Node, inputs: Any, outputs: Any) -> int:
    inner = inputs[0][0 if node.attributes.get_int("transA", 0) else 1]
    return math.prod(outputs[0]) * inner


@_rule("QGemm")
def _qgemm(node: ir.Node, inputs: Any, outputs: Any) -> int:
    return math.prod(outputs[0]) * inputs[0][0 if node.attributes.get_int("transA", 0) else 1]


@_rule("MatMul", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits")
def _matmul(node: ir.Node, inputs: Any, outputs: Any) -> int:
    return math.prod(outputs[0]) * inputs[0][-1]


@_rule("FusedMatMul")
def _fused_matmul(node: ir.Node, inputs: Any, outputs: Any) -> int:
    return math.prod(outputs[0]) * inputs[0][-2 if node.attributes.get_int("transA", 0) else -1]


@_rule("Einsum")
def _einsum(node: ir.Node, inputs: Any, outputs: Any) -> int:
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


@_rule("LSTM", "GRU", "RNN")
def _recurrent(node: ir.Node, inputs: Any, outputs: Any) -> int:
    """Steps x batch x (elements of W and R): W [directions, gates x H, I], R [directions, gates x H, H]."""
    x, w, r = inputs[:3]
    return x[0] * x[1] * (math.prod(w) + math.prod(r))


@_rule("Attention", "MultiHeadAttention")
def _attention(node: ir.Node, inputs: Any, outputs: Any) -> int | None:
    """Scores and weighted sum of ai.onnx Attention and com.microsoft MultiHeadAttention.

    Q is [batch, heads, length, size] or [batch, length, heads x size]; with L keys in all (the past included), both
    products take batch x heads x length x L x size each.
    """
    q, k, v = inputs[0], inputs[1], inputs[2]
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        batch, length, _ = q
        width = k[1] // 3  # weights [input width, 3 x hidden], inside the operator
        return batch * length * math.prod(k) + 2 * batch * length * length * width
    past = _past_length(node, inputs)
    if len(q) == 4:
        batch, heads, length, size = q
        return batch * heads * length * (k[2] + past) * (size + v[3])
    batch, length, width = q
    heads = node.attributes.get_int("q_num_heads", 1)
    kv_heads = node.attributes.get_int("kv_num_heads", heads)
    value_width = v[2] * heads // kv_heads
    return batch * length * (k[1] + past) * (width + value_width)


def _past_length(node: ir.Node, inputs: Any) -> int:
    index = 4 if node.op_type == "Attention" else 6
    return inputs[index][2] if len(inputs) > index and inputs[index] else 0
