"""Shapes of a model's values for one batch, as far as they are known without running its layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.dims import sizes_of
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import probe_at
from onnxprune.runtime.probe import concrete_shapes
from onnxprune.runtime.stream.cursor import Program
from onnxprune.runtime.stream.cuts import carried_values, operands

Feeds = Mapping[str, npt.NDArray[Any]]


def value_shapes(model: ir.Model, feeds: Feeds, needed: Iterable[ir.Value] = ()) -> dict[str, tuple[int, ...]]:
    """Return shapes by name: inferred; of what follows from inputs and extents alone, measured where that gives up.

    Masks and positions are such values. Nothing with weights is run, but for `needed` values left open by inference.

    Args:
        model: The model.
        feeds: One batch.
        needed: Values that are worth a run of the whole model.
    """
    inferred = concrete_shapes(model, feeds, needed)
    shapes = {str(v.name): shape for v, shape in inferred.items()}
    if any(out.name and out not in inferred for node in model.graph for out in node.outputs):
        shapes = _of_contrib(model, feeds) | shapes  # behind the first operator that onnx does not know all is open
    carried = carried_values(model)
    example: dict[str, npt.NDArray[Any]] = dict(feeds)
    known = {v for v in model.graph.inputs if v.name in feeds}
    nodes: list[ir.Node] = []
    for node in model.graph:
        fed = [v for v in operands(node) if v in carried and str(v.name) in shapes and operator_of(node).shape_only]
        if all(v in known or v in fed or v.const_value is not None for v in operands(node)) and (
            fed or not carried.intersection(node.outputs)
        ):
            nodes.append(node)
            known.update(node.outputs)
            for v in fed:  # only its extents are read
                dtype = v.dtype.numpy() if v.dtype is not None else np.dtype(np.float32)
                example[str(v.name)] = np.zeros(shapes[str(v.name)], dtype)
    open_names = [str(out.name) for node in nodes for out in node.outputs if out.name and str(out.name) not in shapes]
    if not open_names:
        return shapes
    try:
        values = Program(model, nodes, open_names, example)(example)
    except OnnxPruneError:
        return shapes
    return shapes | {name: np.shape(array) for name, array in values.items() if not isinstance(array, list)}


def _of_contrib(model: ir.Model, feeds: Feeds) -> dict[str, tuple[int, ...]]:
    """Shapes by name as the analysis infers them, which knows operators of ONNX Runtime."""
    known = probe_at(model, sizes_of(model, feeds)).shapes
    return {
        str(value.name): tuple(n for n in shape if n is not None)
        for value, shape in known.items()
        if value.name and None not in shape
    }
