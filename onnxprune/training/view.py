"""The training view: the graph as it is trained, which differs from the file's in three respects.

- An output that is a Softmax or LogSoftmax is taken before it, so that the loss sees logits (a log-softmax of logits is
  exact; the logarithm of a float32 softmax is not).
- Dropout nodes stand before fully connected layers, where asked for. They act in training mode only.
- Half-precision numbers are float32 ones (see widen.py).

Initializers keep their names, so what is trained here is written back into the file's own graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxprune.graph.edit import remove_unread
from onnxprune.graph.layers import slots_of
from onnxprune.graph.operators import operator_of
from onnxprune.training.layers import Layer, find_layers, passes_weights
from onnxprune.training.widen import widen

HeadKind = Literal["values", "probabilities", "softmax", "log-softmax"]


@dataclass(frozen=True)
class Head:
    """One output of the training view.

    Attributes:
        name: The output's name in the file.
        kind: softmax and log-softmax: the view gives the logits, the file that function of them. probabilities: both
            give probabilities (found out by running it). values: anything else, such as plain logits.
        axis: Class axis of softmax and log-softmax; 1 otherwise.
    """

    name: str
    kind: HeadKind
    axis: int


def training_view(model: ir.Model, dropout: Mapping[str, float] | None = None) -> tuple[ir.Model, tuple[Head, ...]]:
    """A copy of `model` to train, and what its outputs are.

    Args:
        dropout: Initializer name of a fully connected weight -> dropout ratio on that layer's input.
    """
    view = model.clone()
    widen(view)
    heads = tuple(_open_head(view, i) for i in range(len(view.graph.outputs)))
    for name, ratio in (dropout or {}).items():
        if ratio > 0:
            _drop_before(view, find_layers(view)[name], ratio)
    return view, heads


def _open_head(view: ir.Model, index: int) -> Head:
    """Point output number `index` at the logits if it is a softmax of them; the function of it that was cut off."""
    graph = view.graph
    value = graph.outputs[index]
    name = value.name or ""
    node = value.producer()
    while node is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    function = operator_of(node).head if node is not None else ""
    if node is None or not function or node.inputs[0] is None:
        return Head(name, "values", 1)
    axis = _softmax_axis(node, graph.opset_imports.get("", 13))
    if axis is None:
        return Head(name, "values", 1)
    graph.outputs[index] = node.inputs[0]
    remove_unread(value)
    return Head(name, function, axis)


def _softmax_axis(node: ir.Node, opset: int) -> int | None:
    """The axis that the node normalises over, or None where it normalises over several (opset below 13)."""
    attribute = node.attributes.get("axis")
    if opset >= 13:
        return attribute.as_int() if attribute is not None else -1
    axis = attribute.as_int() if attribute is not None else 1
    logits = node.inputs[0]
    assert logits is not None
    producer = logits.producer()
    if logits.shape is None:
        matrix = producer is not None and producer.op_type == "Gemm"
        return axis if axis == -1 or (matrix and axis == 1) else None
    return axis if all(d == 1 for d in list(logits.shape)[axis % len(logits.shape) + 1 :]) else None


def _drop_before(view: ir.Model, layer: Layer, ratio: float) -> None:
    graph = view.graph
    for node in list(graph):
        if node.name != layer.node or node.op_type != layer.operator:
            continue
        place = _data_input(node, layer)
        data = None if place is None else node.inputs[place]
        if data is None or place is None:
            return
        opset = graph.opset_imports.get("", 13)
        if opset < 12:
            drop = ir.node("Dropout", [data], {"ratio": ratio})
        else:
            tensor = ir.tensor(np.array(ratio, np.float32), name=f"{layer.name}.dropout_ratio")
            constant = ir.node("Constant", [], {"value": tensor})
            constant.outputs[0].name = f"{layer.name}.dropout_ratio"
            node.prepend(constant)
            drop = ir.node("Dropout", [data, constant.outputs[0]])
        drop.outputs[0].name = f"{layer.name}.dropped"
        drop.name = f"{layer.name}.dropout"
        node.prepend(drop)
        node.replace_input_with(place, drop.outputs[0])
        return


def _data_input(node: ir.Node, layer: Layer) -> int | None:
    """Which input of a fully connected layer its weight is multiplied with; None where that is not known."""
    return next((slot.data for slot in slots_of(node) if slot.input == layer.slot), None)


def fc_after_layers(model: ir.Model) -> dict[str, Layer]:
    """The fully connected weights whose layer reads another layer's output, not the graph's input itself."""
    nodes = {node.name: node for node in model.graph}
    later = {}
    for name, layer in find_layers(model).items():
        if layer.kind != "fc" or layer.role != "weight":
            continue
        place = _data_input(nodes[layer.node], layer)
        value = None if place is None else nodes[layer.node].inputs[place]
        while value is not None and (node := value.producer()) is not None and passes_weights(node):
            value = node.inputs[0]
        if value is not None and not value.is_graph_input() and not value.is_initializer():
            later[name] = layer
    return later


def dropout_ratios(
    model: ir.Model, base: float, masks: Mapping[str, np.ndarray], original: ir.Model
) -> dict[str, float]:
    """Dropout per fully connected weight: D_r = D_o sqrt(C_r / C_o).

    Source: Han et al. 2015, section 3.2, equation 2, where C is the number of connections of the layer.

    Args:
        base: D_o, the ratio that the unpruned network is trained with.
        masks: True where a weight is left; a weight without a mask has all its connections.
        original: The model before any pruning, whose weights' sizes are C_o.
    """
    ratios = {}
    for name in fc_after_layers(model) if base > 0 else ():
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None:
            continue
        left = int(masks[name].sum()) if name in masks else value.const_value.size
        first = original.graph.initializers.get(name)
        all_of_it = first.const_value.size if first is not None and first.const_value is not None else left
        ratios[name] = base * (left / all_of_it) ** 0.5
    return ratios
