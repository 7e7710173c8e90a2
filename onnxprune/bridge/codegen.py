"""From an ONNX graph to a torch.fx graph: one call per node, shape chains as Python ints, readable source.

Each ONNX value is bound to what stands for it in the generated code (`Bound`): a tensor, a Python number or list
(sizes and what is computed from them), or integers carried in a float tensor so that gradients pass through quantised
graphs. Every operator function is called with the kind of argument it asks for; conversions are put in where needed.
"""

from __future__ import annotations

import operator as operators
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from onnxprune.bridge import convert
from onnxprune.bridge.dtypes import INTEGER_RANGE, from_ir, torch_dtype
from onnxprune.bridge.nodes import attribute_value, check_signature, describe, unsupported
from onnxprune.bridge.parameters import Role, Target, constant_of, identifier, opset_of, role_of
from onnxprune.bridge.registry import Operator, find_graph_operator, find_host_operator, find_operator
from onnxprune.bridge.values import (
    HOST_INTEGERS_LIMIT,
    HOST_TYPES,
    Bound,
    host_dtype,
    host_value,
    is_carried,
    is_host_work,
)
from onnxprune.errors import ModelError

ANCHOR = "device_anchor"


@dataclass
class Generated:
    """A generated graph with everything its module needs."""

    graph: fx.Graph
    attributes: dict[str, Any]
    targets: dict[str, Target]
    input_names: list[str]
    output_names: list[str]
    captures: list[Bound]


