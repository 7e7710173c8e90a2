"""Adds nodes that measure to a graph: small steps that work at every opset from 7 on, in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.graph.edit import Editor
from onnxprune.graph.operators import operator_of

_WINDOW_ATTRIBUTES = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


class Builder:
    """Appends nodes to the end of a model's main graph."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports.get("", 1)
        self.by_output = {str(out.name): node for node in self.graph for out in node.outputs}
        self._inputs = {str(v.name): v for v in self.graph.inputs}
        self._edit = Editor(model)

    def value(self, name: str) -> ir.Value:
        """Return a value of the main graph by name."""
        node = self.by_output.get(name)
        if node is None:
            return self._inputs[name]
        return next(out for out in node.outputs if out.name == name)

    def before_activation(self, name: str) -> ir.Value:
        """Return a value of the main graph by name; of a node with an activation in it, what that is applied to."""
        node = self.by_output.get(name)
        if node is None or not node.attributes.get_string("activation", ""):
            return self.value(name)
        kept = {k: a.value for k, a in node.attributes.items() if not k.startswith("activation")}
        return self.node(operator_of(node).plain, node.inputs, kept)

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Append a node, return its output."""
        node = ir.node(op_type, list(inputs), attributes=dict(attributes or {}))
        node.name = node.outputs[0].name = self._edit.fresh("measure")
        self.graph.append(node)
        return node.outputs[0]

    def constant(self, array: npt.NDArray[np.generic]) -> ir.Value:
        """Add an initializer."""
        return self._edit.constant(array, "measure")

    def output(self, value: ir.Value, name: str, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        """Make a value an output of the graph, under a name."""
        node = ir.node("Identity", [value])
        node.name = node.outputs[0].name = name
        node.outputs[0].type = ir.TensorType(dtype)
        self.graph.append(node)
        self.graph.outputs.append(node.outputs[0])

    def cast(self, value: ir.Value) -> ir.Value:
        """Return a value as float32."""
        return self.node("Cast", [value], {"to": int(ir.DataType.FLOAT)})

    def reshape(self, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshape; 0 keeps an extent, -1 takes what is left."""
        return self.node("Reshape", [value, self.constant(np.array(shape, np.int64))])

    def total(self, value: ir.Value, axes: Sequence[int] | None = None) -> ir.Value:
        """Sum over some axes, which vanish, or over all of them."""
        if axes is None:
            return self.node("ReduceSum", [value], {"keepdims": 0})
        if not axes:
            return value
        if self.opset < 13:
            return self.node("ReduceSum", [value], {"axes": list(axes), "keepdims": 0})
        return self.node("ReduceSum", [value, self.constant(np.array(axes, np.int64))], {"keepdims": 0})

    def unfold(self, node: ir.Node, weight: ir.Value, groups: int, summed: int, stride: int) -> ir.Value:
        """Return the windows that a Conv sees, shape [groups, rows, channels of a group x kernel].

        Every channel is convolved with an identity kernel: output channel (c, j) is element j of c's window.
        """
        assert weight.const_value is not None and node.inputs[0] is not None
        kernel = weight.const_value.shape.numpy()[2:]
        size = math.prod(kernel)
        channels = groups * summed // size
        one = np.eye(size, dtype=np.float32).reshape(size, 1, *kernel)
        identity = np.tile(one, (channels, *[1] * (len(kernel) + 1)))
        attributes: dict[str, Any] = {k: node.attributes[k] for k in _WINDOW_ATTRIBUTES if k in node.attributes}
        attributes = {k: a.value for k, a in attributes.items()} | {"group": channels}
        windows = self.node("Conv", [self.cast(node.inputs[0]), self.constant(identity)], attributes)
        return self.rows_of_map(windows, groups, summed, stride, len(kernel))

    def rows(self, value: ir.Value, width: int, axis: int, rank: int) -> ir.Value:
        """Turn a value into [1, rows, width], where `axis`, the last or the one before it, has that width."""
        value = self.cast(value)
        if axis == -2:
            value = self.node("Transpose", [value], {"perm": [*range(rank - 2), rank - 1, rank - 2]})
        return self.reshape(value, [1, -1, width])

    def rows_of_map(self, value: ir.Value, groups: int, width: int, stride: int, spatial: int) -> ir.Value:
        """Turn [N, groups x width, *spatial] into [groups, rows, width], on a grid of every `stride`-th place."""
        value = self.cast(value)
        if stride > 1:
            value = self._every(value, stride, spatial)
        value = self.reshape(value, [0, groups, width, -1])
        value = self.node("Transpose", [value], {"perm": [1, 0, 3, 2]})
        return self.reshape(value, [groups, -1, width])

    def _every(self, value: ir.Value, stride: int, spatial: int) -> ir.Value:
        """Return every `stride`-th place of the last `spatial` axes, from the first on."""
        if self.opset < 10:  # where Slice takes no steps, windows of one place do
            return self.node("MaxPool", [value], {"kernel_shape": [1] * spatial, "strides": [stride] * spatial})
        axes = np.arange(2, 2 + spatial, dtype=np.int64)
        starts, ends = np.zeros(spatial, np.int64), np.full(spatial, np.iinfo(np.int64).max)
        steps = np.full(spatial, stride, np.int64)
        return self.node("Slice", [value, *(self.constant(x) for x in (starts, ends, axes, steps))])
