"""How many tokens a row may have, where a table of positions inside the graph is what limits it.

longest_row(model, 128)     # 64, of a BERT with positions for 64 tokens
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.graph.dims import dim_name, graph_inputs, sample_axes
from onnxprune.graph.inference import known_extents
from onnxprune.graph.input_roles import index_bound
from onnxprune.graph.operators import operator_of
from onnxprune.graph.shapes import Probe, probe_at
from onnxprune.graph.text_inputs import TextInputs


def longest_row(model: ir.Model, inputs: TextInputs, asked: int) -> int:
    """Return the most tokens of a row, `asked` at most, with which no shape of the graph contradicts another.

    Exporters write positions as a table that is cut to the row, or as numbers that index a table. A row that is longer
    than the table is caught here, and not in the middle of a run. Where nothing shorter helps, the length is not what
    is wrong, and `asked` is returned.

    Args:
        model: A model that reads tokens.
        inputs: What its inputs are for.
        asked: Tokens, at least 1.
    """
    least = _contradictions(model, inputs, 1)
    if _contradictions(model, inputs, asked) <= least:
        return asked
    fits, too_long = 1, asked
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _contradictions(model, inputs, middle) <= least:
            fits = middle
        else:
            too_long = middle
    return fits if fits > 1 else asked


def _contradictions(model: ir.Model, inputs: TextInputs, tokens: int) -> int:
    """How many nodes cannot be computed for one row of so many tokens."""
    probe = probe_at(model, known_extents(model).applied(_sizes(model, inputs, tokens)))
    beyond = sum(_is_beyond(probe, node, index) for node in model.graph for index in range(len(node.inputs)))
    return probe.failures + beyond


def _sizes(model: ir.Model, inputs: TextInputs, tokens: int) -> dict[str, int]:
    """Extents of the free dimensions: one row, as many tokens as are asked for, nothing before them."""
    axes = sample_axes(model)
    sizes: dict[str, int] = {}
    for value in graph_inputs(model):
        past = inputs.roles.get(str(value.name)) == "cache"
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int):
                rows = axis == axes[str(value.name)]
                sizes.setdefault(dim_name(value, axis), 1 if rows else 0 if past else tokens)
    return sizes


def _is_beyond(probe: Probe, node: ir.Node, index: int) -> bool:
    """Whether an input of a node holds indices that are known and reach beyond what they index."""
    value = node.inputs[index]
    array = None if value is None or index not in operator_of(node).indices else probe.data.get(value)
    if array is None or not array.size:
        return False
    bound = index_bound(node, index)
    return bound is not None and int(np.max(array)) >= bound
