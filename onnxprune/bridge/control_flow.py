"""If, Loop and Scan: each body is a module of its own, called from the generated code with the values it captures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxprune.bridge.dtypes import torch_dtype
from onnxprune.bridge.nodes import describe
from onnxprune.bridge.ops.control import Row, if_else, loop, scan, scan_8
from onnxprune.bridge.parameters import opset_of
from onnxprune.bridge.registry import graph_op
from onnxprune.errors import ModelError

if TYPE_CHECKING:
    from onnxprune.bridge.codegen import GraphBuilder


def _body(
    builder: GraphBuilder,
    node: ir.Node,
    name: str,
    host_inputs: dict[int, ir.DataType],
    host_outputs: tuple[int, ...] = (),
) -> tuple[Any, tuple[Any, ...]]:
    """The module of a body, and the outer values it captures, in the order of its last arguments."""
    body = node.attributes[name].as_graph()
    inner = builder.nested(body)
    for index, value in enumerate(body.inputs):
        host = host_inputs.get(index)
        inner.add_input(value, "tensor" if host is None else "host", host)
    captured = _free_values(body)
    for value in captured:
        inner.add_capture(value, builder.lookup(value))
    generated = inner.build(host_outputs)
    module = builder.call_module(f"{node.name or node.op_type}_{name}", generated)
    arguments = []
    for outer in inner.captures:
        arguments.append(outer.ref if outer.kind in ("host", "carried") else builder.as_tensor(outer))
    return module, tuple(arguments)


def _free_values(body: ir.Graph) -> list[ir.Value]:
    """Values of enclosing graphs that a body uses, also in its own subgraphs, in the order of first use."""
    defined: set[ir.Value] = set()
    free: dict[ir.Value, None] = {}

    def walk(graph: ir.Graph) -> None:
        defined.update(graph.inputs)
        defined.update(graph.initializers.values())
        for node in graph:
            for value in node.inputs:
                if value is not None and value not in defined:
                    free[value] = None
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    walk(attribute.as_graph())
            defined.update(node.outputs)
        for value in graph.outputs:
            if value not in defined:
                free[value] = None

    walk(body)
    return list(free)


@graph_op("If")
def add_if(builder: GraphBuilder, node: ir.Node) -> Any:
    condition = node.inputs[0]
    assert condition is not None
    then_branch, then_captures = _body(builder, node, "then_branch", {})
    else_branch, else_captures = _body(builder, node, "else_branch", {})
    chosen = builder.as_host(builder.lookup(condition))
    return builder.graph.call_function(if_else, (chosen, then_branch, then_captures, else_branch, else_captures))


@graph_op("Loop")
def add_loop(builder: GraphBuilder, node: ir.Node) -> Any:
    types = {0: ir.DataType.INT64, 1: ir.DataType.BOOL}
    body, captures = _body(builder, node, "body", types, host_outputs=(0,))
    trips, condition = (
        None if v is None else builder.as_host(builder.lookup(v)) for v in (*node.inputs, None, None)[:2]
    )
    carried = tuple(builder.as_tensor(builder.lookup(v)) for v in node.inputs[2:] if v is not None)
    rows = _rows(node, 1 + len(carried))
    return builder.graph.call_function(loop, (trips, condition, carried, body, captures, rows))


def _rows(node: ir.Node, first: int) -> tuple[Row, ...]:
    """What the body's outputs from number `first` on give at each step, as far as the model says."""
    declared = node.attributes["body"].as_graph().outputs[first:]
    return tuple((torch_dtype(value.dtype or ir.DataType.FLOAT), _extents(value)) for value in declared)


def _extents(value: ir.Value) -> tuple[int, ...]:
    """The extents of a value; 0 where one is not known, as ONNX Runtime has it."""
    return tuple(dim if isinstance(dim, int) else 0 for dim in value.shape or ())


@graph_op("Scan")
def add_scan(builder: GraphBuilder, node: ir.Node) -> Any:
    body, captures = _body(builder, node, "body", {})
    n_scanned = node.attributes["num_scan_inputs"].as_int()
    inputs = [None if v is None else builder.as_tensor(builder.lookup(v)) for v in node.inputs]
    opset = opset_of(node, builder.opsets)
    options: dict[str, Any] = {
        name: tuple(attribute.value)
        for name, attribute in node.attributes.items()
        if name not in ("body", "num_scan_inputs")
    }
    function: Callable[..., Any] = scan
    if opset < 9:
        if inputs[0] is not None:
            raise ModelError(
                f"Scan node {describe(node)} of opset 8 gives sequence_lens, which the bridge does not run."
            )
        inputs, function = inputs[1:], scan_8
    carried, scanned = tuple(inputs[: len(inputs) - n_scanned]), tuple(inputs[len(inputs) - n_scanned :])
    rows = _rows(node, len(carried))
    return builder.graph.call_function(function, (carried, scanned, body, captures, rows), options)
