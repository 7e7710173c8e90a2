"""Weights that the graph computes from constants alone become constants themselves.

Exporters write weight standardisation (NFNet, BiT), weight norm and merged adapters as operators over the stored
tensors. A zero in such a tensor is no zero in what the layer multiplies by, and its mean ties all of its inputs
together. ONNX Runtime folds these operators when it loads the model; here that happens before anything is scored.

What only moves, casts or dequantises stored numbers stays as it is: rules follow it, and a file must not grow. So a
value is folded only where it takes no more bytes than the constants that nobody else needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from onnxprune.graph.edit import Editor
from onnxprune.graph.operators import operator_of
from onnxprune.graph.properties import Operator
from onnxprune.graph.tensors import is_constant


class FoldWeights(ir.passes.InPlacePass):
    """Compute matrices that depend on constants alone, in ONNX Runtime, and store them in the place of these."""

    preserves: Literal["exactly"] = "exactly"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        candidates = _candidates(model.graph)
        if not candidates:
            return ir.passes.PassResult(model, modified=False)
        edit = Editor(model)
        folded = [_fold(edit, value) for value in candidates]
        return ir.passes.PassResult(model, modified=any(folded))


def _candidates(graph: ir.Graph) -> list[ir.Value]:
    """Return what is calculated from constants and read by nodes that are not."""
    calculated: dict[ir.Value, bool] = {}  # by value that depends on constants alone: is there more than moves in it?
    for node in graph:
        inputs = [v for v in node.inputs if v is not None]
        if not inputs or node.domain != "" or _stays(operator_of(node)):
            continue
        if all(v in calculated or is_constant(v) for v in inputs):
            calculates = not _only_moves(operator_of(node)) or any(calculated.get(v, False) for v in inputs)
            calculated.update((out, calculates) for out in node.outputs)
    return [
        value
        for value, calculates in calculated.items()
        if calculates
        and not value.is_graph_output()
        and any(user.outputs[0] not in calculated for user in value.consumers())
    ]


def _only_moves(operator: Operator) -> bool:
    """Each index of the result is an index of the input: zeros stay zeros, and rules follow them."""
    return bool(operator.movement) or operator.shape_only


def _stays(operator: Operator) -> bool:
    """What is drawn at random, quantised, filled at run time or a body of its own."""
    return operator.random or operator.generates or operator.has_body or operator.knows_zero_points


def _fold(edit: Editor, value: ir.Value) -> bool:
    model = edit.model
    nodes, leaves = _origin(value)
    exclusive = [leaf for leaf in leaves if nodes.issuperset(leaf.consumers()) and not leaf.is_graph_output()]
    results = {out for node in nodes for out in node.outputs}
    if any(out.is_graph_output() or not nodes.issuperset(out.consumers()) for out in results - {value}):
        return False
    spent = [leaf.const_value for leaf in exclusive if leaf.const_value is not None]
    if not any(_is_matrix(tensor.shape.numpy()) for tensor in spent):
        return False
    array = _computed(model, value)
    if array is None or array.nbytes > sum(tensor.nbytes for tensor in spent) or not _is_matrix(array.shape):
        return False
    edit.computed(value, array)
    model.graph.remove(nodes, safe=True)
    for leaf in exclusive:
        del model.graph.initializers[str(leaf.name)]
    return True


def _is_matrix(shape: Sequence[int]) -> bool:
    return sum(n > 1 for n in shape) >= 2


def _origin(value: ir.Value) -> tuple[set[ir.Node], set[ir.Value]]:
    """Return the nodes that compute a value, and the constants that they start from."""
    nodes: set[ir.Node] = set()
    leaves: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None:
            leaves.add(current)
        elif node not in nodes:
            nodes.add(node)
            waiting.extend(v for v in node.inputs if v is not None)
    return nodes, leaves


def _computed(model: ir.Model, value: ir.Value) -> npt.NDArray[np.generic] | None:
    """Return what ONNX Runtime computes for a value of constants, None where it cannot or it is no float tensor."""
    part = ir.Model(ir.convenience.extract(model.graph, [], [value]), ir_version=model.ir_version)
    part.graph.outputs[0].dtype = value.dtype or ir.DataType.FLOAT
    try:
        array = runtime.run(runtime.make_session(part, optimize="off"), {})[str(value.name)]
    except OnnxPruneError:
        return None
    return array if np.issubdtype(array.dtype, np.floating) else None