class GraphBuilder:
    """Builds the fx graph of one ONNX graph or subgraph. State: the bindings of its values."""

    def __init__(
        self,
        onnx_graph: ir.Graph,
        reached: set[ir.Value],
        opsets: dict[str, int],
        make_module: Callable[[Generated], torch.nn.Module],
        own_names: frozenset[str] | None = None,
        reserved: frozenset[str] = frozenset(),
        is_root: bool = True,
    ) -> None:
        self.onnx_graph = onnx_graph
        self.reached = reached
        self.opsets = opsets
        self.make_module = make_module
        self.own_names = own_names
        self.is_root = is_root
        self.reserved = reserved
        self.graph = fx.Graph()
        self.bound: dict[ir.Value, Bound] = {}
        self.attributes: dict[str, Any] = {}
        self.targets: dict[str, Target] = {}
        self.fetched: dict[str, fx.Node] = {}
        self.tensors: dict[ir.Value, fx.Node] = {}
        self.input_names: list[str] = []
        self.captures: list[Bound] = []
        self.arguments: set[str] = set()

    def nested(self, body: ir.Graph) -> GraphBuilder:
        """A builder for a subgraph."""
        settings = (self.reached, self.opsets, self.make_module, self.own_names, self.reserved)
        return GraphBuilder(body, *settings, is_root=False)

    # ---- inputs and outputs

    def add_input(self, value: ir.Value, kind: str = "tensor", dtype: ir.DataType | None = None) -> None:
        """A placeholder for a graph input."""
        node = self._placeholder(value.name or "input")
        self.input_names.append(value.name or "")
        self.bound[value] = Bound(kind, node, dtype or value.dtype)

    def add_capture(self, value: ir.Value, outer: Bound) -> None:
        """A placeholder for a value of an enclosing graph."""
        if outer.literal:
            self.bound[value] = outer
            return
        kind = "tensor" if outer.kind == "constant" else outer.kind
        node = self._placeholder(value.name or "captured")
        self.bound[value] = replace(outer, kind=kind, ref=node)
        self.captures.append(outer)

    def _placeholder(self, name: str) -> fx.Node:
        argument = identifier(name, self.arguments | {"self"})
        self.arguments.add(argument)
        return self.graph.create_node("placeholder", argument, name=argument)

    def build(self, host_outputs: tuple[int, ...] = ()) -> Generated:
        """Generate calls for all nodes, then the return value. Outputs in `host_outputs` are Python values."""
        for node in self.onnx_graph:
            self.add_node(node)
        results = []
        for index, value in enumerate(self.onnx_graph.outputs):
            bound = self.lookup(value)
            results.append(self.as_host(bound) if index in host_outputs else self.as_tensor(bound))
        single = len(results) == 1 and self.is_root
        self.graph.output(results[0] if single else tuple(results))
        output_names = [value.name or "" for value in self.onnx_graph.outputs]
        return Generated(self.graph, self.attributes, self.targets, self.input_names, output_names, self.captures)

    # ---- nodes

    def add_node(self, node: ir.Node) -> None:
        """Bind the outputs of one node."""
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            self._add_constant(node)
            return
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            self._add_graphs(node)
            return
        opset = opset_of(node, self.opsets)
        inputs = [None if value is None else self.lookup(value) for value in node.inputs]
        attributes = {name: attribute_value(node, attribute) for name, attribute in node.attributes.items()}
        if self._add_on_host(node, inputs, attributes):
            return
        operator = find_operator(node.domain, node.op_type, opset)
        if operator is None:
            raise unsupported(node, opset)
        self._add_call(node, operator, inputs, attributes, opset)

    def _add_graphs(self, node: ir.Node) -> None:
        """Bind the outputs of a node that holds graphs: If, Loop, Scan."""
        bind = find_graph_operator(node.domain, node.op_type)
        if bind is None:
            raise unsupported(node, self.opsets.get(node.domain, 0))
        call = bind(self, node)
        self._label(call, node, None)
        for index, output in enumerate(node.outputs):
            if output.name or output.uses():
                item = self.graph.call_function(operators.getitem, (call, index))
                self._label(item, node, output)
                self.bound[output] = Bound("tensor", item, output.dtype)

    def _add_constant(self, node: ir.Node) -> None:
        tensor = constant_of(node.outputs[0])
        if tensor is None:
            raise ModelError(f"Constant node {describe(node)} holds no numbers; the bridge works on numbers only.")
        self.bound[node.outputs[0]] = Bound("constant", None, tensor.dtype, False, tensor, node.outputs[0])

    def _add_on_host(self, node: ir.Node, inputs: list[Bound | None], attributes: dict[str, Any]) -> bool:
        """Run the node on Python numbers, if it computes sizes from sizes. Says whether it does."""
        host = find_host_operator(node.domain, node.op_type)
        if host is None or len(node.outputs) != 1:
            return False
        output = node.outputs[0]
        if host.of_tensors:
            first = inputs[0]
            assert first is not None
            reference = self.as_tensor(first) if first.kind != "carried" else first.ref
            if first.kind == "host" or first.literal:
                reference = first.ref
            ref = self.graph.call_function(host.function, (reference,), attributes)
            self._bind_host(node, output, ref, ir.DataType.INT64)
            return True
        if not is_host_work(node.op_type, inputs):
            return False
        dtype = host_dtype(host, inputs, attributes)
        if dtype is not None and dtype not in HOST_TYPES:
            return False
        values = [None if bound is None else host_value(bound) for bound in inputs]
        if all(bound is None or bound.literal or bound.constant is not None for bound in inputs):
            try:
                result = host.function(*values, **attributes)
            except (NotImplementedError, IndexError, ValueError, ZeroDivisionError):
                return False
            if np.size(result) > HOST_INTEGERS_LIMIT:
                return False
            self.bound[output] = Bound("host", result, dtype, literal=True)
            return True
        self._bind_host(node, output, self.graph.call_function(host.function, tuple(values), attributes), dtype)
        return True

    def _bind_host(self, node: ir.Node, output: ir.Value, ref: fx.Node, dtype: ir.DataType | None) -> None:
        self._label(ref, node, output)
        self.bound[output] = Bound("host", ref, dtype)

    def _add_call(
        self, node: ir.Node, operator: Operator, inputs: list[Bound | None], attributes: dict[str, Any], opset: int
    ) -> None:
        types = [None if bound is None else bound.dtype for bound in inputs]
        carried = [index for index in operator.carries if index < len(inputs) and is_carried(inputs[index])]
        arguments = [self._argument(operator, index, bound, bool(carried)) for index, bound in enumerate(inputs)]
        keywords = dict(attributes)
        keywords.update(self._injected(node, operator, types, opset, inputs))
        check_signature(node, operator, arguments, keywords)
        while arguments and arguments[-1] is None and len(arguments) > 1:
            arguments.pop()
        call = self.graph.call_function(operator.function, tuple(arguments), keywords)
        out_type = None
        if operator.quantizes is not None:
            out_type = operator.quantizes(attributes, types)
        elif carried:
            source = inputs[carried[0]]
            assert source is not None
            out_type = source.dtype
        self._bind_outputs(node, operator, call, out_type)

    def _bind_outputs(self, node: ir.Node, operator: Operator, call: fx.Node, carried: ir.DataType | None) -> None:
        if not operator.multiple:
            self._label(call, node, node.outputs[0])
            kind = "tensor" if carried is None else "carried"
            self.bound[node.outputs[0]] = Bound(kind, call, carried or node.outputs[0].dtype)
            return
        self._label(call, node, None)
        for index, output in enumerate(node.outputs):
            if output.name == "" and not output.uses():
                continue
            item = self.graph.call_function(operators.getitem, (call, index))
            self._label(item, node, output)
            kind = "carried" if carried is not None and (index == 0 or operator.carries) else "tensor"
            self.bound[output] = Bound(kind, item, carried if kind == "carried" else output.dtype)

    def _argument(self, operator: Operator, index: int, bound: Bound | None, carried: bool) -> Any:
        """One input in the form that the operator asks for."""
        if bound is None:
            return None
        if index in operator.host:
            return self.as_host(bound)
        if index in operator.scalar:
            literal = bound.ref if bound.literal else None
            if bound.constant is not None and bound.constant.size == 1:
                literal = bound.constant.numpy().reshape(()).item()
            if isinstance(literal, (int, float)):
                return literal
        if index in operator.weights and bound.constant is not None:
            quantized = self._quantized_weight(bound)
            if quantized is not None:
                return quantized
        if index in operator.quantized and bound.kind == "carried":
            return bound.ref
        if index in operator.carries and carried:
            return bound.ref if bound.kind == "carried" else self._call(convert.carry, self.as_tensor(bound))
        return self.as_tensor(bound)

    def _injected(
        self, node: ir.Node, operator: Operator, types: list[Any], opset: int, inputs: list[Bound | None]
    ) -> dict[str, Any]:
        wanted = operator.injected
        injected: dict[str, Any] = {}
        if "training" in wanted:
            injected["training"] = self._fetch("training")
        if "updates_statistics" in wanted:
            owned = all(
                bound is not None and bound.source is not None and bound.source.is_initializer()
                for bound in (inputs[index] for index in operator.statistics)
            )
            injected["updates_statistics"] = self._fetch("updates_statistics") if owned else False
        if "n_outputs" in wanted:
            injected["n_outputs"] = len(node.outputs)
        if "device" in wanted:
            injected["device"] = self._call(convert.device_of, self._anchor())
        if "input_types" in wanted:
            injected["input_types"] = tuple(None if t is None else t.name for t in types)
        if "opset" in wanted:
            injected["opset"] = opset
        return injected

    # ---- conversions

    def lookup(self, value: ir.Value) -> Bound:
        """What stands for an ONNX value. Raises ModelError if nothing has produced it."""
        if value not in self.bound:
            tensor = constant_of(value)
            if tensor is None:
                raise ModelError(f"Value {value.name!r} is used but neither produced, given nor initialised.")
            self.bound[value] = Bound("constant", None, tensor.dtype, False, tensor, value)
        return self.bound[value]

    def as_host(self, bound: Bound) -> Any:
        """A Python number or (nested) list."""
        if bound.kind == "host" or bound.literal:
            return bound.ref
        if bound.constant is not None:
            return bound.constant.numpy().tolist()
        return self._call(convert.read, bound.ref)

    def as_tensor(self, bound: Bound) -> Any:
        """A tensor of the value's own ONNX type."""
        if bound.kind == "tensor":
            return bound.ref
        if bound.kind == "carried":
            return self._call(convert.settle, bound.ref, torch_dtype(bound.dtype or ir.DataType.INT8))
        if bound.kind == "constant":
            assert bound.source is not None
            return self._weight(bound)
        dtype = torch_dtype(bound.dtype or ir.DataType.INT64)
        if bound.literal:
            name = identifier("folded", self.attributes.keys() | self.reserved)
            self.attributes[name] = torch.tensor(bound.ref, dtype=dtype)
            return self._fetch(name)
        return self._call(convert.tensor, bound.ref, dtype, self._anchor())

    def _weight(self, bound: Bound) -> fx.Node:
        """Fetch an initializer: a parameter or a buffer of the module."""
        value = bound.source
        assert value is not None and bound.constant is not None
        if value not in self.tensors:
            target = self._target(value)
            if target.role is Role.QUANTIZED:
                target = Target(target.name, Role.BUFFER)
            self.tensors[value] = self._register(target, from_ir(bound.constant))
        return self.tensors[value]

    def _quantized_weight(self, bound: Bound) -> fx.Node | None:
        """Integers carried in float, quantised in the forward pass from a float parameter in real units."""
        value, tensor = bound.source, bound.constant
        assert value is not None and tensor is not None
        target = self._target(value)
        if target.role is not Role.QUANTIZED:
            return None
        ((node, index),) = value.uses()
        operator = find_operator(node.domain, node.op_type, opset_of(node, self.opsets))
        assert operator is not None
        scale_at, zero_at = operator.weights[index]
        scale_value = node.inputs[scale_at]
        zero_value = node.inputs[zero_at] if zero_at < len(node.inputs) else None
        assert scale_value is not None
        scale, zero = self.lookup(scale_value), None if zero_value is None else self.lookup(zero_value)
        latent = convert.dequantized(tensor, constant_of(scale_value), constant_of(zero_value), target)
        low, high = INTEGER_RANGE[tensor.dtype]
        return self._call(
            convert.quantize_weight,
            self._register(target, latent),
            self.as_tensor(scale),
            None if zero is None else self.as_tensor(zero),
            target.axis,
            target.block_size,
            low,
            high,
        )

    def _target(self, value: ir.Value) -> Target:
        """The role of a constant; what comes out of an inlined local function has no place to be written back to."""
        if self.own_names is not None and value.name not in self.own_names:
            return Target(value.name or "", Role.BUFFER)
        return role_of(value, self.reached, self.opsets)

    def _register(self, target: Target, tensor: torch.Tensor) -> fx.Node:
        name = identifier(target.name, self.attributes.keys() | self.reserved)
        trains = target.role is not Role.BUFFER
        self.attributes[name] = torch.nn.Parameter(tensor) if trains else tensor
        self.targets[name] = target
        return self._fetch(name)

    def _anchor(self) -> fx.Node:
        """A buffer that knows which device the module is on."""
        self.attributes.setdefault(ANCHOR, torch.empty(0))
        return self._fetch(ANCHOR)

    def _fetch(self, name: str) -> fx.Node:
        if name not in self.fetched:
            self.fetched[name] = self.graph.create_node("get_attr", name, name=name)
        return self.fetched[name]

    def _call(self, function: Any, *arguments: Any) -> fx.Node:
        return self.graph.call_function(function, arguments)

    def _label(self, ref: fx.Node, node: ir.Node, output: ir.Value | None) -> None:
        """Name a line of the generated code after the ONNX value, and remember the node for messages."""
        ref.meta["onnx_node"] = node.name or ""
        ref.meta["onnx_operator"] = node.op_type
        if output is not None and output.name:
            ref.meta["onnx_value"] = output.name
            ref._rename(identifier(output.name, ()))

    def call_module(self, name: str, generated: Generated) -> fx.Node:
        """Make a subgraph's module, register it and fetch it."""
        name = identifier(name, self.attributes.keys() | self.reserved)
        self.attributes[name] = self.make_module(generated)
        return self._fetch(name)
