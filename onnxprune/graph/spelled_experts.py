"""A mixture of experts in one operator, spelled out: each product and each activation is a node that can be measured.

    p = Softmax(router)           g[e, t] = p where expert e is among the best k of token t, else 0
    h = (x where g > 0) W1^T + b1,    a = activation(h) where g > 0,    y = sum over e of g (a W2^T + b2)

(ONNX Runtime's ContribOperators.md, MoE.) All experts run on all tokens, so it takes as many times the work as there
are experts for each that a token goes to. Constants keep their names: what is found out about them holds for the
model as it was, and new numbers can be put back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import Editor

_OPSET = 13  # from here on Softmax, ReduceSum and Unsqueeze are as they are used here
_GATED = "swiglu"


def with_experts_spelled(model: ir.Model) -> ir.Model | None:
    """Return a copy of a model in which mixtures of experts with weights in floating point are many nodes.

    None where there is none: with another activation, or of an operator set before 13, it stays as it is.
    """
    if model.opset_imports.get("", 1) < _OPSET or not any(map(_is_spelled, model.graph)):
        return None
    copy = model.clone()
    edit = Editor(copy)
    for node in [node for node in copy.graph if _is_spelled(node)]:
        spelled = _Spelled(edit, node).result()
        edit.take_place(node.outputs[0], spelled)
        copy.graph.remove(node, safe=True)
    return copy


def put_back_experts(model: ir.Model, spelled: ir.Model) -> None:
    """Give the constants of a model, in place, the numbers that they have where experts were spelled out."""
    for name, value in spelled.graph.initializers.items():
        old = model.graph.initializers.get(name)
        if old is not None:
            old.const_value = value.const_value


def _is_spelled(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("com.microsoft", "MoE") or node.attributes.get_int("use_sparse_mixer", 0) != 0:
        return False
    kind, stacks = node.attributes.get_string("activation_type", "relu"), [_input(node, i) for i in (2, 4, 6)]
    fused = node.attributes.get_int("swiglu_fusion", 0) != 0
    known = kind in _ACTIVATIONS or (kind == _GATED and (stacks[2] is None) == fused)
    return known and all(v is None or v.const_value is not None for v in stacks)


class _Spelled:
    """The nodes of one mixture."""

    def __init__(self, edit: Editor, node: ir.Node) -> None:
        self._edit, self._node = edit, node
        weight = _input(node, 2)
        assert weight is not None and weight.const_value is not None
        self._dtype = weight.const_value.dtype.numpy()
        self._experts = weight.const_value.shape.numpy()[0]

    def result(self) -> ir.Value:
        """What the operator gives."""
        x, gate = self._need(0), self._gates()
        routed = self._op(
            "Cast", self._op("Greater", gate, self._number(0)), to=int(ir.DataType.from_numpy(self._dtype))
        )
        tokens = self._op("Unsqueeze", self._op("Reshape", x, self._ints(-1, self._hidden)), self._ints(0))
        read = self._op("Mul", tokens, routed)
        inner = self._op("Mul", self._inner(read), routed)
        shares = self._op("Mul", self._product(inner, 4, 5), gate)
        total = self._op("ReduceSum", shares, self._ints(0), keepdims=0)
        return self._op("Reshape", total, self._op("Shape", x))

    def _gates(self) -> ir.Value:
        """The weight of each expert's result for each token, [experts, tokens, 1]."""
        count = self._node.attributes.get_int("k", 1)
        shares = self._op("Softmax", self._need(1), axis=-1)
        best, which = self._best(shares, count)
        if self._node.attributes.get_int("normalize_routing_weights", 0):
            best = self._op("Div", best, self._op("ReduceSum", best, self._ints(-1), keepdims=1))
        none = self._op("Mul", shares, self._number(0))
        gates = self._op("ScatterElements", none, which, best, axis=1)
        return self._op("Unsqueeze", self._op("Transpose", gates, perm=[1, 0]), self._ints(-1))

    def _best(self, shares: ir.Value, count: int) -> tuple[ir.Value, ir.Value]:
        best = self._op("TopK", shares, self._ints(count), axis=-1)
        node = best.producer()
        assert node is not None
        node.resize_outputs(2)
        node.outputs[1].name = self._edit.fresh(f"{best.name}_which")
        return best, node.outputs[1]

    def _inner(self, read: ir.Value) -> ir.Value:
        kind, first = self._node.attributes.get_string("activation_type", "relu"), self._product(read, 2, 3)
        if kind != _GATED:
            activated = _ACTIVATIONS[kind](self, first)
            return activated if _input(self._node, 6) is None else self._op("Mul", activated, self._product(read, 6, 7))
        gate, linear = self._halves(first, read)
        numbers = self._node.attributes
        if (limit := numbers.get_float("swiglu_limit", np.inf) or np.inf) != np.inf:
            gate = self._op("Min", gate, self._number(limit))
            linear = self._op("Clip", linear, self._number(-limit), self._number(limit))
        if shift := numbers.get_float("activation_beta", 0.0):
            linear = self._op("Add", linear, self._number(shift))
        return self._op("Mul", self.swish(gate, numbers.get_float("activation_alpha", 1.0) or 0.0), linear)

    def _halves(self, first: ir.Value, read: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The gate and what it is multiplied with: a stack of its own, next to each other, or in two halves."""
        fusion = self._node.attributes.get_int("swiglu_fusion", 0)
        if fusion == 0:
            return first, self._product(read, 6, 7)
        weight = self._need(2)
        assert weight.const_value is not None
        rows = np.arange(weight.const_value.shape.numpy()[1])
        gate, linear = (rows[::2], rows[1::2]) if fusion == 1 else np.split(rows, 2)
        return self._op("Gather", first, self._ints(*gate), axis=-1), self._op(
            "Gather", first, self._ints(*linear), axis=-1
        )

    def _product(self, data: ir.Value, weight: int, bias: int) -> ir.Value:
        """The product with a stack [experts, outputs, inputs], and its bias."""
        product = self._op("MatMul", data, self._op("Transpose", self._need(weight), perm=[0, 2, 1]))
        added = _input(self._node, bias)
        return product if added is None else self._op("Add", product, self._op("Unsqueeze", added, self._ints(1)))

    def swish(self, value: ir.Value, alpha: float = 1.0) -> ir.Value:
        """x sigmoid(alpha x)."""
        scaled = value if alpha == 1 else self._op("Mul", value, self._number(alpha))
        return self._op("Mul", value, self._op("Sigmoid", scaled))

    def gelu(self, value: ir.Value) -> ir.Value:
        """x (1 + erf(x / sqrt 2)) / 2."""
        inside = self._op("Erf", self._op("Mul", value, self._number(np.sqrt(0.5))))
        return self._op("Mul", self._op("Mul", value, self._number(0.5)), self._op("Add", inside, self._number(1)))

    def relu(self, value: ir.Value) -> ir.Value:
        """max(x, 0)."""
        return self._op("Relu", value)

    @property
    def _hidden(self) -> int:
        weight = self._need(2)
        assert weight.const_value is not None
        return int(weight.const_value.shape.numpy()[2])

    def _need(self, index: int) -> ir.Value:
        value = _input(self._node, index)
        assert value is not None
        return value

    def _op(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        return self._edit.before(self._node, op_type, inputs, attributes)

    def _number(self, number: float) -> ir.Value:
        return self._edit.shared_constant(np.array(number, self._dtype), "experts_number")

    def _ints(self, *numbers: int) -> ir.Value:
        return self._edit.shared_constant(np.array(numbers, np.int64), "experts_axes")


_ACTIVATIONS: dict[str, Callable[[_Spelled, ir.Value], ir.Value]] = {
    "relu": _Spelled.relu, "gelu": _Spelled.gelu, "silu": _Spelled.swish, "identity": lambda _, value: value,
}  # fmt: skip


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
